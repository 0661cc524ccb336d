"""Reference genomes: random access to FASTA, contig names that differ between files, and region strings."""

import contextlib
import hashlib
import os
import re
import shutil
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from operator import index
from pathlib import Path
from types import TracebackType

import numpy as np
import pyfaidx
import pysam

from lrgenome.dna import ENCODE, INVALID, IdArray
from lrgenome.errors import FastaError, InputError, UsageError
from lrgenome.glossary import printable
from lrgenome.io.fai import is_bgzf, open_index

_BLOCK = 1 << 20
_BLOCKS_KEPT = 8
_TABLE = ENCODE.tobytes()
_INVALID = bytes([INVALID])
_POSITION = r"[0-9][0-9,]*"
_RANGE = re.compile(rf"({_POSITION})(?:-({_POSITION})?)?", re.ASCII)
# htslib has one verbosity for the process, whichever of its threads are reading.
_quiet_lock = threading.Lock()
_quiet_depth = 0
_verbosity = 3

_MITOCHONDRION = ("MT", "M", "chrM", "chrMT")


class Fasta:
    """A FASTA file, plain or BGZF, read as token ids at random positions.

    Lower case (soft-masked) letters are bases, IUPAC codes other than ``ACGTU`` are N. The last few Mbp that
    were read are kept encoded, so windows that come in genomic order cost a copy each. An index that is
    missing, stale or wrong is built beside the file, or in a temporary folder if that is read-only. It may be
    read from several threads, and from processes forked from this one.

    Parameters
    ----------
    path
        FASTA, plain or BGZF, told apart by content.
    index_dir
        Folder for a new index instead of the FASTA's own; made if it is not there.

    Attributes
    ----------
    path : Path
        The file, as given.
    contigs : dict of str to int
        Contig name to length in bp, in file order. Contigs without sequence are left out.

    Raises
    ------
    FastaError
        If the file is missing, plain gzip, cut short, otherwise damaged or no FASTA.
    OutputError
        If an index is needed and can be written nowhere.
    """

    def __init__(self, path: str | os.PathLike[str], index_dir: str | os.PathLike[str] | None = None):
        self.path = Path(path)
        self.contigs: dict[str, int] = {}
        self._close_source: Callable[[], None] = lambda: None
        self._closed = False
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[str, int], IdArray] = OrderedDict()
        self._bgzf = is_bgzf(self.path)
        self._found = os.stat(self.path)
        self._index = open_index(self.path, self._bgzf, Path(index_dir) if index_dir is not None else None)
        self._remove_scratch = weakref.finalize(self, _remove, self._index.scratch, os.getpid())
        self.contigs.update((entry.name, entry.length) for entry in self._index.entries)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Fasta":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Fasta({str(self.path)!r}, {len(self.contigs)} contigs, {sum(self.contigs.values()):,} bp)"

    def close(self) -> None:
        """Close the file and remove the temporary index, if there is one; more than once does no harm."""
        self._closed = True
        self._cache.clear()
        self._close_source()
        self._remove_scratch()

    def fetch(self, contig: str, start: int, end: int) -> IdArray:
        """Read an interval.

        Parameters
        ----------
        contig
            A name in `contigs`.
        start, end
            0-based half-open, in bp.

        Returns
        -------
        (t,) uint8
            Token ids, t = end - start; a copy that the caller may change.

        Raises
        ------
        FastaError
            If the interval is not wholly inside a contig of this file (nothing is ever clipped), or if the
            file holds something else than nucleotide codes there; positions in messages are 1-based.
        """
        start, end = index(start), index(end)
        length = self.contigs.get(contig)
        if length is None:
            known = ", ".join(list(self.contigs)[:5]) + (", ..." if len(self.contigs) > 5 else "")
            raise FastaError(f"{self.path}: there is no contig {contig!r}, only {known}")
        if not 0 <= start <= end <= length:
            raise FastaError(
                f"{self.path}: got the interval [{start}, {end}) of contig {contig!r}, "
                f"expected it inside [0, {length})"
            )
        if self._closed:
            raise ValueError(f"{self.path} is closed")
        first, last = start // _BLOCK, max(end - 1, start) // _BLOCK
        if start == end:
            return np.empty(0, dtype=np.uint8)
        if first == last:
            return self._block(contig, first)[start - first * _BLOCK : end - first * _BLOCK].copy()
        ids = np.empty(end - start, dtype=np.uint8)
        for number in range(first, last + 1):
            low, high = max(start, number * _BLOCK), min(end, (number + 1) * _BLOCK)
            block = self._block(contig, number)
            ids[low - start : high - start] = block[low - number * _BLOCK : high - number * _BLOCK]
        return ids

    def fingerprint(self) -> str:
        """Identify the genome cheaply: file name, file size in bytes, and a hash of contig names and lengths.

        It holds no folder, so it stays the same when the file moves. It does not read the sequence: a file
        edited in place without changing any length keeps its fingerprint.

        Raises
        ------
        FastaError
            If the file is gone.
        """
        try:
            size = self.path.stat().st_size
        except OSError as error:
            raise FastaError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        return f"{printable(self.path.name)}:{size}:{digest_of(self.contigs)}"

    def _block(self, contig: str, number: int) -> IdArray:
        with self._lock:
            key = (contig, number)
            block = self._cache.get(key)
            if block is None:
                start = number * _BLOCK
                block = self._read(contig, start, min(start + _BLOCK, self.contigs[contig]))
                self._cache[key] = block
                if len(self._cache) > _BLOCKS_KEPT:
                    self._cache.popitem(last=False)
            else:
                self._cache.move_to_end(key)
            return block

    def _read(self, contig: str, start: int, end: int) -> IdArray:
        # A file position shared with a parent process would be moved by it between seek and read.
        if os.getpid() != self._pid:
            self._open()
        where = f"{self.path}, contig {contig!r}, {start + 1:,}-{end:,}"
        self._refuse_changes()
        try:
            with _quiet_htslib():
                text: str = self._source(contig, start, end)
        except UnicodeDecodeError as error:
            raise FastaError(f"{where}: got bytes that are not text ({error.reason})") from error
        except (OSError, ValueError) as error:
            raise FastaError(
                f"{where}: the file is damaged or changed while it was read ({error})"
            ) from error
        ids = text.encode("utf-8").translate(_TABLE)
        bad = ids.find(_INVALID)
        if bad >= 0:
            raise FastaError(
                f"{self.path}, contig {contig!r}, position {start + bad + 1}: got {text[bad]!r}, "
                "expected a nucleotide code (ACGTUN or IUPAC)"
            )
        if len(ids) != end - start:
            raise FastaError(
                f"{where}: got {len(ids):,} bp, expected {end - start:,}; there are blanks in the "
                "sequence or line ends of two kinds, or the file was cut after it was opened"
            )
        return np.frombuffer(ids, dtype=np.uint8)

    def _refuse_changes(self) -> None:
        """Raise if the file was written to since it was opened: what was read before may not fit what comes now.

        One that was replaced or removed is still there for who has it open.
        """
        with contextlib.suppress(FileNotFoundError):
            now = os.stat(self.path)
            same = os.path.samestat(now, self._found)
            if same and (now.st_size, now.st_mtime_ns) != (self._found.st_size, self._found.st_mtime_ns):
                raise FastaError(f"{self.path}: was changed while it was read; run again once nothing writes it")

    def _open(self) -> None:
        self._pid = os.getpid()
        try:
            with _quiet_htslib():
                self._open_bgzf() if self._bgzf else self._open_plain()
        except (OSError, ValueError, ImportError, pyfaidx.FastaIndexingError) as error:
            raise FastaError(
                f"{self.path}: cannot be opened with the index {self._index.fai}: {error}"
            ) from error

    def _open_plain(self) -> None:
        reader = pyfaidx.Faidx(
            str(self.path), indexname=str(self._index.fai), as_raw=True, rebuild=False, build_index=False
        )
        self._source = lambda contig, start, end: reader.fetch(contig, start + 1, end)
        self._close_source = reader.close

    def _open_bgzf(self) -> None:
        reader = pysam.FastaFile(
            str(self.path),
            filepath_index=str(self._index.fai),
            filepath_index_compressed=str(self._index.gzi),
        )
        self._source = reader.fetch
        self._close_source = reader.close


