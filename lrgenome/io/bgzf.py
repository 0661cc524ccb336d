"""BGZF: gzip in blocks, each of which says how long it is, so that one can be found without those before it."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO

EOF_BLOCK = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
"""The empty block that a whole file ends with."""

_LOOKS = 4096


class BgzfError(ValueError):
    """Data that is not BGZF, or an index that is of other data."""


def block_size(header: bytes) -> int | None:
    """Size in bytes of the BGZF block that begins with `header`, None if it is no BGZF block."""
    if len(header) < 18 or header[:4] != b"\x1f\x8b\x08\x04":
        return None
    extra = header[12 : 12 + int.from_bytes(header[10:12], "little")]
    while len(extra) >= 4:
        length = int.from_bytes(extra[2:4], "little")
        if extra[:2] == b"BC" and length == 2:
            return int.from_bytes(extra[4:6], "little") + 1
        extra = extra[4 + length :]
    return None


def blocks(handle: IO[bytes], offset: int) -> Iterator[tuple[int, int]]:
    """Yield offset in the file and uncompressed length of each BGZF block from `offset` on."""
    size = os.fstat(handle.fileno()).st_size
    while offset < size:
        handle.seek(offset)
        block = block_size(handle.read(64))
        if block is None or block < len(EOF_BLOCK) - 2 or offset + block > size:
            raise BgzfError(f"there is no BGZF block at byte {offset:,}")
        handle.seek(offset + block - 4)
        yield offset, int.from_bytes(handle.read(4), "little")
        offset += block


def scan(path: Path) -> list[tuple[int, int]]:
    """List the blocks that a ``.gzi`` names: offset in the file and in the uncompressed data.

    Raises
    ------
    BgzfError
        Where there is no block.
    """
    found, position = [], 0
    with open(path, "rb") as handle:
        for offset, length in blocks(handle, 0):
            if length:
                found.append((offset, position))
            position += length
    return found[1:] if found[:1] == [(0, 0)] else found


def read_gzi(path: Path) -> list[tuple[int, int]]:
    """Read a ``.gzi``, and put the first block, which it leaves out, before the others."""
    raw = path.read_bytes()
    count = struct.unpack_from("<Q", raw)[0] if len(raw) >= 8 else 0
    if len(raw) != 8 + 16 * count:
        raise BgzfError(f"{path.name} is damaged")
    return [(0, 0), *struct.iter_unpack("<QQ", raw[8:])]


def write_gzi(found: list[tuple[int, int]]) -> bytes:
    """Write the bytes of a ``.gzi``, without the first block."""
    return struct.pack("<Q", len(found)) + b"".join(struct.pack("<QQ", *block) for block in found)


def check(handle: IO[bytes], index: list[tuple[int, int]]) -> None:
    """Check that blocks lie in a file as an index says; of tens of thousands, every so many.

    Raises
    ------
    BgzfError
        If they do not.
    """
    file, step = handle.fileno(), 1 + len(index) // _LOOKS
    for number in range(len(index) - 1):
        (offset, position), (end, after) = index[number : number + 2]
        if not (offset < end and position <= after):
            raise BgzfError("the blocks of its .gzi are out of order")
        if number % step:
            continue
        if offset + (block_size(os.pread(file, 64, offset)) or 0) == end:
            if position + int.from_bytes(os.pread(file, 4, end - 4), "little") == after:
                continue
            raise BgzfError(f"the block before byte {end:,} is not as long as its .gzi says")
        # More than one block, where empty ones are left out.
        reached = os.fstat(handle.fileno()).st_size
        for at, length in blocks(handle, offset):
            if at >= end:
                reached = at
                break
            position += length
        if (reached, position) != (end, after):
            raise BgzfError(f"there is no BGZF block at byte {end:,} as its .gzi says")
