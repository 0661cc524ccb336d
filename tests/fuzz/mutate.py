"""Mutations of real files: of bytes, of lines and of fields; those of formats are in `mutate_formats`.

Each is a function of a generator and the file's bytes, and gives other bytes. What a case does follows from its seed
alone, so a case that failed can be made again.
"""

import random
import struct
import zlib
from collections.abc import Callable

Mutation = Callable[[random.Random, bytes], bytes]

EOF_BLOCK = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
NUMBERS = (
    b"0",
    b"-1",
    b"1",
    b"+5",
    b"2147483647",
    b"2147483648",
    b"4294967296",
    b"9223372036854775807",
    b"9223372036854775808",
    b"18446744073709551616",
    b"9" * 30,
    b"9" * 5000,
    b"1e3",
    b"1e999",
    b"-1e999",
    b"nan",
    b"inf",
    b"0x10",
    b"1_000",
    b"1,000",
    b"1.5",
    b" 7",
    b"7 ",
    "１２".encode(),
    "²".encode(),
    b"1e17",
    b"9007199254740993",
)
WORDS = (
    b"",
    b".",
    b"..",
    b"../../../etc/passwd",
    b"\0",
    b"\xff\xfe",
    "é".encode(),
    b"A" * 70_000,
    b"\r",
    b"\x1a",
    b"\x0b",
    b"\x85",
    "\u2028".encode(),
    b"*",
    b"N",
    b"<DEL>",
    b"<CN0>",
    b"]20:5]A",
    b"A,C",
    b"A,,C",
    b",",
    b";",
    b"=",
    b"END=-5",
    b"END=99999999999999999999",
    b"#",
    b">",
    b"'",
    b'"',
    b'"a',
    b"[",
    b"[1, 2",
    b"[" * 300,
    b"%s%n",
    b"a b",
    b"-",
    b"chr20",
    b"20:1-",
    b"\xef\xbb\xbf",
)
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
    more = (
        bytes(rng.choice((1, 512))),
        rng.randbytes(40),
        data[: rng.randrange(len(data) + 1)],
        b"\n",
        EOF_BLOCK,
        b"\x1f\x8b",
    )
    return data + rng.choice(more)


BYTES: tuple[Mutation, ...] = (
    flip_bits,
    flip_bits,
    set_byte,
    truncate,
    drop_span,
    repeat_span,
    splice,
    zero_span,
    insert_noise,
    append_noise,
)


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
    return rng.choice(
        (
            data.replace(b"\n", b"\r\n"),
            data.replace(b"\n", b"\r"),
            b"\xef\xbb\xbf" + data,
            data.rstrip(b"\r\n"),
            data.decode("latin-1").encode("utf-16"),
            data.replace(b"\t", b"  "),
        )
    )


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
    *BYTES,
    change_lines,
    change_lines,
    change_lines,
    change_line_ends,
    change_field,
    change_field,
    change_field,
    change_field,
    change_field,
    lengthen,
)


def mutated(rng: random.Random, data: bytes, mutations: tuple[Mutation, ...]) -> bytes:
    """Apply one mutation, now and then two or three; what makes no sense on the changed file is left out."""
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3))):
        try:
            data = rng.choice(mutations)(rng, data)
        except (
            ValueError,
            LookupError,
            EOFError,
            OSError,
            zlib.error,
            struct.error,
            TypeError,
            AttributeError,
            RecursionError,
        ):
            continue
    return data
