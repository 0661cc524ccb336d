"""Strict plain readers that share no code with the package: what a reader must give, if it gives anything."""

import struct
import zlib
from typing import Any

from .mutate import EOF_BLOCK

IUPAC = frozenset(b"ACGTUNRYSWKMBDHVacgtunryswkmbdhv")


class Refused(Exception):
    """The file is damaged: no reader may accept it."""


class Unchecked(Exception):
    """The file may be read, and nothing here can tell what it says."""


def decompress(data: bytes, *, sizes: bool = True) -> bytes:
    """Unpack gzip of any number of members, checksums and lengths (`sizes`) checked; zeros may follow."""
    out = []
    while data:
        if len(data) < 18 or data[:3] != b"\x1f\x8b\x08":
            raise Refused("no gzip member")
        flags, at = data[3], 10
        if flags & 4:
            at += 2 + struct.unpack_from("<H", data, at)[0]
        for flag in (8, 16):
            if flags & flag:
                end = data.find(b"\0", at)
                if end < 0:
                    raise Refused("header without an end")
                at = end + 1
        at += 2 if flags & 2 else 0
        unpacker = zlib.decompressobj(-15)
        try:
            text = unpacker.decompress(data[at:]) + unpacker.flush()
        except zlib.error as error:
            raise Refused(str(error)) from error
        rest = unpacker.unused_data
        if not unpacker.eof or len(rest) < 8:
            raise Refused("cut short")
        crc, size = struct.unpack("<II", rest[:8])
        if crc != zlib.crc32(text):
            raise Refused("checksum")
        if sizes and size != len(text) & 0xFFFFFFFF:
            raise Refused("length")
        out.append(text)
        data = rest[8:].lstrip(b"\0")
    return b"".join(out)


def text_of(data: bytes, *, end_marker: bool = True, sizes: bool = True) -> bytes:
    """Unpack what begins like gzip; BGZF must have its end marker."""
    if not data.startswith(b"\x1f\x8b"):
        return data
    is_bgzf = len(data) >= 14 and data[3] & 4 and data[12:14] == b"BC"
    if end_marker and is_bgzf and not data.endswith(EOF_BLOCK):
        raise Refused("no end marker")
    return decompress(data, sizes=sizes)


def vcf(data: bytes) -> list[tuple[Any, ...]]:
    """Records of VCF text: CHROM, POS from 0, ID, REF, ALTs and the line's bytes."""
    text = text_of(data).removeprefix(b"\xef\xbb\xbf")
    lines = text.split(b"\n")
    ended = not lines[-1]
    lines = lines[:-1] if ended else lines
    head = next((i for i, line in enumerate(lines) if not line.startswith(b"##") and line.strip()), None)
    if head is None or not text.startswith(b"#"):
        raise Refused("no header")
    # Blank lines may lie between header lines.
    columns = lines[head].removesuffix(b"\r").split(b"\t")
    if columns[:8] != b"#CHROM POS ID REF ALT QUAL FILTER INFO".split():
        raise Refused("columns")
    if head == len(lines) - 1 and not ended and len(columns) != 8:
        raise Refused("cut in the header")
    found = []
    for number, line in enumerate(lines[head + 1 :], head + 1):
        if not line.strip():
            continue
        cut = number == len(lines) - 1 and not ended
        # The end of a line is LF or CR LF; a CR before a cut is no line end.
        line = line.removesuffix(b"\r")
        cells = line.split(b"\t")
        if len(cells) < 8 or (cut and len(cells) < len(columns)) or b"\0" in line:
            raise Refused(f"line {number + 1}")
        chrom, pos, ident, ref, alt = (cell.decode("utf-8", "surrogateescape") for cell in cells[:5])
        if not chrom or chrom[0] == "#" or not (pos.isascii() and pos.isdigit()) or len(pos) > 18:
            raise Refused(f"line {number + 1}")
        if not ref or ref.split() != [ref]:
            raise Refused(f"line {number + 1}")
        alts = () if alt in ("", ".") else tuple(alt.split(","))
        found.append((chrom, int(pos) - 1, ident, ref, alts, line))
    return found


def _contigs_of(header: str, contigs: dict[int, str]) -> None:
    for line in header.split("\n"):
        if line.startswith("##contig=<"):
            pairs = dict(pair.split("=", 1) for pair in line[10:].rstrip(">").split(",") if "=" in pair)
            contigs[int(pairs.get("IDX", len(contigs)))] = pairs["ID"]


def bcf(data: bytes) -> list[tuple[Any, ...]]:
    """Records of BCF: CHROM, POS from 0, ID, REF, ALTs, None; by the letter of the specification."""
    raw = text_of(data)
    try:
        if raw[:3] != b"BCF" or raw[3] != 2:
            raise Refused("magic")
        size = struct.unpack_from("<I", raw, 5)[0]
        header = raw[9 : 9 + size].rstrip(b"\0").decode("utf-8", "surrogateescape")
        contigs: dict[int, str] = {}
        try:
            _contigs_of(header, contigs)
        except (ValueError, KeyError) as error:
            raise Unchecked from error
        at, found = 9 + size, []
        while at < len(raw):
            shared, individual = struct.unpack_from("<II", raw, at)
            record = raw[at + 8 : at + 8 + shared]
            at += 8 + shared + individual
            if at > len(raw) or shared < 24:
                raise Refused("record cut short")
            rid, pos, _rlen, _qual, counts = struct.unpack_from("<iiifI", record)
            place = 24
            texts = []  # which end at a NUL, as strings of C do
            for _ in range(1 + (counts >> 16)):
                kind = record[place]
                place, length = place + 1, kind >> 4
                if length == 15:
                    width = {1: 1, 2: 2, 3: 4}[record[place] & 15]
                    length = int.from_bytes(record[place + 1 : place + 1 + width], "little")
                    place += 1 + width
                if kind & 15 not in (0, 7):
                    raise Unchecked
                texts.append(record[place : place + length].partition(b"\0")[0].decode("utf-8", "surrogateescape"))
                place += length
            found.append((contigs[rid], pos, texts[0] or ".", texts[1], tuple(texts[2:]), None))
        return found
    except (struct.error, LookupError, ValueError) as error:
        raise Refused(str(error)) from error


