"""Axis letters, units and the parsing of lengths, the same everywhere in the package.

Axis letters in shapes: ``b`` batch, ``t`` position in bp (tokens where a tokenizer is not 1 bp), ``d`` model
width, ``e`` recurrent width, ``f`` MLP width, ``h`` heads, ``w`` width of one head (e / h), ``k`` convolution
width, ``v`` vocabulary, ``s`` strands.

Coordinates are 0-based half-open inside the program and 1-based only where VCF text or a region string is
read or written. Lengths are decimal: 1 kbp is 1,000 bp.
"""

import os
import re
from fractions import Fraction

FORWARD = 0
"""Index of the left-to-right direction (and of the forward strand)."""

REVERSE = 1
"""Index of the right-to-left direction (and of the reverse strand)."""

# A comma only between groups of three digits: 1,5Mbp is a decimal comma, not 15 Mbp.
_LENGTH = re.compile(
    r"^\s*((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9][0-9_]*)(?:\.[0-9]+)?)\s*([kmg]?)(?:bp?|nt)?\s*$", re.IGNORECASE
)
_UNIT = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}


def printable(name: str) -> str:
    r"""Return the name of a file as text for headers: bytes that are not UTF-8 and control characters as ``\xe9``."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def parse_length(text: str) -> int:
    """Read a length such as ``12kbp``, ``1.5Mb``, ``131072`` or ``1,000``, in bp.

    Raises
    ------
    ValueError
        If the text is not a length, or is not a whole positive number of bp.
    """
    match = _LENGTH.match(text)
    if match:
        number = Fraction(match.group(1).replace(",", "").replace("_", "")) * _UNIT[match.group(2).lower()]
        if number.denominator == 1 and number > 0:
            return int(number)
    raise ValueError(f"got {text!r}, expected a length such as 12kbp, 1Mbp, 1.5Mb or 131072")


_SIZE = re.compile(r"^\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b?\s*$", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Read an amount of memory such as ``8GB``, ``7.5GiB``, ``800M`` or ``8000000000``, in bytes.

    Raises
    ------
    ValueError
        If the text is not an amount of at least a byte.
    """
    match = _SIZE.match(text)
    if match:
        power = " kmgt".index(match.group(2).lower() or " ")
        number = int(Fraction(match.group(1).replace("_", "")) * (1024 if match.group(3) else 1000) ** power)
        if number > 0:
            return number
    raise ValueError(f"got {text!r}, expected an amount of memory such as 8GB, 7.5GiB or 800MB")


def format_length(bp: int) -> str:
    """Write a length as `parse_length` reads it, with the largest unit that keeps it exact to 3 decimals."""
    for unit, size in (("Mbp", 1_000_000), ("kbp", 1_000)):
        if bp >= size and bp * 1000 % size == 0:
            return f"{bp / size:.3f}".rstrip("0").rstrip(".") + unit
    return f"{bp}bp"
