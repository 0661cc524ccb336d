"""FASTA indices: read, checked against the file, and built where they are missing, stale or wrong.

``NAME.fai`` holds one line a contig (name, length in bp, offset of the first base in uncompressed bytes,
bases a line, bytes a line); ``NAME.gzi`` holds the blocks of a BGZF file. Contigs without any sequence are
left out, as ``samtools faidx`` does.
"""

import bisect
import contextlib
import gzip
import io
import logging
import os
import re
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from lrgenome.errors import FastaError
from lrgenome.io import bgzf
from lrgenome.io.atomic import os_error_as_output_error, write_at_once

logger = logging.getLogger(__name__)

_BGZF_HINT = "recompress it with `bgzip` (gunzip FILE.gz; bgzip FILE)"
_OTHER_COMPRESSION = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
_NOT_FASTA = {b"#": " (a VCF or a table?)", b"@": " (FASTQ or SAM?)", b"\xef": " (a byte order mark?)"}
# Headers of one contig, and of empty contigs before it; longer ones are taken for an index that misses a
# contig.
_MAX_GAP = 65_536
_HEADERS = re.compile(rb"(?:\s*\n)?(?:>[^\n]*\n(?:\s*\n)?)*")
_LINE = re.compile(r"([^\t]+)\t([0-9]+)\t([0-9]+)\t([0-9]+)\t([0-9]+)")


class FaiEntry(NamedTuple):
    """One contig: length in bp, byte offset of its first base, bases and bytes a line."""

    name: str
    length: int
    offset: int
    bases: int
    width: int

    @property
    def end(self) -> int:
        """Byte offset just past the last base."""
        full, rest = divmod(self.length - 1, max(self.bases, 1))
        return self.offset + full * self.width + rest + 1


class FastaIndex(NamedTuple):
    """The index in use: entries in file order, files, and the temporary folder of those (or None)."""

    entries: list[FaiEntry]
    fai: Path
    gzi: Path | None
    scratch: Path | None


class _Unusable(Exception):
    """An index that does not describe its FASTA."""


