"""Labelled variants and intervals, column by column."""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lrgenome.errors import InputError, UsageError

csv.field_size_limit(1 << 24)

_LONGEST_WORD = 10_000
_LARGEST = 1 << 53
"""Numbers beyond have no last digits as floats."""
_NUMBERED = re.compile(r"^\s*\[\d+\]")


@dataclass(frozen=True)
class Examples:
    """Rows of a supervised task; all arrays have one entry a row."""

    kind: str
    """One of `config.head.KINDS`."""
    outputs: tuple[str, ...]
    """Names of the label columns."""
    contig: npt.NDArray[np.str_]
    """As the table names it."""
    start: npt.NDArray[np.int64]
    """0-based, bp: of the variant's first base, or of the interval."""
    end: npt.NDArray[np.int64]
    """One past the last base of REF (of the one base where there is no REF), or of the interval."""
    labels: npt.NDArray[np.float32]
    """(n, m), or (n, bins, m); NaN where there is none."""
    split: npt.NDArray[np.str_]
    """``train``, ``validation``, ``test``, or empty where the table does not say."""
    line: npt.NDArray[np.int64]
    """1-based line in the table, for messages."""
    ref: npt.NDArray[np.str_] | None = None
    """REF of variants, where the table has it."""
    alt: npt.NDArray[np.str_] | None = None
    """ALT; None for intervals."""
    reverse: npt.NDArray[np.bool_] | None = None
    """Whether the row is of the reverse strand; None where all are of the forward strand."""
    tissue: npt.NDArray[np.int64] | None = None
    """Number of the row's tissue among `tissues`."""
    tissues: tuple[str, ...] = ()
    distance: npt.NDArray[np.float64] | None = None
    """Distance to the nearest transcription start, bp; NaN where it is not known."""
    group: npt.NDArray[np.str_] | None = None
    """What metrics are also taken within, such as genes."""
    summit: bool = False
    """Windows are centred on `start`, as those of variants and of transcription starts are, not on the interval."""

    def __len__(self) -> int:
        return len(self.start)

    @property
    def variants(self) -> bool:
        """Whether the rows are variants."""
        return self.alt is not None

    def take(self, rows: npt.NDArray[Any]) -> Examples:
        """Return some rows, by number or by a mask."""
        columns = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                columns[field.name] = value[rows]
        return replace(self, **columns)

    def name_of(self, row: int) -> str:
        """Name a row for messages: line and 1-based place."""
        what = f" {self.alt[row]}" if self.alt is not None else ""
        return f"line {self.line[row]} ({self.contig[row]}:{self.start[row] + 1}{what})"


def read_rows(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Read a table with a header line: CSV, or TSV where that line has tabs, plain or gzipped; or Parquet.

    Lines before the header that begin with ``##`` are skipped, and a ``#`` before its first name is dropped.

    Yields
    ------
    (line number from 1, {column: cell})

    Raises
    ------
    InputError
        If it cannot be read, or a line has not as many cells as the header.
    """
    path = Path(path)
    try:
        if path.suffix == ".parquet":
            yield from _read_parquet(path)
            return
        with open(path, "rb") as raw:
            gzipped = raw.read(2) == b"\x1f\x8b"
        opened = gzip.open(path, "rb") if gzipped else open(path, "rb")
        with opened, io.TextIOWrapper(opened, encoding="utf-8", newline="") as text:
            skipped, head = 0, text.readline()
            while head.startswith("##"):
                skipped, head = skipped + 1, text.readline()
            if not head.strip():
                raise InputError(f"{path}: got an empty table, expected a header line")
            delimiter = "\t" if "\t" in head else ","
            header = next(csv.reader([head.removeprefix("#")], delimiter=delimiter))
            if head.startswith("#"):
                # As bcftools query -H numbers them, with a blank before the first in some versions.
                header = [_NUMBERED.sub("", name).strip() for name in header]
            if doubled := [name for name, count in Counter(header).items() if count > 1 and name]:
                raise InputError(f"{path}: column {doubled[0]!r} is there more than once")
            reader = csv.reader(text, delimiter=delimiter)
            found = False
            for cells in reader:
                number = skipped + 1 + reader.line_num
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise InputError(f"{path} line {number}: got {len(cells)} cells, expected {len(header)}")
                found = True
                yield number, dict(zip(header, cells, strict=True))
            if not found:
                raise InputError(f"{path}: got no rows below the header")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table ({error})") from error


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise UsageError(f"{path}: Parquet needs pyarrow ({error}); pip install 'lrgenome[parquet]'") from error
    try:
        number = 1
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, {name: "" if value is None else str(value) for name, value in row.items()}
    except ArrowException as error:
        raise InputError(f"{path}: cannot be read as Parquet ({error})") from error


def number_of(path: Path, line: int, row: dict[str, str], name: str) -> float:
    """Read a cell as a number; an empty one, ``.`` and ``NA`` are NaN.

    Raises
    ------
    InputError
        Naming the line and the column.
    """
    cell = row[name].strip()
    if cell in ("", ".", "NA", "NaN", "nan"):
        return float("nan")
    try:
        return float(cell)
    except ValueError:
        raise InputError(f"{path} line {line}, column {name}: got {cell!r}, expected a number") from None


def whole_of(path: Path, line: int, row: dict[str, str], name: str, least: int) -> int:
    """Read a cell as a whole number of at least `least`; `InputError` names the line and the column."""
    value = number_of(path, line, row, name)
    if not value.is_integer() or not least <= value <= _LARGEST:
        raise InputError(f"{path} line {line}, column {name}: got {row[name]!r}, expected a whole number >= {least}")
    return int(value)


def need_columns(path: Path, row: dict[str, str], names: Sequence[str]) -> None:
    """Raise `InputError` unless the table has these columns."""
    if missing := [name for name in names if name not in row]:
        raise InputError(f"{path}: no column {missing[0]!r}, expected {', '.join(names)}; it has {', '.join(row)}")


class Columns:
    """Collects the cells of rows of a table."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.values: dict[str, list[Any]] = {}

    def add(self, **cells: Any) -> None:
        """Add a row."""
        for name, cell in cells.items():
            self.values.setdefault(name, []).append(cell)

    def array(self, name: str, dtype: Any) -> npt.NDArray[Any]:
        """Return a column; empty where no row had it."""
        cells = self.values.get(name, [])
        if dtype is np.str_:
            # Each row of such an array takes as much memory as the longest.
            for line, cell in zip(self.values.get("line", []), cells, strict=False):
                if len(cell) > _LONGEST_WORD:
                    raise InputError(
                        f"{self._path} line {line}: got {len(cell):,} characters of {name}, "
                        f"expected at most {_LONGEST_WORD:,}"
                    )
        return np.array(cells, dtype=dtype)

    def numbered(self, name: str) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
        """Return a column of words as numbers, and the words in alphabetical order."""
        words, numbers = np.unique(self.array(name, np.str_), return_inverse=True)
        return numbers.astype(np.int64), tuple(map(str, words))
