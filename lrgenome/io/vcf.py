"""VCF and BCF, read as text: file -> lines -> `VcfRecord` with its raw line.

A record carries its line as it was, so that a writer can add INFO entries to it (`with_info`) and lose
nothing else. Bytes that are not UTF-8 travel as surrogate escapes (`to_bytes`). Only damage is an error.
"""

import gzip
import io
import itertools
import os
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import pysam

from lrgenome.errors import LrgenomeError, VcfError
from lrgenome.io.atomic import os_error_as_output_error
from lrgenome.io.bgzf import EOF_BLOCK
from lrgenome.io.streams import standard_input

COLUMNS = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
"""The columns that every VCF has."""

_BCF_LAST = (1 << 31) - 1
_BOM = b"\xef\xbb\xbf"
_KNOWN_STARTS = (
    (b">", "FASTA"),
    (b"@", "FASTQ or SAM"),
    (b"BAM\1", "BAM"),
    (b"CRAM", "CRAM"),
    (b"BZh", "bzip2 (decompress it first)"),
    (b"\xfd7zXZ", "xz (decompress it first)"),
    (b"\x28\xb5\x2f\xfd", "zstd (decompress it first)"),
    (b"\xff\xfe", "UTF-16 text (convert it to UTF-8)"),
)
_PAIR = re.compile(r'([^=,<]+)=("(?:[^"\\]|\\.)*"|[^,]*)')


class VcfRecord(NamedTuple):
    """One record, with its line as it was.

    Attributes
    ----------
    chrom, id, ref
        Columns as they are in the text.
    pos
        0-based position, in bp, of the first base of `ref`; -1 for the telomere (POS 0).
    alts
        ALT alleles as they are in the text; empty when the column is ``.``.
    line
        The raw line without its line end.
    number
        0-based index among the records of the file.
    line_number
        1-based line in the (decompressed) text, for messages.
    """

    chrom: str
    pos: int
    id: str
    ref: str
    alts: tuple[str, ...]
    line: str
    number: int
    line_number: int

    @property
    def info(self) -> str:
        """The INFO column as it is in the text."""
        return self.line.split("\t", 8)[7]


class RecordSource(Protocol):
    """What records are read from: a file (`VariantSource`), or something that makes them.

    Attributes
    ----------
    name
        What messages call the input.
    meta, columns
        Header lines that start with ``##``; the ``#CHROM`` line.
    """

    name: str
    meta: list[str]
    columns: str

    def records(self, skip: int = 0) -> Iterator[VcfRecord]:
        """Yield the records after the first `skip`, from the first one anew at each call."""