def is_bgzf(path: Path) -> bool:
    """Tell BGZF from plain FASTA by content, and refuse what is neither.

    Raises
    ------
    FastaError
        If the file is not there, empty, plain gzip, otherwise compressed, cut short (BGZF) or no FASTA.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise FastaError(f"{path}: expected a regular file; FASTA is read at random positions")
        with open(path, "rb") as handle:
            head = handle.read(4096)
            if not head:
                raise FastaError(f"{path}: the file is empty, expected FASTA")
            for magic, kind in _OTHER_COMPRESSION.items():
                if head.startswith(magic):
                    raise FastaError(f"{path}: got {kind} data, expected FASTA, plain or BGZF; {_BGZF_HINT}")
            if not head.startswith(b"\x1f\x8b"):
                _check_start(head, path)
                if path.suffix.lower() in (".gz", ".bgz", ".bz2", ".zip"):
                    raise FastaError(f"{path}: got plain text under the name of a compressed file: rename it")
                return False
            if bgzf.block_size(head) is None:
                raise FastaError(
                    f"{path}: got plain gzip, which has no random access, expected BGZF; {_BGZF_HINT}"
                )
            size = handle.seek(0, os.SEEK_END)
            handle.seek(max(size - len(bgzf.EOF_BLOCK), 0))
            if handle.read() != bgzf.EOF_BLOCK:
                raise FastaError(
                    f"{path}: the file is cut short: its {size:,} bytes do not end in an end-of-file block"
                )
            return True
    except FileNotFoundError:
        raise FastaError(f"{path}: there is no such FASTA file") from None
    except OSError as error:
        raise FastaError(f"{path}: cannot be read: {error.strerror or error}") from error


def gzip_kind(path: Path) -> str:
    """Tell by its first bytes whether a file is "bgzf", plain "gzip" or neither ("")."""
    with open(path, "rb") as handle:
        head = handle.read(4096)
    if not head.startswith(b"\x1f\x8b"):
        return ""
    return "gzip" if bgzf.block_size(head) is None else "bgzf"


def open_index(fasta: Path, packed: bool, index_dir: Path | None = None) -> FastaIndex:
    """Find an index that fits the FASTA, or build one.

    An index beside the FASTA or in `index_dir` is used if it is not older than the FASTA and agrees with its
    content. Otherwise one is built in `index_dir` if that is given, else beside the FASTA, else (if that
    folder is read-only) in a new temporary folder, which the caller removes.

    Raises
    ------
    FastaError
        If the FASTA is damaged, or shorter than an index of it says.
    OutputError
        If a new index can be written nowhere.
    """
    earlier: list[tuple[Path, list[FaiEntry]]] = []
    for folder in dict.fromkeys((fasta.parent, index_dir or fasta.parent)):
        fai = folder / f"{fasta.name}.fai"
        gzi = folder / f"{fasta.name}.gzi" if packed else None
        try:
            if any(part.exists() and not part.is_file() for part in (fai, gzi) if part):
                raise _Unusable("it is no regular file")
            entries = _read_fai(fai)
            earlier.append((fai, entries))
            if any(part.stat().st_mtime_ns < fasta.stat().st_mtime_ns for part in (fai, gzi) if part):
                raise _Unusable("it is older than the FASTA")
            if gzi:
                _verify_bgzf(fasta, entries, bgzf.read_gzi(gzi))
            else:
                _verify_plain(fasta, entries)
            return FastaIndex(entries, fai, gzi, None)
        except FileNotFoundError:
            continue
        except (_Unusable, OSError, ValueError, EOFError, zlib.error) as error:
            logger.info("not using the index %s: %s", fai, error)
    entries = _scan(fasta, packed)
    for fai, old in earlier:
        _refuse_cut(fasta, entries, fai, old)
    blocks = _scan_blocks(fasta) if packed else None
    return _place(fasta, entries, blocks, index_dir)


def _check_start(head: bytes, path: Path) -> None:
    start = head.lstrip()[:1]
    if start != b">":
        got = f"{head.lstrip()[:20]!r}"[1:] if start else "only blanks"
        raise FastaError(
            f"{path}: got {got} at the start, expected '>'{_NOT_FASTA.get(start, '')}: not a FASTA file"
        )


def _read_fai(path: Path) -> list[FaiEntry]:
    entries = []
    for line in path.read_text(encoding="utf-8").removesuffix("\n").split("\n"):
        # As strictly as the libraries that read it after us.
        if (match := _LINE.fullmatch(line)) is None:
            raise _Unusable("it is damaged")
        name, *numbers = match.groups()
        entries.append(FaiEntry(name, *map(int, numbers)))
    entries = [entry for entry in entries if entry.length]
    if not entries or any(not 1 <= e.bases <= e.width for e in entries):
        raise _Unusable("it is empty or damaged")
    if len({entry.name for entry in entries}) < len(entries):
        raise _Unusable("it names a contig twice")
    return entries


def _gaps(entries: list[FaiEntry]) -> Iterator[tuple[int, int, FaiEntry]]:
    """Yield the byte range before each contig, i.e. from the last base of the one before to its own first."""
    end = 0
    for entry in entries:
        if not len(entry.name) < entry.offset - end <= _MAX_GAP:
            raise _Unusable(
                f"its contigs {entry.name!r} and the one before do not follow one another in the FASTA"
            )
        yield end, entry.offset, entry
        end = entry.end


def _verify_plain(fasta: Path, entries: list[FaiEntry]) -> None:
    with open(fasta, "rb", buffering=0) as handle:
        number = handle.fileno()
        _verify(entries, os.fstat(number).st_size, lambda start, size: os.pread(number, size, start))


def _verify_bgzf(fasta: Path, entries: list[FaiEntry], blocks: list[tuple[int, int]]) -> None:
    with open(fasta, "rb", buffering=0) as handle:

        def read(start: int, size: int) -> bytes:
            block, position = blocks[bisect.bisect_right(blocks, start, key=lambda pair: pair[1]) - 1]
            handle.seek(block)
            with gzip.GzipFile(fileobj=handle, mode="rb") as unzipped:
                unzipped.read(start - position)
                return unzipped.read(size)

        bgzf.check(handle, blocks)
        offset, position = blocks[-1]
        total = position + sum(length for _, length in bgzf.blocks(handle, offset))
        # Each look into a BGZF file unpacks a block, too much for a hundred thousand scaffolds.
        _verify(entries, total, read, step=1 + len(entries) // 256)


def _verify(entries: list[FaiEntry], total: int, read: Callable[[int, int], bytes], step: int = 1) -> None:
    """Check that headers, and nothing else, lie between the contigs, and their first lines; of every `step`-th."""
    for number, (start, stop, entry) in enumerate(_gaps(entries)):
        if number % step == 0 and stop <= total:
            # From the last base of the contig before, which a length that is too long would make a line end.
            before = min(start, 1)
            seen = read(start - before, before + stop - start + min(entry.width + 1, _MAX_GAP))
            headers, line = seen[before : before + stop - start], seen[before + stop - start :]
            fields = headers[headers.rfind(b">") + 1 :].split(None, 1)
            if not _HEADERS.fullmatch(headers) or fields[:1] != [entry.name.encode()]:
                raise _Unusable(f"the FASTA has no header of {entry.name!r} before byte {stop:,}")
            if seen[:before].isspace():
                raise _Unusable(f"the contig before {entry.name!r} is shorter than it says")
            _verify_line(entry, line, read)
    last = entries[-1].end
    rest = total - last
    if not 0 <= rest <= _MAX_GAP:
        raise _Unusable(f"its last contig ends at byte {last:,}, the FASTA at {total:,}")
    seen = read(last - 1, rest + 1)
    if seen[:1].isspace() or not _HEADERS.fullmatch(seen[1:] + b"\n"):
        raise _Unusable("the FASTA has more or less sequence in its last contig, or after it")


def _verify_line(entry: FaiEntry, line: bytes, read: Callable[[int, int], bytes]) -> None:
    """Check the length of a contig's first line, of which `line` is the beginning and what follows it."""
    bases = line[: min(entry.bases, entry.length)]
    several = entry.length > entry.bases
    if several and entry.width + 1 > len(line):
        line_end = read(entry.offset + entry.bases, min(entry.width - entry.bases + 1, _MAX_GAP))
    else:
        line_end = line[entry.bases : entry.width + 1]
    end, after = line_end[:-1], line_end[-1:]
    if bases.split() != [bases] or (several and (end.strip() or not end or after.isspace())):
        raise _Unusable(f"the lines of {entry.name!r} are not of {entry.bases} bases in {entry.width} bytes")


