"""Mutations of formats: BGZF blocks, indices of FASTA, JSON and safetensors."""

import gzip
import json
import random
import struct
import zlib
from collections.abc import Callable

from .mutate import EOF_BLOCK, HOSTILE, Mutation, flip_bits


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
        blocks[-1] = rng.choice(
            (b"", EOF_BLOCK[:-1], EOF_BLOCK + bytes(10), EOF_BLOCK + EOF_BLOCK, EOF_BLOCK + b"junk")
        )
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
        values[at] = rng.choice(
            (0, 1, 1 << 63, 0xFFFFFFFFFFFFFFFF, values[at] + 1, max(0, values[at] - 1), values[at] ^ 0x10000)
        )
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
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    10**9,
    10**18,
    2**63,
    -(2**63),
    10**400,
    0.5,
    1e300,
    float("inf"),
    float("nan"),
    "",
    "a",
    "9",
    "x" * 100_000,
    [],
    {},
    [1],
    [[]],
    {"a": 1},
    "\ud800",
    "\0",
    "../../etc/passwd",
    "/dev/zero",
)


def change_json(rng: random.Random, data: bytes) -> bytes:
    """Replace, drop or add values anywhere in a JSON document, or make it deep, doubled or huge."""
    try:
        tree = json.loads(data)
    except ValueError:
        return flip_bits(rng, data)
    what = rng.random()
    if what < 0.06:
        return rng.choice(
            (b"[" * 200_000, b'{"a":' * 100_000, b'{"a": ' + b"9" * 6000 + b"}", b"", b"null", b"[]", b"1e999")
        )
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
            one["shape"] = rng.choice(
                ([], [0], [-1], [1 << 40, 1 << 40], [1 << 62], [1, *one["shape"]], one["shape"][::-1], [2] * 80)
            )
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


def by_text(change: tuple[Mutation, ...], wrap: Callable[[bytes], bytes]) -> tuple[Mutation, ...]:
    """Make mutations of the text of what they make of packed data."""
    return tuple(inside(one, wrap) for one in change)
