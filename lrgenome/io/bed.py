"""Intervals from BED files: plain, gzip, BGZF or stdin."""

import contextlib
import gzip
import io
import os
import re
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from lrgenome.errors import BedError
from lrgenome.io.streams import standard_input

_NUMBER = re.compile(r"[0-9]+", re.ASCII)
_GZIP_MAGIC = b"\x1f\x8b"


class BedInterval(NamedTuple):
    """One line of a BED file.

    Attributes
    ----------
    chrom : str
        Contig name.
    start, end : int
        0-based half-open, in bp; ``0 <= start < end``.
    name : str
        Fourth column, ``.`` if there is none.
    strand : str
        Sixth column, ``+``, ``-`` or ``.``.
    """

    chrom: str
    start: int
    end: int
    name: str = "."
    strand: str = "."


def read_bed(path: str | os.PathLike[str]) -> Iterator[BedInterval]:
    """Read the intervals of a BED file in file order, without holding them in memory.

    Blank lines, comments (``#``) and ``track`` and ``browser`` lines are skipped. Columns are split at tabs,
    or at any blank where a line has no tab.

    Parameters
    ----------
    path
        Plain, gzip or BGZF, whatever its suffix; ``-`` is stdin.

    Yields
    ------
    BedInterval
        0-based half-open.

    Raises
    ------
    BedError
        If the file cannot be read or a line is not an interval, with the 1-based line number.
    """
    label = "stdin" if os.fspath(path) == "-" else os.fspath(path)
    number = 0
    try:
        with _open_text(path) as lines:
            for number, line in enumerate(lines, 1):
                line = line.rstrip("\r\n")
                fields = line.split("\t") if "\t" in line else line.split()
                if (
                    not line.strip()
                    or line.startswith("#")
                    or fields[0].split(" ")[0] in ("track", "browser")
                ):
                    continue
                try:
                    interval = _parse(fields)
                except ValueError as error:
                    raise BedError(f"{label}, line {number}: {error}") from None
                yield interval
    except UnicodeDecodeError as error:
        raise BedError(
            f"{label}, after line {number}: got bytes that are not text ({error.reason})"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BedError(f"{label}, after line {number}: damaged or cut gzip data ({error})") from error
    except OSError as error:
        raise BedError(f"{label}: cannot be read: {error.strerror or error}") from error


def _parse(fields: list[str]) -> BedInterval:
    if len(fields) < 3:
        raise ValueError(
            f"got {len(fields)} column{'s' * (len(fields) != 1)}, expected at least 3 (chrom, start, end)"
        )
    chrom = fields[0].strip()
    if not chrom:
        raise ValueError("got an empty contig name")
    bounds = []
    for what, text in (("start", fields[1]), ("end", fields[2])):
        text = text.strip()
        if text.startswith("-") and _NUMBER.fullmatch(text[1:]):
            raise ValueError(f"got {what} {text}, expected 0 or more")
        if not _NUMBER.fullmatch(text):
            raise ValueError(f"got {what} {text!r}, expected a whole number")
        bounds.append(int(text))
    start, end = bounds
    if end <= start:
        raise ValueError(f"got start {start} and end {end}, expected start < end (0-based half-open)")
    strand = (fields[5].strip() if len(fields) > 5 else "") or "."
    if strand not in ("+", "-", "."):
        raise ValueError(f"got strand {strand!r}, expected +, - or .")
    name = (fields[3].strip() if len(fields) > 3 else "") or "."
    return BedInterval(chrom, start, end, name, strand)


@contextlib.contextmanager
def _open_text(path: str | os.PathLike[str]) -> Iterator[IO[str]]:
    """Open text, plain or gzip by its first bytes."""
    with contextlib.ExitStack() as stack:
        raw: Any
        if os.fspath(path) == "-":
            raw = standard_input("BED")
        else:
            raw = stack.enter_context(open(path, "rb", buffering=0))
        # Detaching on the way out, since closing a wrapper would close the process's stdin.
        buffered = io.BufferedReader(raw)
        stack.callback(buffered.detach)
        unzipped: Any = buffered
        if buffered.peek(2)[:2] == _GZIP_MAGIC:
            unzipped = stack.enter_context(gzip.GzipFile(fileobj=buffered, mode="rb"))
        text = io.TextIOWrapper(unzipped, encoding="utf-8-sig", newline="\n")
        stack.callback(text.detach)
        yield text