class VariantSource:
    """An open VCF or BCF whose records can be iterated any number of times; a context manager.

    Attributes
    ----------
    name
        What messages call the input.
    meta, columns
        Header lines that start with ``##``; the ``#CHROM`` line.
    contigs
        Contigs of the header and their lengths in bp, None where not given.
    reference
        The path or address in ``##reference``, without ``file://``; None where not given.
    is_bcf
        Whether the input is BCF.
    """

    def __init__(self, path: Path, name: str, spool: Any = None, tmpdir: str | None = None) -> None:
        self.name = name
        self._path, self._spool, self._tmpdir = path, spool, tmpdir
        self._header_lines = 0
        try:
            self._gzipped, self.is_bcf = self._sniff()
            (self._read_bcf_header if self.is_bcf else self._read_text_header)()
        except BaseException:
            self.close()
            raise
        self.contigs = _contigs(self.meta)
        self.reference = _reference(self.meta)

    def __enter__(self) -> "VariantSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete the temporary copy where there is one."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    def records(self, skip: int = 0) -> Iterator[VcfRecord]:
        """Yield the records in the order of the file, from the first one anew at each call.

        Parameters
        ----------
        skip
            Number of records to leave out at the start; the others keep their numbers.

        Raises
        ------
        VcfError
            At the first damaged record, naming file and line.
        """
        self._refuse_changes()
        lines = self._bcf_lines() if self.is_bcf else self._text_lines()
        number = 0
        for line_number, raw in lines:
            if not raw.strip():
                continue
            if number >= skip:
                yield self._parse(raw, number, line_number)
            number += 1
        self._refuse_changes()

    def _refuse_changes(self) -> None:
        """Raise if the file is no longer the one that was opened: it is read several times."""
        if self._spool is not None:
            return
        with _reading(self.name):
            now = os.stat(self._path)
        if (now.st_ino, now.st_size, now.st_mtime_ns) != (
            self._found.st_ino, self._found.st_size, self._found.st_mtime_ns,
        ):  # fmt: skip
            raise VcfError(f"{self.name}: was changed while it was read; run again once nothing writes it")

    def _sniff(self) -> tuple[bool, bool]:
        with _reading(self.name), open(self._path, "rb") as handle:
            self._found = os.fstat(handle.fileno())
            head = handle.read(18)
            gzipped = head.startswith(b"\x1f\x8b")
            bgzf = gzipped and len(head) >= 14 and bool(head[3] & 4) and head[12:14] == b"BC"
            if bgzf:
                handle.seek(-min(len(EOF_BLOCK), os.fstat(handle.fileno()).st_size), os.SEEK_END)
                if handle.read() != EOF_BLOCK:
                    raise VcfError(f"{self.name}: got BGZF without its end marker: the file is truncated")
        with _reading(self.name), _open_bytes(self._path, gzipped) as text:
            start = text.read(65536)
        if start.startswith(b"BCF\2"):
            if gzipped and not bgzf:
                self._decompress()
            return gzipped, True
        if not start.removeprefix(_BOM).startswith(b"#"):
            raise VcfError(f"{self.name}: got {_describe(start)}, expected VCF or BCF")
        return gzipped, False

    def _decompress(self) -> None:
        """Make a temporary copy of a BCF in gzip that is not BGZF, which htslib cannot read."""
        with _open_bytes(self._path, gzipped=True) as stream:
            copy = _spool(stream, self._tmpdir, self.name)
        self.close()
        self._spool, self._path = copy, Path(copy.name)

    def _read_text_header(self) -> None:
        self.meta: list[str] = []
        for line_number, raw in self._text_lines():
            line = _text(raw)
            if line.startswith("##"):
                self.meta.append(line)
            elif line.startswith("#CHROM"):
                if line.split("\t")[:8] != COLUMNS.split("\t"):
                    raise self._error(line_number, _shown(line), f"the columns {COLUMNS!r}")
                # Cut among the sample names, it would pass for a file without records.
                if not raw.endswith(b"\n") and line != COLUMNS:
                    raise self._error(line_number, "a header line that ends with the file", "records")
                self.columns, self._header_lines = line, line_number
                return
            elif line.strip():
                raise self._error(line_number, _describe(raw), "a #CHROM header line before the records")
        raise VcfError(f"{self.name}: got a header that ends with the file, expected a #CHROM line")

    def _read_bcf_header(self) -> None:
        with _reading(self.name), _open_bcf(self._path) as bcf:
            lines = str(bcf.header).rstrip("\n").split("\n")
        self.meta, self.columns, self._header_lines = lines[:-1], lines[-1], len(lines)

    def _text_lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield 1-based line numbers and lines; after the header has been read, those of the records."""
        number = skip = self._header_lines
        try:
            with _reading(self.name), _open_bytes(self._path, self._gzipped) as handle:
                for number, raw in enumerate(itertools.islice(handle, skip, None), skip + 1):
                    yield number, raw.removeprefix(_BOM) if number == 1 else raw
        except VcfError as error:
            raise VcfError(f"{error} (after line {number})") from error

    def _bcf_lines(self) -> Iterator[tuple[int, bytes]]:
        with _reading(self.name), _open_bcf(self._path) as bcf:
            for line_number, record in enumerate(bcf, self._header_lines + 1):
                yield line_number, to_bytes(str(record))

    def _parse(self, raw: bytes, number: int, line_number: int) -> VcfRecord:
        line = _text(raw)
        fields = line.split("\t", 8)
        count, expected = line.count("\t") + 1, self.columns.count("\t") + 1
        if not raw.endswith(b"\n") and count < expected:
            raise self._error(line_number, f"{count} columns and no line end", f"{expected} (truncated?)")
        if len(fields) < 8:
            raise self._error(line_number, f"{count} columns", "at least 8, separated by tabs")
        chrom, pos, ident, ref, alt = fields[:5]
        if "\0" in line:
            raise self._error(line_number, "a NUL byte", "text")
        if not chrom or chrom.startswith("#"):
            raise self._error(line_number, f"CHROM {_shown(chrom)}", "the name of a contig")
        if not (pos.isascii() and pos.isdigit() and len(pos) < 19):
            raise self._error(line_number, f"POS {_shown(pos)}", "a whole number")
        if self.is_bcf and int(pos) > _BCF_LAST:
            # A number below zero comes as one that BCF cannot hold.
            raise self._error(line_number, f"POS {pos}", f"at most {_BCF_LAST}, as BCF has 32 bits")
        if not ref or any(c.isspace() for c in ref):
            raise self._error(line_number, f"REF {_shown(ref)}", "bases without spaces")
        alts = () if alt in (".", "") else tuple(alt.split(","))
        return VcfRecord(chrom, int(pos) - 1, ident, ref, alts, line, number, line_number)

    def _error(self, line_number: int, got: str, expected: str) -> VcfError:
        return VcfError(f"{self.name}, line {line_number}: got {got}, expected {expected}")


def open_variants(path: str | Path, tmpdir: str | Path | None = None) -> VariantSource:
    """Open VCF (plain, gzip or BGZF) or BCF, told apart by content.

    Parameters
    ----------
    path
        A file; ``-`` is standard input, which, like a pipe, is copied to a temporary file first.
    tmpdir
        Where temporary copies go; the system's default if None.

    Raises
    ------
    VcfError
        If the file is not there, is not VCF or BCF, is truncated, or has no ``#CHROM`` line.
    OutputError
        If the temporary copy cannot be written.
    """
    name, folder = os.fspath(path), None if tmpdir is None else os.fspath(tmpdir)
    if name == "-":
        copy = _spool(standard_input("VCF or BCF"), folder, "standard input")
        return VariantSource(Path(copy.name), "standard input", copy, folder)
    if os.path.isdir(name) or not os.path.exists(name):
        what = "a directory" if os.path.isdir(name) else "no such file"
        raise VcfError(f"{name}: got {what}, expected a VCF or BCF file")
    if os.path.isfile(name):
        return VariantSource(Path(name), name, tmpdir=folder)
    with _reading(name), open(name, "rb") as pipe:
        copy = _spool(pipe, folder, name)
    return VariantSource(Path(copy.name), name, copy, folder)


def to_bytes(text: str) -> bytes:
    """Encode text of a record or header as the bytes that it was read from."""
    return text.encode("utf-8", "surrogateescape")


def with_info(line: str, entries: Mapping[str, str]) -> str:
    """Add INFO entries to a raw record line.

    Entries of the same names are replaced, wherever they stand, and ``.`` gives way; all else is kept.
    """
    fields = line.split("\t", 8)
    info = fields[7]
    if any(name in info for name in entries):
        info = ";".join(e for e in info.split(";") if e.split("=", 1)[0] not in entries)
    added = ";".join(f"{name}={value}" for name, value in entries.items())
    separator = "" if info.endswith(";") else ";"
    fields[7] = added if info in (".", "") else f"{info}{separator}{added}"
    return "\t".join(fields)


def missing_declarations(meta: Iterable[str], records: Iterable[VcfRecord]) -> list[str]:
    """Give header lines for the contigs, filters, INFO and FORMAT names that records use and `meta` lacks.

    BCF stores names as indices into its header, so that it cannot hold a name that is not declared there.
    """
    known = {kind: set(_declared(meta, kind)) for kind in ("contig", "FILTER", "INFO", "FORMAT")}
    known["FILTER"].add("PASS")
    missing: dict[str, None] = {}

    def need(kind: str, name: str, rest: str) -> None:
        if name and name != "." and name not in known[kind]:
            known[kind].add(name)
            missing[f"##{kind}=<ID={name}{rest}>"] = None

    undeclared = 'Description="Not declared in the input"'
    for record in records:
        fields = record.line.split("\t", 9)
        need("contig", record.chrom, "")
        for name in fields[6].split(";"):
            need("FILTER", name, f",{undeclared}")
        for entry in fields[7].split(";"):
            name, has_value, _ = entry.partition("=")
            kind = "Number=.,Type=String" if has_value else "Number=0,Type=Flag"
            need("INFO", name, f",{kind},{undeclared}")
        for name in fields[8].split(":") if len(fields) > 8 else ():
            need("FORMAT", name, f",Number={1 if name == 'GT' else '.'},Type=String,{undeclared}")
    return list(missing)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn what a damaged or unreadable file raises into VcfError."""
    try:
        yield
    except LrgenomeError:
        raise
    except EOFError as error:
        raise VcfError(f"{name}: got compressed data that ends too early: the file is truncated") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise VcfError(f"{name}: the compressed data is damaged: {error}") from error
    except (OSError, ValueError) as error:
        raise VcfError(f"{name}: cannot be read: {error}") from error