def _scan_blocks(fasta: Path) -> list[tuple[int, int]]:
    try:
        return bgzf.scan(fasta)
    except bgzf.BgzfError as error:
        raise FastaError(f"{fasta}: damaged BGZF data: {error}") from None


def _scan(fasta: Path, packed: bool) -> list[FaiEntry]:
    """Read a whole FASTA and index it, naming the line at fault if it cannot be indexed."""
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(open(fasta, "rb"))
        lines: IO[bytes] = raw
        if packed:
            unzipped = stack.enter_context(gzip.GzipFile(fileobj=raw, mode="rb"))
            lines = stack.enter_context(io.BufferedReader(unzipped, 1 << 20))
        try:
            if packed:
                _check_start(lines.peek(4096)[:4096], fasta)  # type: ignore[attr-defined]
            return _scan_lines(lines, fasta)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise FastaError(f"{fasta}: damaged BGZF data: {error}") from error


def _scan_lines(lines: IO[bytes], fasta: Path) -> list[FaiEntry]:
    entries: dict[str, FaiEntry] = {}
    empty: list[str] = []
    name = ""
    length = offset = bases = width = position = 0
    ended = False

    def finish() -> None:
        if length:
            entries[name] = FaiEntry(name, length, offset, bases, width)
        elif name:
            empty.append(name)

    for number, line in enumerate(lines, 1):
        size = len(line)
        position += size
        if line[0] == 62:  # '>'
            finish()
            name = _header_name(line, number, fasta)
            if name in entries or name in empty:
                raise FastaError(
                    f"{fasta}, line {number}: got the contig {name!r} a second time, expected unique names"
                )
            length = bases = width = 0
            offset = position
            ended = False
        elif size == width and not ended:
            length += bases
        else:
            count = len(line.rstrip(b"\r\n"))
            if not count:
                ended = bool(length)
                offset += 0 if length else size
                continue
            if not length:
                bases, width = count, size
            elif ended or count > bases:
                raise FastaError(
                    f"{fasta}, line {number}: contig {name!r} has lines of unequal length (got {count} bases "
                    f"after lines of {bases}); only its last line may be shorter (use `seqkit seq -w 60`)"
                )
            else:
                ended = True
            length += count
    finish()
    if empty:
        logger.warning("%s: %d contigs have no sequence, the first is %s", fasta, len(empty), empty[0])
    if not entries:
        raise FastaError(f"{fasta}: got {len(empty)} headers and no sequence, expected at least one contig")
    return list(entries.values())


