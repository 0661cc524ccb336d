"""Models that look a base's probability up in one smoothed table of windows."""

from collections.abc import Sequence

import numba
import numpy as np
from typing_extensions import Self

from baselines.base import Baseline
from baselines.counting import KmerCounts, digit, flanks, last, offset
from baselines.losses import FloatArray, mean_loss
from baselines.smoothing import smooth_level
from lrgenome.dna import IdArray

MAX_ORDER = 12
"""Highest Markov order tried: a 13-mer table, which 6 + 6 flanks need anyway."""

FLANK = 6
"""Widest flank of `TwoSidedKmer`, in bp each side."""


class TableModel(Baseline):
    """A baseline with a table of ``width``-mers, from counts of one strand or two."""

    width: int

    def fit(self, sequences: Sequence[IdArray]) -> Self:
        return self.fit_counts(KmerCounts(sequences, self.width, self.strands))

    def fit_counts(self, counts: KmerCounts) -> Self:
        """Read counts that other models may share."""
        if counts.strands != self.strands or counts.width < self.width:
            raise ValueError(
                f"got counts of {counts.width}-mers on {counts.strands} strand(s), "
                f"expected at least {self.width}-mers on {self.strands}"
            )
        self.counts = counts
        self.orders = []
        return self


@numba.njit(cache=True)
def _markov_probabilities(ids, flat, order, out):
    code, run = np.int64(0), 0
    for i in range(len(ids)):
        k = min(run, order)
        start = offset(k + 1) + 4 * last(code, k)
        for x in range(4):
            out[i, x] = flat[start + x]
        base = digit(ids[i])
        if base >= 0:
            code = last((code << 2) | base, order)
            run += 1
        else:
            code, run = np.int64(0), 0


class InterpolatedMarkov(TableModel):
    """p(x_i | previous k bases), each order interpolated with the order below it.

    The model sees the true bases to its left and nothing to its right.

    Parameters
    ----------
    max_order
        Highest order, bp. Defaults to 12.
    strands
        1 counts the training sequences as given, 2 their reverse complements too. Defaults to 2.
    """

    flat: FloatArray
    """Probability of the last base of each k-mer, k = 1 .. width."""

    def __init__(self, max_order: int = MAX_ORDER, strands: int = 2):
        self.width = max_order + 1
        self.strands = strands

    def tune(self, validation: IdArray) -> Self:
        self.flat = np.full(offset(self.width + 1), 0.25, dtype=np.float32)
        self.orders = []
        for k in range(self.width):
            table = self.flat[offset(k + 1) : offset(k + 2)]
            if k:
                table.reshape(4, -1)[:] = self.flat[offset(k) : offset(k + 1)]
            smooth_level(self.counts, table, k, 0, validation)
            self.order = k
            self.orders.append(mean_loss(self.losses(validation)))
        self.order = int(np.argmin(self.orders))
        return self

    def probabilities(self, ids: IdArray, order: int | None = None) -> FloatArray:
        """As `Baseline.probabilities`, from at most ``order`` bases (default: the chosen order)."""
        out = np.empty((len(ids), 4), dtype=np.float32)
        _markov_probabilities(ids, self.flat, self.order if order is None else order, out)
        return out


@numba.njit(cache=True)
def _product_prior(without_last, without_first, without_both, left, right, out):
    """p(x | l, r) ∝ p(x | l, r - 1) p(x | l - 1, r) / p(x | l - 1, r - 1): outer two bases independent."""
    stride = np.int64(1) << (2 * right)
    first_mask, both_mask = len(without_first) - 1, len(without_both) - 1
    for head in range(np.int64(1) << (2 * left)):
        for tail in range(stride):
            start = head * 4 * stride + tail
            total = 0.0
            for x in range(4):
                j = start + x * stride
                out[j] = (
                    without_last[j >> 2] * without_first[j & first_mask] / without_both[(j >> 2) & both_mask]
                )
                total += out[j]
            for x in range(4):
                out[start + x * stride] /= total


@numba.njit(cache=True)
def _two_sided_probabilities(ids, flat, starts, flank, out):
    for i in range(len(ids)):
        n_left, left, n_right, right = flanks(ids, i, flank)
        use_left, use_right = min(n_left, n_right + 1), min(n_right, n_left + 1)
        level = 3 * min(n_left, n_right) + (use_left > use_right) + 2 * (use_right > use_left)
        start = starts[level] + (last(left, use_left) << (2 * (use_right + 1)))
        start += right >> (2 * (n_right - use_right))
        for x in range(4):
            out[i, x] = flat[start + (np.int64(x) << (2 * use_right))]


class TwoSidedKmer(TableModel):
    """p(x_i | l bases left, r bases right): the (l + 1 + r)-mer normalised over its centre.

    Contexts shrink (s, s) -> (s, s - 1) and (s - 1, s) -> (s - 1, s - 1). A near-symmetric one's prior is the
    symmetric one below; a symmetric one's is the product of its two near-symmetric ones. The model
    sees the true bases on either side.

    Parameters
    ----------
    flank
        Widest context on either side, bp. Defaults to 6.
    strands
        1 counts the training sequences as given, 2 their reverse complements too. Defaults to 2.
    """

    def __init__(self, flank: int = FLANK, strands: int = 2):
        self.flank = flank
        self.width = 2 * flank + 1
        self.strands = strands

    def tune(self, validation: IdArray) -> Self:
        levels = [(0, 0)]
        for s in range(self.flank):
            levels += [(s + 1, s), (s, s + 1), (s + 1, s + 1)]
        sizes = [4 ** (left + 1 + right) for left, right in levels]
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.flat = np.full(self.starts[-1], 0.25, dtype=np.float32)
        tables = {level: self.flat[self.starts[j] : self.starts[j + 1]] for j, level in enumerate(levels)}
        self.orders = []
        for left, right in levels:
            table = tables[left, right]
            if left > right:
                table.reshape(4, -1)[:] = tables[right, right]
            elif right > left:
                table.reshape(-1, 4)[:] = tables[left, left][:, None]
            elif left:
                outer = tables[left, left - 1], tables[left - 1, left], tables[left - 1, left - 1]
                _product_prior(*outer, left, right, table)
            smooth_level(self.counts, table, left, right, validation)
            if left == right:
                self.order = left
                self.orders.append(mean_loss(self.losses(validation)))
        self.order = int(np.argmin(self.orders))
        return self

    def probabilities(self, ids: IdArray) -> FloatArray:
        out = np.empty((len(ids), 4), dtype=np.float32)
        _two_sided_probabilities(ids, self.flat, self.starts, self.order, out)
        return out