def _open_bytes(path: Path, gzipped: bool) -> io.BufferedReader:
    # GzipFile's own readline is Python code; a BufferedReader over it reads lines in C.
    return io.BufferedReader(gzip.GzipFile(path), 1 << 18) if gzipped else open(path, "rb")


@contextmanager
def _open_bcf(path: Path) -> Iterator[Any]:
    # htslib reports each index that it does not find as an error on stderr; none is needed here.
    verbosity = pysam.set_verbosity(0)
    try:
        bcf = pysam.VariantFile(os.path.abspath(path), "rb")
    finally:
        pysam.set_verbosity(verbosity)
    with bcf:
        yield bcf


def _spool(stream: IO[bytes], tmpdir: str | None, name: str) -> Any:
    """Copy a stream to a temporary file that is deleted when closed."""
    with os_error_as_output_error(Path(tmpdir or tempfile.gettempdir())):
        copy = tempfile.NamedTemporaryFile(dir=tmpdir, prefix="lrgenome-", suffix=".spool")
    try:
        with os_error_as_output_error(Path(copy.name)):
            while block := _read_block(stream, name):
                copy.write(block)
            copy.flush()
    except BaseException:
        copy.close()
        raise
    return copy


def _read_block(stream: IO[bytes], name: str) -> bytes:
    with _reading(name):
        return stream.read(1 << 18)


