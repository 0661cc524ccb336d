"""Repeats written into training windows, at distances of every size.

Real DNA seldom pays for remembering far: where a copy of a segment comes back some kilobases later, and only the later
copy is masked, it does. Copies are exact, diverged or reverse-complemented. It teaches copying, not regulation; models
trained with it should be reported beside ones trained without.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from lrgenome.dna import FIRST_BASE, IdArray, reverse_complement

SHORTEST = 32
"""Least length of a segment, bp."""
_LONGEST = 1_024
DIVERGENCE = 0.05
"""Share of the bases of a diverged copy that are drawn anew."""
KINDS = ("exact", "diverged", "reverse complement")


class Repeat(NamedTuple):
    """A window with a repeat in it."""

    ids: IdArray
    """(t,) bases."""
    first: slice
    """The segment, whose bases are no targets."""
    second: slice
    """Its copy."""


def write_repeat(ids: IdArray, rng: np.random.Generator) -> Repeat:
    """Copy a segment of a window (t,) over a later or an earlier place of it.

    Length of the segment, up to an eighth of the window, and distance between the starts of both, up to what the window
    holds, are log-uniform; of windows that are too short nothing is copied.
    """
    t = len(ids)
    longest = min(_LONGEST, t // 8)
    if longest < SHORTEST:
        return Repeat(ids, slice(0, 0), slice(0, 0))
    length = _log_uniform(rng, SHORTEST, longest)
    distance = _log_uniform(rng, length, t - length)
    low = int(rng.integers(t - length - distance + 1))
    places = slice(low, low + length), slice(low + distance, low + distance + length)
    first, second = places if rng.random() < 0.5 else places[::-1]
    copy = ids[first].copy()
    kind = KINDS[int(rng.integers(len(KINDS)))]
    if kind == "diverged":
        anew = rng.random(length) < DIVERGENCE
        copy[anew] = rng.integers(FIRST_BASE, FIRST_BASE + 4, int(anew.sum()), dtype=np.uint8)
    elif kind == "reverse complement":
        copy = reverse_complement(copy)
    ids = ids.copy()
    ids[second] = copy
    return Repeat(ids, first, second)


def _log_uniform(rng: np.random.Generator, low: int, high: int) -> int:
    """Draw a whole number from low to high, the logarithm of it evenly."""
    return min(high, int(math.exp(rng.uniform(math.log(low), math.log(high + 1)))))