def fasta(data: bytes) -> dict[str, str]:
    """Contigs with sequence, in upper case with T for U and N for the other codes."""
    is_gzip = data.startswith(b"\x1f\x8b")
    # htslib checks what a block holds, not how long its footer says that it is.
    text = text_of(data, sizes=False)
    if is_gzip and not (data[3] & 4):
        raise Refused("no BGZF")
    if not text.lstrip().startswith(b">"):
        raise Refused("no FASTA")
    found: dict[str, list[bytes]] = {}
    name = ""
    for line in text.split(b"\n"):
        if line.startswith(b">"):
            words = line[1:].split()
            if not words:
                raise Refused("header without a name")
            try:
                name = words[0].decode()
            except UnicodeDecodeError as error:
                raise Refused("name") from error
            if name in found:
                raise Refused("name twice")
            found[name] = []
        elif line.strip():
            # A CR where an index has a line end is one; there, it parts nothing else.
            bases = line.replace(b"\r", b"")
            if not name or not set(bases) <= IUPAC:
                raise Refused("letters")
            found[name].append(bases)
    table = bytes(c if c in b"ACGT" else ord("N") for c in range(256))
    joined = {
        name: b"".join(parts).upper().replace(b"U", b"T").translate(table).decode() for name, parts in found.items()
    }
    return {name: bases for name, bases in joined.items() if bases}


def bed(data: bytes) -> list[tuple[str, int, int, str, str]]:
    """Intervals of BED."""
    found = []
    for raw in text_of(data, end_marker=False).removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        try:
            line = raw.decode().rstrip("\r")
        except UnicodeDecodeError as error:
            raise Refused("text") from error
        cells = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or line.startswith("#") or cells[0].split(" ")[0] in ("track", "browser"):
            continue
        cells = [cell.strip() for cell in cells]
        if len(cells) < 3 or not cells[0] or not all(c.isascii() and c.isdigit() for c in cells[1:3]):
            raise Refused(line)
        if any(len(c) > 4000 for c in cells[1:3]):
            raise Refused("number")
        start, end = int(cells[1]), int(cells[2])
        name, strand = (cells[3:4] or [""])[0] or ".", (cells[5:6] or [""])[0] or "."
        if end <= start or strand not in ("+", "-", "."):
            raise Refused(line)
        found.append((cells[0], start, end, name, strand))
    return found


def variant_table(data: bytes) -> list[tuple[str, int, int, str, str, float]]:
    """Rows of a tab-separated table CHROM POS REF ALT LABEL: contig, start, end, REF, ALT, label."""
    text = text_of(data, end_marker=False)
    if b'"' in text or b"\r" in text or b"\0" in text:
        raise Unchecked
    try:
        lines = text.decode().split("\n")
    except UnicodeDecodeError as error:
        raise Refused("text") from error
    while lines and lines[0].startswith("##"):
        del lines[0]
    if not lines or "\t" not in lines[0]:
        raise Unchecked
    names = lines[0].split("\t")
    if names != ["CHROM", "POS", "REF", "ALT", "LABEL"]:
        raise Unchecked
    found = []
    for line in lines[1:]:
        if not line:
            continue
        cells = line.split("\t")
        if len(cells) != 5:
            raise Refused(line)
        pos, ref, alt, label = (cell.strip() for cell in cells[1:])
        if not (pos.isascii() and pos.isdigit() and 0 < int(pos[:30]) < 10**15):
            raise Unchecked if pos.strip("0123456789_+.e") == "" else Refused(line)
        for allele in (ref, alt):
            if not allele or not set(allele.upper()) <= set("ACGTN"):
                raise Refused(line)
        try:
            value = float(label) if label not in ("", ".", "NA") else float("nan")
        except ValueError as error:
            raise Refused(line) from error
        found.append((cells[0], int(pos) - 1, int(pos) - 1 + len(ref), ref.upper(), alt.upper(), value))
    return found


def safetensors(data: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    """Tensors of a safetensors file: type, shape, bytes; header and offsets checked."""
    import json

    if len(data) < 8:
        raise Refused("no header")
    size = struct.unpack("<Q", data[:8])[0]
    if size > len(data) - 8:
        raise Refused("header length")
    try:
        header = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError) as error:
        raise Refused("header") from error
    if not isinstance(header, dict):
        raise Refused("header")
    header.pop("__metadata__", None)
    body, end, found = data[8 + size :], 0, {}
    try:
        for name, one in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            low, high = one["data_offsets"]
            if low != end or high > len(body):
                raise Refused("offsets")
            found[name], end = (one["dtype"], list(one["shape"]), body[low:high]), high
    except (LookupError, TypeError, ValueError) as error:
        raise Refused("header") from error
    if end != len(body):
        raise Refused("offsets")
    return found