def digest_of(contigs: Mapping[str, int]) -> str:
    """Return the hash of contig names and lengths that fingerprints end with."""
    names = "".join(f"{name}\t{length}\n" for name, length in contigs.items())
    return hashlib.sha256(names.encode()).hexdigest()[:16]


def _remove(folder: Path | None, owner: int) -> None:
    # A forked child that ends must not take its parent's index away.
    if folder is not None and os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _quiet_htslib() -> Iterator[None]:
    """Keep htslib's own messages off stderr; ours say more."""
    global _quiet_depth, _verbosity
    with _quiet_lock:
        if not _quiet_depth:
            _verbosity = pysam.set_verbosity(0)
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if not _quiet_depth:
                pysam.set_verbosity(_verbosity)


def resolve_contig(
    name: str, contigs: Mapping[str, int], alias: str | Mapping[str, str] = "auto"
) -> str | None:
    """Find the contig that another file calls `name`.

    Parameters
    ----------
    name
        The name in a VCF or BED file.
    contigs
        The contigs that are there, as in `Fasta.contigs`.
    alias
        ``none``: only the same name. ``auto``: else the name with or without ``chr``, else the other names of
        the mitochondrion (MT, M, chrM, chrMT). A table from `read_alias_table`: else what it says.

    Returns
    -------
    str or None
        A name in `contigs`, None if there is none.

    Raises
    ------
    UsageError
        If `alias` is neither ``auto`` nor ``none`` nor a table.
    """
    if isinstance(alias, str) and alias not in ("auto", "none"):
        raise UsageError(f"got --chrom-alias {alias!r}, expected auto, none or a table that has been read")
    if name in contigs:
        return name
    if not isinstance(alias, str):
        other = alias.get(name)
        return other if other in contigs else None
    if alias == "none":
        return None
    candidates = [name[3:] if name.startswith("chr") else f"chr{name}"]
    if name in _MITOCHONDRION:
        candidates.extend(_MITOCHONDRION)
    return next((candidate for candidate in candidates if candidate in contigs), None)


