"""Places where masked bases are predicted with more and more of their surroundings."""

from __future__ import annotations

from typing import NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt
import torch

from lrgenome.dna import FIRST_BASE, MASK, IdArray, N
from lrgenome.engine.runners import AnyRunner
from lrgenome.errors import InputError, NumericalError
from lrgenome.io.fasta import Fasta
from lrgenome.tasks.selection import Regions

MASK_FRACTION = 0.15
_MOST_N = 0.05
"""Share of N in the longest window of a site."""
FloatArray = npt.NDArray[np.float64]


class Site(NamedTuple):
    """A place, and the bases there that are masked."""

    contig: str
    centre: int
    """0-based."""
    targets: npt.NDArray[np.int64]
    """(n,) offsets from the centre, rising."""

    def window(self, length: int) -> tuple[int, int]:
        """Return the window of `length` bp around it, 0-based half-open; the centre is its base length // 2."""
        return self.centre - length // 2, self.centre - length // 2 + length


def choose_sites(
    fasta: Fasta, regions: Regions | None, *, longest: int, target: int, count: int, seed: int
) -> list[Site]:
    """Choose places evenly spaced over regions, around which `longest` bp lie on the contig and are mostly not N.

    Parameters
    ----------
    longest
        Longest window, bp.
    target
        Bases around the centre of which 15 % are masked, the same for every window.
    count
        How many.
    seed
        Of the choice of masked bases.

    Raises
    ------
    InputError
        If no place has so much around it.
    """
    half = longest // 2 + 1
    spans = [
        (contig, max(start, half), min(end, size - half))
        for contig, size in fasta.contigs.items()
        for start, end in ([(0, size)] if regions is None else regions.spans.get(contig, []))
    ]
    spans = [span for span in spans if span[1] < span[2]]
    total = sum(end - start for _, start, end in spans)
    if not total:
        raise InputError(
            f"{fasta.path}: no place has {longest:,} bp around it; choose shorter --lengths or another --region"
        )
    sites: list[Site] = []
    # More places than are wanted, since some lie in runs of N; of those that do not, evenly spaced ones.
    tried = np.unique(np.linspace(0, total - 1, 4 * count + 1).astype(np.int64))
    for place in tried:
        contig, centre = _at(spans, int(place))
        low, high = centre - longest // 2, centre - longest // 2 + longest
        if np.count_nonzero(fasta.fetch(contig, low, high) == N) > _MOST_N * longest:
            continue
        rng = np.random.default_rng([seed, crc32(contig.encode()), centre])
        around = fasta.fetch(contig, centre - target // 2, centre - target // 2 + target)
        known = (around >= FIRST_BASE) & (around < FIRST_BASE + 4)
        chosen = np.flatnonzero(known & (rng.random(target) < MASK_FRACTION))
        if len(chosen):
            sites.append(Site(contig, centre, chosen - target // 2))
    if len(sites) < 2:
        raise InputError(
            f"{fasta.path}: got {len(sites)} places with {longest:,} bp around them that are not N, expected at least 2"
        )
    keep = np.unique(np.linspace(0, len(sites) - 1, count).round().astype(int))
    return [sites[i] for i in keep]


def _at(spans: list[tuple[str, int, int]], place: int) -> tuple[str, int]:
    for contig, start, end in spans:
        if place < end - start:
            return contig, start + place
        place -= end - start
    raise AssertionError


def masked_window(bases: IdArray, targets: npt.NDArray[np.int64], centre: int) -> IdArray:
    """Return a copy of a window with the bases at `targets` from its `centre` masked."""
    ids = bases.copy()
    ids[centre + targets] = MASK
    return ids


def target_losses(runner: AnyRunner, ids: IdArray, truth: IdArray, at: npt.NDArray[np.int64]) -> FloatArray:
    """Return what a model loses at bases `at` of a window, (n,) nats, among A, C, G and T alone.

    Parameters
    ----------
    ids
        (t,) the window, masked.
    truth
        (n,) true bases.
    at
        (n,) rising.
    """
    log_p = target_log_probabilities(runner, ids, at)
    losses = -log_p[np.arange(len(at)), truth.astype(np.int64) - FIRST_BASE]
    if not np.isfinite(losses).all():
        raise NumericalError("the model gave log-probabilities that are not finite numbers")
    return np.asarray(losses)


def target_log_probabilities(runner: AnyRunner, ids: IdArray, at: npt.NDArray[np.int64]) -> FloatArray:
    """Return (n, 4) log-probabilities of A, C, G and T at bases `at` of a window (t,)."""
    if len(at) and not (0 <= at[0] and at[-1] < len(ids)):
        raise ValueError(f"got bases {at[0]} to {at[-1]}, expected them inside the window of {len(ids)}")
    found = np.full((len(at), 4), np.nan)
    for part in runner.stream(torch.from_numpy(ids)[None]):
        first, last = np.searchsorted(at, [part.start, part.end])
        if first == last:
            continue
        low, high = int(at[first]) - part.start, int(at[last - 1]) + 1 - part.start
        rows = runner.log_probabilities(part, 0, low, high)[at[first:last] - part.start - low]
        found[first:last] = rows[:, FIRST_BASE : FIRST_BASE + 4]
    return found - np.logaddexp.reduce(found, axis=1, keepdims=True)
