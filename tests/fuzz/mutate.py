"""Mutations of real files: of bytes, of lines and fields, of BGZF blocks, of indices and of JSON.

Each is a function of a generator and the file's bytes, and gives other bytes. What a case does follows from its seed
alone, so a case that failed can be made again.
"""

import gzip
import json
import random
import struct
import zlib
from collections.abc import Callable

Mutation = Callable[[random.Random, bytes], bytes]

EOF_BLOCK = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
NUMBERS = (
    b"0", b"-1", b"1", b"+5", b"2147483647", b"2147483648", b"4294967296", b"9223372036854775807", b"9223372036854775808",
    b"18446744073709551616", b"9" * 30, b"9" * 5000, b"1e3", b"1e999", b"-1e999", b"nan", b"inf", b"0x10", b"1_000", b"1,000",
    b"1.5", b" 7", b"7 ", "１２".encode(), "²".encode(), b"1e17", b"9007199254740993",
)  # fmt: skip
WORDS = (
    b"", b".", b"..", b"../../../etc/passwd", b"\0", b"\xff\xfe", "é".encode(), b"A" * 70_000, b"\r", b"\x1a", b"\x0b", b"\x85",
    "\u2028".encode(), b"*", b"N", b"<DEL>", b"<CN0>", b"]20:5]A", b"A,C", b"A,,C", b",", b";", b"=", b"END=-5", b"END=99999999999999999999",
    b"#", b">", b"'", b'"', b'"a', b"[", b"[1, 2", b"[" * 300, b"%s%n", b"a b", b"-", b"chr20", b"20:1-", b"\xef\xbb\xbf",
)  # fmt: skip
HOSTILE = NUMBERS + WORDS


def _span(rng: random.Random, size: int, most: int = 4096) -> tuple[int, int]:
    start = rng.randrange(size + 1)
    length = min(size - start, int(rng.paretovariate(0.5)))
    return start, start + min(length, most)


