"""Counts of every k-mer in a set of sequences, and the arithmetic of k-mers as numbers.

The code of a k-mer is the number that its bases write in base 4, with A C G T = 0 1 2 3. A flat table holds
all 1-mers, then all 2-mers, and so on, so that a k-mer lies at ``offset(k) + code``. A clean stretch is one
without an N.
"""

import copy
from collections.abc import Iterable

import numba
import numpy as np
import numpy.typing as npt

from lrgenome import dna
from lrgenome.dna import IdArray


def is_base(ids: IdArray) -> npt.NDArray[np.bool_]:
    """Say where ids hold A, C, G or T."""
    return (ids >= dna.FIRST_BASE) & (ids < dna.FIRST_BASE + 4)


@numba.njit(cache=True)
def digit(token):
    """Return 0 to 3 for A C G T, -1 for any other token."""
    value = np.int64(token) - dna.FIRST_BASE
    return value if 0 <= value < 4 else np.int64(-1)


@numba.njit(cache=True)
def offset(k):
    """Return where the table of k-mers starts in a flat table of all k-mers."""
    return ((np.int64(1) << (2 * k)) - 1) // 3


@numba.njit(cache=True)
def last(code, k):
    """Return the code of the last k bases."""
    return code & ((np.int64(1) << (2 * k)) - 1)


@numba.njit(cache=True)
def reverse_complement(code, k):
    """Return the code of a k-mer's reverse complement."""
    reverse = np.int64(0)
    for _ in range(k):
        reverse = (reverse << 2) | (3 - (code & 3))
        code >>= 2
    return reverse


@numba.njit(cache=True)
def flanks(ids, i, reach):
    """Return length and code of the clean stretch left of position i, then right of it, ``reach`` at most."""
    n_left, left = 0, np.int64(0)
    while n_left < reach and i - n_left > 0:
        base = digit(ids[i - n_left - 1])
        if base < 0:
            break
        left |= base << (2 * n_left)
        n_left += 1
    n_right, right = 0, np.int64(0)
    while n_right < reach and i + n_right + 1 < len(ids):
        base = digit(ids[i + n_right + 1])
        if base < 0:
            break
        right = (right << 2) | base
        n_right += 1
    return n_left, left, n_right, right


@numba.njit(cache=True)
def _count(ids, width, flat):
    """Count ``width``-mers, and the shorter k-mers that end a clean stretch and so begin no longer one."""
    start = offset(width)
    code, run = np.int64(0), 0
    for i in range(len(ids) + 1):
        base = digit(ids[i]) if i < len(ids) else np.int64(-1)
        if base >= 0:
            code = last((code << 2) | base, width)
            run += 1
            if run >= width:
                flat[start + code] += 1
        else:
            for k in range(1, min(run, width - 1) + 1):
                flat[offset(k) + last(code, k)] += 1
            code, run = np.int64(0), 0


@numba.njit(cache=True)
def _add_extensions(flat, width):
    """Add to each k-mer the counts of its four extensions to the right, longest first."""
    for k in range(width - 1, 0, -1):
        here, longer = offset(k), offset(k + 1)
        for code in range(np.int64(1) << (2 * k)):
            j = longer + 4 * code
            flat[here + code] += flat[j] + flat[j + 1] + flat[j + 2] + flat[j + 3]


@numba.njit(cache=True)
def _add_reverse_strand(flat, width):
    """Add to each k-mer the count of its reverse complement (a palindrome counts twice)."""
    for k in range(1, width + 1):
        start = offset(k)
        for code in range(np.int64(1) << (2 * k)):
            reverse = reverse_complement(code, k)
            if code <= reverse:
                total = flat[start + code] + flat[start + reverse]
                flat[start + code] = total
                flat[start + reverse] = total


class KmerCounts:
    """Counts of every clean k-mer, k = 1 .. width.

    Parameters
    ----------
    sequences : iterable of (t,) uint8
        Token ids.
    width
        Longest k-mer, in bp.
    strands
        1 counts the sequences as given, 2 their reverse complements too.
    """

    def __init__(self, sequences: Iterable[IdArray], width: int, strands: int = 2):
        if strands not in (1, 2):
            raise ValueError(f"got strands={strands}, expected 1 or 2")
        self.width = width
        self.strands = strands
        self.flat = np.zeros(offset(width + 1), dtype=np.uint32)
        for ids in sequences:
            _count(ids, width, self.flat)
        _add_extensions(self.flat, width)
        if strands == 2:
            _add_reverse_strand(self.flat, width)

    def both_strands(self) -> "KmerCounts":
        """Counts of the same sequences and their reverse complements."""
        if self.strands != 1:
            raise ValueError("got counts of both strands, expected counts of one")
        both = copy.copy(self)
        both.strands = 2
        both.flat = self.flat.copy()
        _add_reverse_strand(both.flat, both.width)
        return both

    def table(self, k: int) -> npt.NDArray[np.uint32]:
        """(4^k,) uint32 view of the k-mers in alphabetical order."""
        if not 1 <= k <= self.width:
            raise ValueError(f"got k={k}, expected 1 to {self.width}")
        return self.flat[offset(k) : offset(k + 1)]
