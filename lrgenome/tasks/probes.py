"""Whether a model uses what lies far away: ablation, reach, timescales, recall and drift of its states.

Far bases are swapped for those of another place, not cut off: cutting also changes how far the edge of the sequence is,
which models trained from empty states over-react to (Buitrago and Gu 2025, arXiv:2507.02782).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lrgenome.dna import FIRST_BASE, MASK, IdArray, reverse_complement
from lrgenome.engine.boundary_states import Boundaries
from lrgenome.engine.runner import Runner
from lrgenome.engine.runners import AnyRunner
from lrgenome.engine.timescales import half_lives
from lrgenome.errors import UsageError
from lrgenome.io.fasta import Fasta
from lrgenome.metrics import mean_interval
from lrgenome.tasks.sites import Site, masked_window, target_log_probabilities, target_losses

log = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]
Rows = Iterator[dict[str, Any]]
NEAR = 50
"""Masked bases within so many of the centre are looked at for reach."""
SEGMENT = 64
"""Bases of a repeat."""
EVERY = 7
"""Of a repeat's second copy every seventh base is masked."""
DIVERGED = 0.05
DRIFT = 2.0
"""Norm of states over its mean within the training length, from which it is called a drift."""
_STEPS = 64


class Setting(NamedTuple):
    """What a probe looks at."""

    model: str
    runner: AnyRunner
    fasta: Fasta
    sites: Sequence[Site]
    """With `longest` around each."""
    longest: int
    trained: int
    """Training length, or what stands for it, bp."""
    seed: int
    near: int | None = None
    """Bases that count as near, if not as many as a training window."""

    def window(self, number: int, length: int) -> IdArray:
        """Return the true bases around a site."""
        site = self.sites[number]
        return self.fasta.fetch(site.contig, *site.window(length))

    def donor(self, number: int, length: int) -> IdArray:
        """Return the bases around another site, half of all sites away."""
        return self.window((number + max(1, len(self.sites) // 2)) % len(self.sites), length)


def swapped(ids: IdArray, donor: IdArray, low: int, high: int) -> IdArray:
    """Return a window in which all but [low, high) is the donor's."""
    out = donor.copy()
    out[low:high] = ids[low:high]
    return out


def context(at: Setting) -> Rows:
    """Compare the loss with all states carried, with none from beyond the near bases, and with these swapped.

    ``carry``: the whole window. ``reset``: the near bases alone, states empty at their edges. ``swap``: the whole
    window, all but the near bases of another place. The near bases are as many as a training window, unless
    `Setting.near` says otherwise, and no more than half of the window.
    """
    # All masked bases have to lie well within the near ones.
    spread = 4 * max(int(np.abs(site.targets).max()) for site in at.sites)
    length, near = at.longest, at.near or min(max(at.trained, spread), at.longest // 2)
    if length < 2 * spread:
        raise UsageError(
            f"--probe context: got windows of {length} bp, expected at least {2 * spread}, or a smaller --target"
        )
    if not spread <= near <= length // 2:
        raise UsageError(
            f"--near: got {near} bp, expected {spread} to {length // 2} with windows of {length} bp and this --target"
        )
    low = length // 2 - near // 2
    sums: dict[str, list[float]] = {"carry": [], "reset": [], "swap": []}
    counts = []
    for number, site in enumerate(at.sites):
        truth = at.window(number, length)
        place = site.targets + length // 2
        masked = masked_window(truth, site.targets, length // 2)
        counts.append(float(len(place)))
        kinds = {
            "carry": (masked, place), "reset": (masked[low : low + near], place - low),
            "swap": (swapped(masked, at.donor(number, length), low, low + near), place),
        }  # fmt: skip
        for name, (ids, where) in kinds.items():
            sums[name].append(float(target_losses(at.runner, ids, truth[place], where).sum()))
    n, carry = np.array(counts), np.array(sums["carry"])
    for name, values in sums.items():
        own, gap = mean_interval(np.array(values), n), mean_interval(np.array(values) - carry, n)
        yield {"model": at.model, "state": name, "length": length, "near": near, "loss": own.value, "low": own.low,
               "high": own.high, "over_carry": gap.value, "over_low": gap.low, "over_high": gap.high,
               "n": int(n.sum())}  # fmt: skip


def reach(at: Setting, *, most: int = 32_768) -> Rows:
    """Measure how much predictions at the centre change when all beyond +-k bp is swapped, on both sides or on one.

    ``tv`` is the total-variation distance between the distributions over A, C, G and T, ``llr`` the mean absolute
    change of the log-probability of the true base.
    """
    length = min(at.longest, most)
    sizes = [1 << k for k in range(4, length.bit_length()) if (1 << k) + NEAR < length // 2]
    found: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    for number, site in enumerate(at.sites):
        targets = site.targets[np.abs(site.targets) <= NEAR]
        if not len(targets):
            continue
        truth, donor, middle = at.window(number, length), at.donor(number, length), length // 2
        masked, place = masked_window(truth, targets, middle), targets + middle
        base = target_log_probabilities(at.runner, masked, place)
        true = truth[place].astype(np.int64) - FIRST_BASE
        for k in sizes:
            low, high = middle - NEAR - k, middle + NEAR + 1 + k
            for side, span in {"both": (low, high), "left": (low, length), "right": (0, high)}.items():
                other = target_log_probabilities(at.runner, swapped(masked, donor, *span), place)
                distance = 0.5 * np.abs(np.exp(base) - np.exp(other)).sum(1)
                change = np.abs((other - base)[np.arange(len(true)), true])
                found.setdefault((side, k), []).append((float(distance.sum()), float(change.sum()), float(len(true))))
    for side in ("both", "left", "right"):
        values = [np.array(found[side, k]) for k in sizes if (side, k) in found]
        curve = [float(v[:, 0].sum() / v[:, 2].sum()) for v in values]
        for k, v, tv in zip(sizes, values, curve, strict=False):
            own = mean_interval(v[:, 0], v[:, 2])
            held = next((size for size, now in zip(sizes, curve, strict=False) if now <= 0.05 * curve[0]), None)
            yield {"model": at.model, "side": side, "k": k, "tv": tv, "low": own.low, "high": own.high,
                   "llr": float(v[:, 1].sum() / v[:, 2].sum()), "reach95_bp": held if held is not None else -1,
                   "length": length, "n": int(v[:, 2].sum())}  # fmt: skip


def timescales(at: Setting, *, length: int = 8_192, windows: int = 4) -> Rows:
    """Give the median half-life of every state on real sequence; the last row sums up."""
    if not isinstance(at.runner, Runner):
        return
    size = min(length, at.longest)
    ids = torch.from_numpy(np.stack([at.window(i, size) for i in range(min(windows, len(at.sites)))]))
    lives = half_lives(at.runner.model, ids.to(at.runner.device))
    for one in lives:
        for channel, value in enumerate(one.values.reshape(len(one.values), -1)):
            for state, life in enumerate(value):
                yield {"model": at.model, "layer": one.layer, "direction": one.direction, "channel": channel,
                       "state": state, "half_life_bp": float(life)}  # fmt: skip


def summary_of_timescales(rows: Sequence[dict[str, Any]], trained: int) -> list[dict[str, Any]]:
    """Sum up half-lives a layer and direction: median, largest, and the share beyond a fifth of the training length."""
    groups: dict[tuple[str, int, str], list[float]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["layer"], row["direction"]), []).append(row["half_life_bp"])
    return [
        {"model": model, "layer": layer, "direction": direction, "median_bp": float(np.median(values)),
         "max_bp": max(values), "share_beyond_fifth": float(np.mean(np.array(values) > trained / 5)),
         "training_bp": trained}
        for (model, layer, direction), values in groups.items()
    ]  # fmt: skip


def recall(at: Setting, *, most: int = 32_768) -> Rows:
    """Measure what it helps to have seen a segment before: loss without it less loss with it, by distance.

    A copy of the 64 bases at the centre is written so many bp to their left: exact, with 5 % of its bases drawn anew,
    or reverse-complemented. Of the 64 at the centre every seventh is masked.
    """
    distances = [1 << k for k in range(7, at.longest.bit_length()) if 2 * (1 << k) + 4 * SEGMENT <= at.longest
                 and (1 << k) <= most]  # fmt: skip
    changes: dict[str, Callable[[IdArray, np.random.Generator], IdArray]] = {
        "exact": lambda ids, rng: ids,
        "diverged": _diverged,
        "reverse-complement": lambda ids, rng: reverse_complement(ids),
    }
    for distance in distances:
        length = min(at.longest, 2 * distance + 2_048)
        gaps: dict[str, list[tuple[float, float]]] = {name: [] for name in changes}
        for number in range(len(at.sites)):
            truth, middle = at.window(number, length), length // 2
            segment = truth[middle : middle + SEGMENT]
            places = middle + np.arange(number % EVERY, SEGMENT, EVERY)
            places = places[(truth[places] >= FIRST_BASE) & (truth[places] < FIRST_BASE + 4)]
            if not len(places):
                continue
            rng = np.random.default_rng([at.seed, number, distance])
            masked = truth.copy()
            masked[places] = MASK
            without = target_losses(at.runner, masked, truth[places], places).sum()
            for name, change in changes.items():
                ids = masked.copy()
                ids[middle - distance : middle - distance + SEGMENT] = change(segment, rng)
                gap = without - target_losses(at.runner, ids, truth[places], places).sum()
                gaps[name].append((float(gap), float(len(places))))
        for name, own in gaps.items():
            values = np.array(own)
            if len(values) > 1:
                gain = mean_interval(values[:, 0], values[:, 1])
                yield {"model": at.model, "repeat": name, "distance": distance, "advantage": gain.value,
                       "low": gain.low, "high": gain.high, "n": int(values[:, 1].sum())}  # fmt: skip


def _diverged(ids: IdArray, rng: np.random.Generator) -> IdArray:
    out = ids.copy()
    at = rng.random(len(ids)) < DIVERGED
    out[at] = rng.integers(FIRST_BASE, FIRST_BASE + 4, int(at.sum()), dtype=np.uint8)
    return out


def drift(at: Setting) -> Rows:
    """Follow the norm of every block's state along the longest window, over its mean within the training length."""
    if not isinstance(at.runner, Runner):
        return
    length = at.longest
    edges = np.unique(np.linspace(length // _STEPS, length - length // _STEPS, _STEPS - 1).astype(int)).tolist()
    norms = np.zeros((len(at.runner.model.stack), 2, len(edges)))
    count = min(4, len(at.sites))
    for number in range(count):
        kept = Boundaries(at.runner.model, length, edges)
        for _ in at.runner.stream(torch.from_numpy(at.window(number, length))[None], recorder=kept):
            pass
        for layer in range(norms.shape[0]):
            for way in (0, 1):
                states = kept.states(layer, way, edges).h[: len(edges)].flatten(1).double()
                norms[layer, way] += states.norm(dim=1).cpu().numpy() / count
        kept.close()
    seen = np.array([edges, [length - edge for edge in edges]])
    for layer in range(norms.shape[0]):
        for way, name in enumerate(("forward", "reverse")):
            within = seen[way] <= at.trained
            usual = norms[layer, way][within].mean() if within.any() else norms[layer, way][np.argmin(seen[way])]
            for edge, norm in zip(seen[way], norms[layer, way], strict=True):
                ratio = float(norm / max(usual, 1e-12))
                yield {"model": at.model, "layer": layer + 1, "direction": name, "bases_seen": int(edge),
                       "norm": float(norm), "over_training": ratio, "drift": int(ratio > DRIFT)}  # fmt: skip


PROBES: dict[str, Callable[[Setting], Rows]] = {
    "context": context,
    "reach": reach,
    "timescales": timescales,
    "recall": recall,
    "drift": drift,
}
"""Each yields the rows of its table; ``gain`` is computed of the losses by length."""
