"""Running sums along the pass over a tile, from which any stretch of the reference is pooled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch

from lrgenome.dna import COMPLEMENT, FIRST_BASE, IdArray
from lrgenome.engine.runner import Runner
from lrgenome.engine.sweep import Chunk
from lrgenome.glossary import REVERSE

FloatArray = npt.NDArray[np.float64]
Sum = tuple[FloatArray, float, int]
"""Sum of hidden states (w,), sum of log-likelihoods, number of positions."""

_ROWS = 1_024
"""Positions that go through the head together, on a fixed grid of each chunk."""


def head_rows(runner: Runner, part: Chunk) -> Iterator[tuple[int, int, FloatArray]]:
    """Yield (low, high, (high - low, v) log-probabilities) along a chunk of one window, offsets in the chunk.

    So many at a time for memory's sake, and always the same ones: products of different shapes round differently.
    """
    length = part.end - part.start
    for low in range(0, length, _ROWS):
        high = min(length, low + _ROWS)
        yield low, high, runner.log_probabilities(part, 0, low, high)


class PassSums:
    """Sums of hidden states and log-likelihoods up to chosen positions of a tile, on one strand.

    Parameters
    ----------
    runner
        A recurrent model, ready.
    ids
        (t,) bases of the tile.
    strand
        FORWARD or REVERSE.
    edges
        Positions 0..t, of which sums of what lies before them are kept.
    """

    def __init__(self, runner: Runner, ids: IdArray, strand: int, edges: Iterable[int]) -> None:
        self._runner = runner
        self._observed = COMPLEMENT[ids] if strand == REVERSE else ids
        self._edges = np.array(sorted(set(edges)), dtype=np.int64)
        self._hidden = np.zeros((len(self._edges), runner.model.hidden_width()))
        self._likelihood = np.zeros(len(self._edges))
        self._so_far = np.zeros(runner.model.hidden_width()), 0.0

    def take(self, part: Chunk) -> None:
        """Add a chunk of the pass; chunks come in genomic order."""
        low, high = np.searchsorted(self._edges, [part.start, part.end], side="right")
        hidden, likelihood = self._so_far
        along = torch.cumsum(part.hidden[0].double(), 0)
        observed = np.cumsum(self._log_likelihoods(part))
        rows = self._edges[low:high] - part.start - 1
        self._hidden[low:high] = along[torch.from_numpy(rows).to(along.device)].cpu().numpy() + hidden
        self._likelihood[low:high] = observed[rows] + likelihood
        self._so_far = hidden + along[-1].cpu().numpy(), likelihood + float(observed[-1])

    def _log_likelihoods(self, part: Chunk) -> FloatArray:
        """Return the log-probability of each base of a chunk, 0 for what is no base."""
        result = np.zeros(part.end - part.start)
        for low, high, log_p in head_rows(self._runner, part):
            bases = self._observed[part.start + low : part.start + high]
            known = np.flatnonzero((bases >= FIRST_BASE) & (bases < FIRST_BASE + 4))
            result[low + known] = log_p[known, bases[known]]
        return result

    def pool(self, spans: Iterable[tuple[int, int]]) -> Sum:
        """Sum over stretches [low, high) between edges."""
        total, likelihood, count = np.zeros(self._hidden.shape[1]), 0.0, 0
        for low, high in spans:
            first, last = (int(np.searchsorted(self._edges, edge)) for edge in (low, high))
            assert self._edges[first] == low and self._edges[last] == high
            total += self._hidden[last] - self._hidden[first]
            likelihood += float(self._likelihood[last] - self._likelihood[first])
            count += high - low
        return total, likelihood, count