def flip_bits(rng: random.Random, data: bytes) -> bytes:
    """Turn one to eight bits over."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8)) if out else 0):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def set_byte(rng: random.Random, data: bytes) -> bytes:
    """Put a byte that means something in place of one."""
    out = bytearray(data)
    if out:
        out[rng.randrange(len(out))] = rng.choice(b'\0\xff\x7f\x80\t\r\n #>"\x1f\x8b')
    return bytes(out)


def truncate(rng: random.Random, data: bytes) -> bytes:
    """Cut the end off, sometimes all."""
    return data[: rng.choice((0, 1, len(data) - 1, rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))]


def drop_span(rng: random.Random, data: bytes) -> bytes:
    """Leave some bytes out."""
    start, end = _span(rng, len(data))
    return data[:start] + data[end:]


def repeat_span(rng: random.Random, data: bytes) -> bytes:
    """Have some bytes twice."""
    start, end = _span(rng, len(data))
    return data[:end] + data[start:]


def splice(rng: random.Random, data: bytes) -> bytes:
    """Put bytes from elsewhere over some."""
    start, end = _span(rng, len(data))
    other = rng.randrange(len(data) + 1)
    return data[:start] + data[other : other + end - start] + data[end:]


def zero_span(rng: random.Random, data: bytes) -> bytes:
    """Set a stretch to zeros, as a machine that lost power leaves it."""
    start, end = _span(rng, len(data))
    end = min(len(data), max(end, start + rng.choice((1, 16, 512, 4096))))
    return data[:start] + bytes(end - start) + data[end:]


def insert_noise(rng: random.Random, data: bytes) -> bytes:
    """Put random bytes in."""
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 2, 4, 64))) + data[at:]


def append_noise(rng: random.Random, data: bytes) -> bytes:
    """Put something behind the end."""
    more = (bytes(rng.choice((1, 512))), rng.randbytes(40), data[: rng.randrange(len(data) + 1)], b"\n", EOF_BLOCK, b"\x1f\x8b")
    return data + rng.choice(more)


BYTES: tuple[Mutation, ...] = (
    flip_bits, flip_bits, set_byte, truncate, drop_span, repeat_span, splice, zero_span, insert_noise, append_noise,
)  # fmt: skip


def change_lines(rng: random.Random, data: bytes) -> bytes:
    """Drop, repeat, swap, join, cut, splice or empty lines."""
    lines = data.splitlines(keepends=True) or [b""]
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    what = rng.randrange(9)
    if what == 0:
        del lines[at]
    elif what == 1:
        lines.insert(other, lines[at])
    elif what == 2:
        lines[at], lines[other] = lines[other], lines[at]
    elif what == 3:
        lines[at] = lines[at].rstrip(b"\r\n")
    elif what == 4:
        lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)]
    elif what == 5:
        lines[at] = lines[at][: len(lines[at]) // 2] + lines[other][len(lines[other]) // 2 :]
    elif what == 6:
        lines.insert(at, rng.choice((b"\n", b"\r\n", b" \n", b"\t\n", b"#\n", b"##\n", b">\n", b"\0\n")))
    elif what == 7:
        lines[at] = lines[at].rstrip(b"\r\n") + rng.choice((b"\r\n", b"\r", b"\n\r", b" \n", b"\t\n", b"\x0c\n"))
    else:
        del lines[min(at, other) : max(at, other)]
    return b"".join(lines)


def change_line_ends(rng: random.Random, data: bytes) -> bytes:
    """Write all lines with other ends, or the file with a byte order mark."""
    return rng.choice((
        data.replace(b"\n", b"\r\n"), data.replace(b"\n", b"\r"), b"\xef\xbb\xbf" + data, data.rstrip(b"\r\n"),
        data.decode("latin-1").encode("utf-16"), data.replace(b"\t", b"  "),
    ))  # fmt: skip


def change_field(rng: random.Random, data: bytes) -> bytes:
    """Put a hostile value in a field of a line, or have fields more or fewer."""
    lines = data.split(b"\n")
    rows = [i for i, line in enumerate(lines) if line and not line.startswith(b"##")] or [0]
    # The header line as often as the tenth part of the others.
    at = rows[0] if rng.random() < 0.1 else rng.choice(rows)
    parting = b"\t" if b"\t" in lines[at] else b"," if b"," in lines[at] else b" "
    fields = lines[at].split(parting)
    which, what = rng.randrange(len(fields)), rng.random()
    if what < 0.8:
        old = fields[which]
        numeric = old.lstrip(b"-").isdigit() and rng.random() < 0.7
        new = rng.choice(NUMBERS if numeric else HOSTILE)
        fields[which] = new if rng.random() < 0.8 else rng.choice((old + new, new + old))
    elif what < 0.87:
        del fields[which]
    elif what < 0.94:
        fields.insert(which, rng.choice(HOSTILE))
    else:
        other = rng.randrange(len(fields))
        fields[which], fields[other] = fields[other], fields[which]
    lines[at] = parting.join(fields)
    return b"\n".join(lines)


def lengthen(rng: random.Random, data: bytes) -> bytes:
    """Make one line megabytes long."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    filler = rng.choice((b"A", b"\t", b",", b"A,", b";X=1", b" ", b'"'))
    lines[at] += filler * (rng.choice((1 << 16, 1 << 18, 1 << 21)) // len(filler))
    return b"\n".join(lines)


TEXT: tuple[Mutation, ...] = (
    *BYTES, change_lines, change_lines, change_lines, change_line_ends, change_field, change_field, change_field,
    change_field, change_field, lengthen,
)  # fmt: skip


def pack(data: bytes, *, crc: int | None = None, size: int | None = None, extra: bytes = b"") -> bytes:
    """Make one BGZF block, with another checksum, size or extra field if asked for."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    body = packer.compress(data) + packer.flush()
    fields = b"BC\x02\x00" + struct.pack("<H", (18 + len(extra) + len(body) + 8 - 1) & 0xFFFF) + extra
    head = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + struct.pack("<H", len(fields)) + fields
    tail = struct.pack("<II", zlib.crc32(data) if crc is None else crc, len(data) if size is None else size)
    return head + body + tail


def bgzip(data: bytes, block: int = 0xFF00) -> bytes:
    """Compress to BGZF in blocks of so many bytes."""
    return b"".join(pack(data[i : i + block]) for i in range(0, len(data), block)) + EOF_BLOCK


def blocks_of(data: bytes) -> list[bytes]:
    """Part BGZF at its blocks."""
    found, at = [], 0
    while at + 18 <= len(data):
        size = struct.unpack_from("<H", data, at + 16)[0] + 1
        found.append(data[at : at + size])
        at += size
    return found


def change_blocks(rng: random.Random, data: bytes) -> bytes:
    """Drop, repeat, swap or empty blocks, or change what their headers and checksums say."""
    blocks = blocks_of(data)
    if not blocks:
        return data
    at, other = rng.randrange(len(blocks)), rng.randrange(len(blocks))
    inside = gzip.decompress(blocks[at])
    what = rng.randrange(12)
    if what == 0:
        del blocks[at]
    elif what == 1:
        blocks.insert(other, blocks[at])
    elif what == 2:
        blocks[at], blocks[other] = blocks[other], blocks[at]
    elif what == 3:
        blocks[at] = pack(inside, crc=rng.getrandbits(32))
    elif what == 4:
        blocks[at] = pack(inside, size=rng.choice((0, 1, 65536, 0xFFFFFFFF, len(inside) + 1)))
    elif what == 5:
        size = struct.pack("<H", rng.choice((0, 17, 25, 26, 27, 0xFFFF, len(blocks[at]), len(blocks[at]) - 2)))
        blocks[at] = blocks[at][:16] + size + blocks[at][18:]
    elif what == 6:
        blocks[at] = flip_bits(rng, blocks[at][:18]) + blocks[at][18:]
    elif what == 7:
        blocks[at] = gzip.compress(inside, mtime=0)
    elif what == 8:
        blocks.insert(at, EOF_BLOCK)
    elif what == 9:
        blocks[at] = pack(inside, extra=rng.choice((b"XX\x02\x00ab", b"XX\xff\xff", b"X")))
    elif what == 10:
        blocks[-1] = rng.choice((b"", EOF_BLOCK[:-1], EOF_BLOCK + bytes(10), EOF_BLOCK + EOF_BLOCK, EOF_BLOCK + b"junk"))
    else:
        blocks[at] = flip_bits(rng, blocks[at])
    return b"".join(blocks)


def inside(change: Mutation, wrap: Callable[[bytes], bytes]) -> Mutation:
    """Make a mutation of the text of what it makes of packed data."""

    def changed(rng: random.Random, data: bytes) -> bytes:
        return wrap(change(rng, gzip.decompress(data)))

    return changed


def change_gzi(rng: random.Random, data: bytes) -> bytes:
    """Make an index of BGZF blocks lie: counts, offsets, order."""
    values = list(struct.unpack(f"<{len(data) // 8}Q", data[: len(data) // 8 * 8]))
    what, at = rng.randrange(5), rng.randrange(len(values))
    if what == 0:
        values[at] = rng.choice((0, 1, 1 << 63, 0xFFFFFFFFFFFFFFFF, values[at] + 1, max(0, values[at] - 1), values[at] ^ 0x10000))
    elif what == 1 and len(values) > 3:
        other = rng.randrange(1, len(values))
        values[at], values[other] = values[other], values[at]
    elif what == 2 and len(values) > 3:
        pair = rng.randrange((len(values) - 1) // 2) * 2 + 1
        del values[pair : pair + 2]
        values[0] = (len(values) - 1) // 2
    elif what == 3 and len(values) > 3:
        pair = rng.randrange((len(values) - 1) // 2) * 2 + 1
        values[pair] = values[rng.randrange((len(values) - 1) // 2) * 2 + 1]
    else:
        values = values[: rng.randrange(len(values) + 1)]
    return struct.pack(f"<{len(values)}Q", *(value & 0xFFFFFFFFFFFFFFFF for value in values))


def change_fai(rng: random.Random, data: bytes) -> bytes:
    """Make a FASTA index lie in ways that hang together: line widths, lengths, offsets, names."""
    lines = [line.split(b"\t") for line in data.splitlines()]
    at = rng.randrange(len(lines))
    row = lines[at]
    what = rng.randrange(7)
    length, offset, bases, width = (int(cell) for cell in row[1:5])
    if what == 0:
        factor = rng.choice((2, 3, 10))
        row[3:5] = [b"%d" % (bases * factor), b"%d" % (width * factor)]
    elif what == 1:
        row[3:5] = [b"%d" % (bases + 1), b"%d" % (width + 1)]
    elif what == 2:
        row[1] = b"%d" % rng.choice((length - 1, length + 1, length // 2, 1, length - bases))
    elif what == 3:
        step = rng.choice((1, -1, width, -width))
        row[2], row[1] = b"%d" % (offset + step), b"%d" % (length - (bases if step == width else 0))
    elif what == 4:
        other = rng.randrange(len(lines))
        row[0], lines[other][0] = lines[other][0], row[0]
    elif what == 5:
        row[3:5] = [b"%d" % length, b"%d" % (length + 1)]
    else:
        row[rng.randrange(5)] = rng.choice(HOSTILE)
    return b"".join(b"\t".join(line) + b"\n" for line in lines)


VALUES: tuple[object, ...] = (
    None, True, False, 0, -1, 1, 2, 10**9, 10**18, 2**63, -(2**63), 10**400, 0.5, 1e300, float("inf"), float("nan"), "", "a",
    "9", "x" * 100_000, [], {}, [1], [[]], {"a": 1}, "\ud800", "\0", "../../etc/passwd", "/dev/zero",
)  # fmt: skip


def change_json(rng: random.Random, data: bytes) -> bytes:
    """Replace, drop or add values anywhere in a JSON document, or make it deep, doubled or huge."""
    try:
        tree = json.loads(data)
    except ValueError:
        return flip_bits(rng, data)
    what = rng.random()
    if what < 0.06:
        return rng.choice((b"[" * 200_000, b'{"a":' * 100_000, b'{"a": ' + b"9" * 6000 + b"}", b"", b"null", b"[]", b"1e999"))
    if what < 0.12:
        text = data.decode()
        at = text.find("{", rng.randrange(max(1, len(text) // 2)))
        return (text[: at + 1] + f'"{rng.choice(list(tree))}": {rng.randrange(9)}, ' + text[at + 1 :]).encode()
    places: list[tuple[object, object]] = []

    def walk(node: object) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
            places.append((node, key))
            walk(value)

    walk(tree)
    if not places:
        return data
    node, key = rng.choice(places)
    assert isinstance(node, dict | list)
    if what < 0.25:
        del node[key]  # type: ignore[arg-type]
    elif what < 0.32 and isinstance(node, dict):
        node[rng.choice(("zz", "", "format", "__class__"))] = rng.choice(VALUES)
    else:
        node[key] = rng.choice(VALUES)  # type: ignore[index,call-overload]
    return json.dumps(tree).encode()


def change_safetensors(rng: random.Random, data: bytes) -> bytes:
    """Change the header of a safetensors file: its length, shapes, types, offsets, names."""
    size = struct.unpack("<Q", data[:8])[0]
    header, body = data[8 : 8 + size], data[8 + size :]
    what = rng.random()
    if what < 0.15:
        length = rng.choice((0, 1, 7, size - 1, size + 1, len(data), 100_000_001, 1 << 40, (1 << 64) - 1))
        return struct.pack("<Q", length) + header + body
    if what < 0.4:
        header = change_json(rng, header)
    else:
        tree = json.loads(header)
        one = tree[rng.choice([name for name in tree if name != "__metadata__"])]
        kind = rng.randrange(5)
        if kind == 0:
            one["dtype"] = rng.choice(("F16", "I64", "BOOL", "F8_E5M2", "F64", "C64", "F4", "X9", "", "U8"))
        elif kind == 1:
            one["shape"] = rng.choice(([], [0], [-1], [1 << 40, 1 << 40], [1 << 62], [1, *one["shape"]], one["shape"][::-1], [2] * 80))
        elif kind == 2:
            low, high = one["data_offsets"]
            one["data_offsets"] = rng.choice(([high, low], [0, high], [low, high + 4], [low, 1 << 62], [0, 0], [low]))
        elif kind == 3:
            other = tree[rng.choice([name for name in tree if name != "__metadata__"])]
            one["data_offsets"], other["data_offsets"] = other["data_offsets"], one["data_offsets"]
        else:
            low, high = one["data_offsets"]
            words = struct.pack("<f", rng.choice((float("nan"), float("inf"), -float("inf"), 3e38, 1e-45)))
            body = body[:low] + words + body[low + 4 :]
        header = json.dumps(tree).encode()
    return struct.pack("<Q", len(header)) + header + body


def mutated(rng: random.Random, data: bytes, mutations: tuple[Mutation, ...]) -> bytes:
    """Apply one mutation, now and then two or three; what makes no sense on the changed file is left out."""
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3))):
        try:
            data = rng.choice(mutations)(rng, data)
        except (ValueError, LookupError, EOFError, OSError, zlib.error, struct.error, TypeError, AttributeError, RecursionError):
            continue
    return data