def _header_name(line: bytes, number: int, fasta: Path) -> str:
    if b"\r" in line.rstrip(b"\r\n"):
        raise FastaError(
            f"{fasta}, line {number}: got lines that end with CR alone, expected LF or CRLF (use `mac2unix`)"
        )
    fields = line[1:].split(None, 1)
    if not fields:
        raise FastaError(f"{fasta}, line {number}: got a header without a name, expected '>name'")
    try:
        return fields[0].decode("utf-8")
    except UnicodeDecodeError:
        raise FastaError(
            f"{fasta}, line {number}: got a contig name that is not UTF-8 text: {fields[0]!r}"
        ) from None


def _refuse_cut(fasta: Path, entries: list[FaiEntry], fai: Path, old: list[FaiEntry]) -> None:
    """Refuse a FASTA that is the beginning of the one that an earlier index describes."""
    found, expected = [e[:3] for e in entries], [e[:3] for e in old]
    last = len(found) - 1
    same = (
        found[:last] == expected[:last] and last < len(expected) and found[last][::2] == expected[last][::2]
    )
    if same and found != expected and found[last][1] <= expected[last][1]:
        raise FastaError(
            f"{fasta}: the file is cut short: got {len(found)} contigs of {sum(e.length for e in entries):,} "
            f"bp in all, expected {len(old)} of {sum(e.length for e in old):,} bp after its index {fai}; "
            "restore the FASTA, or delete the index if the FASTA is as it should be"
        )


def _place(
    fasta: Path, entries: list[FaiEntry], blocks: list[tuple[int, int]] | None, index_dir: Path | None
) -> FastaIndex:
    fai = "".join("\t".join(map(str, entry)) + "\n" for entry in entries).encode()
    gzi = None
    if blocks is not None:
        gzi = bgzf.write_gzi(blocks)

    def write(folder: Path, scratch: Path | None) -> FastaIndex:
        gzi_path = None
        if gzi is not None:
            gzi_path = _write_index(folder / f"{fasta.name}.gzi", gzi, fasta)
        return FastaIndex(entries, _write_index(folder / f"{fasta.name}.fai", fai, fasta), gzi_path, scratch)

    if index_dir is not None:
        with os_error_as_output_error(index_dir / f"{fasta.name}.fai"):
            index_dir.mkdir(parents=True, exist_ok=True)
            return write(index_dir, None)
    try:
        return write(fasta.parent, None)
    except OSError as error:
        logger.info("the index of %s goes to a temporary folder: %s", fasta, error.strerror or error)
    with os_error_as_output_error(Path(tempfile.gettempdir()) / f"{fasta.name}.fai"):
        scratch = Path(tempfile.mkdtemp(prefix="lrgenome-fai-"))
        try:
            return write(scratch, scratch)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise


def _write_index(path: Path, data: bytes, fasta: Path) -> Path:
    source = fasta.stat()
    # As readable as the FASTA, which others may share, and never older, even if clocks differ.
    write_at_once(path, data, stat.S_IMODE(source.st_mode) & 0o666 | stat.S_IWUSR, source.st_mtime_ns)
    return path