def _text(raw: bytes) -> str:
    return raw.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", "surrogateescape")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _describe(start: bytes) -> str:
    if not start:
        return "an empty file"
    for magic, what in _KNOWN_STARTS:
        if start.startswith(magic):
            return what
    if b"\0" in start:
        return "binary data"
    line = start.split(b"\n", 1)[0]
    if re.match(rb"\S+\t\d+\t\d+(\s|$)", line):
        return "what looks like BED"
    return f"a line {_shown(line.decode('utf-8', 'replace'))}"


def _declared(meta: Iterable[str], kind: str) -> dict[str, dict[str, str]]:
    """Give the attributes of each ``##kind=<ID=...>`` line, by ID."""
    prefix = f"##{kind}=<"
    declared = {}
    for line in meta:
        if line.startswith(prefix):
            pairs = dict(_PAIR.findall(line[len(prefix) :].rstrip().removesuffix(">")))
            if "ID" in pairs:
                declared[pairs["ID"].strip('"')] = pairs
    return declared


def _contigs(meta: Iterable[str]) -> dict[str, int | None]:
    lengths = {name: pairs.get("length", "").strip('"') for name, pairs in _declared(meta, "contig").items()}
    return {name: int(text) if text.isdecimal() else None for name, text in lengths.items()}


def _reference(meta: Iterable[str]) -> str | None:
    for line in meta:
        if line.startswith("##reference="):
            return line.removeprefix("##reference=").strip().strip('"').removeprefix("file://") or None
    return None