def read_alias_table(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read contig aliases: two tab-separated columns, alias and name; ``#`` begins a comment line.

    Raises
    ------
    InputError
        If the file cannot be read, a line has fewer or more than two columns, or an alias has two names; with
        the 1-based line number.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    table: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) != 2 or not all(fields):
            raise InputError(
                f"{path}, line {number}: got {line!r}, expected two tab-separated columns, alias and name"
            )
        if table.setdefault(fields[0], fields[1]) != fields[1]:
            raise InputError(
                f"{path}, line {number}: {fields[0]!r} is an alias of {table[fields[0]]!r} already"
            )
    return table


def parse_region(text: str, contigs: Mapping[str, int]) -> tuple[str, int, int]:
    """Read a region: ``20``, ``20:1,000-2,000`` or ``20:1,000`` (from there to the end), 1-based inclusive.

    A text that is the name of a contig is that contig, even if it has ``:`` and ``-`` in it; otherwise the
    last colon divides name and range.

    Parameters
    ----------
    text
        The region.
    contigs
        Contig name to length in bp.

    Returns
    -------
    contig, start, end
        0-based half-open, in bp, never empty and inside the contig.

    Raises
    ------
    UsageError
        If the text is not a region or is not wholly inside a contig.
    """
    text = text.strip()
    contig, colon, bounds = text, "", ""
    if text not in contigs:
        contig, colon, bounds = text.rpartition(":")
    if contig not in contigs:
        raise UsageError(
            f"got the region {text!r}, expected CONTIG or CONTIG:START-END; "
            f"there is no contig {contig or text!r}"
        )
    length = contigs[contig]
    start, end = 0, length
    if colon:
        match = _RANGE.fullmatch(bounds)
        if not match:
            raise UsageError(
                f"got the region {text!r}, expected START-END after the last colon, such as 1,000-2,000"
            )
        start = int(match.group(1).replace(",", "")) - 1
        end = int(match.group(2).replace(",", "")) if match.group(2) else length
    if not 0 <= start < end <= length:
        raise UsageError(
            f"got the region {text!r}, expected 1 <= START <= END <= {length:,}, the length of {contig!r}"
        )
    return contig, start, end


def format_region(contig: str, start: int, end: int) -> str:
    """Write a 0-based half-open interval as `parse_region` reads it: 1-based inclusive, without commas."""
    return f"{contig}:{start + 1}-{end}"
