"""Statistics of results: means with bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap


class Interval(NamedTuple):
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float


def mean_interval(
    sums: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], *, resamples: int = 1000, seed: int = 0
) -> Interval:
    """Estimate a mean over blocks of unequal size, with a percentile bootstrap over the blocks.

    Parameters
    ----------
    sums, counts
        (n,) sum of the values and number of values of each block; blocks are the independent units.
    resamples
        Bootstrap samples.
    seed
        Of the resampling.

    Raises
    ------
    ValueError
        If there are fewer than two blocks with values.
    """
    keep = counts > 0
    sums, counts = sums[keep], counts[keep]
    if len(sums) < 2:
        raise ValueError(f"got {len(sums)} blocks with values, expected at least 2")

    def ratio(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], axis: int = -1) -> npt.NDArray[np.float64]:
        return np.asarray(a.sum(axis=axis) / b.sum(axis=axis))

    result = bootstrap(
        (sums, counts), ratio, paired=True, vectorized=True, n_resamples=resamples, method="percentile",
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    interval = result.confidence_interval
    return Interval(float(sums.sum() / counts.sum()), float(interval.low), float(interval.high))


Floats = npt.NDArray[np.float64]


class Ranked:
    """Scores of binary labels, sorted once, so that weighted AUROC and AUPRC are cheap to take again and again.

    Parameters
    ----------
    labels, scores
        (n,) 0 or 1, and the higher the likelier 1.
    """

    def __init__(self, labels: npt.NDArray[Any], scores: npt.NDArray[Any]) -> None:
        self._order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
        ordered = np.asarray(scores, dtype=np.float64)[self._order]
        self._positive = np.asarray(labels)[self._order] > 0.5
        # Last of each run of equal scores.
        self._ends = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True]) if len(ordered) else np.zeros(0, int)

    def _counts(self, weights: Floats | None) -> tuple[Floats, Floats]:
        """Return true and false positives at each threshold."""
        own = np.ones(len(self._order)) if weights is None else np.asarray(weights, dtype=np.float64)[self._order]
        true = np.cumsum(np.where(self._positive, own, 0.0))[self._ends]
        false = np.cumsum(np.where(self._positive, 0.0, own))[self._ends]
        return true, false

    def auroc(self, weights: Floats | None = None) -> float:
        """Return the area under the ROC curve; ties count half; NaN where there is one class alone."""
        true, false = self._counts(weights)
        if not len(true) or true[-1] == 0 or false[-1] == 0:
            return float("nan")
        return _area(true, false) / float(true[-1] * false[-1])

    def auprc(self, weights: Floats | None = None) -> float:
        """Return the average precision; NaN where there is one class alone."""
        true, false = self._counts(weights)
        if not len(true) or true[-1] == 0 or false[-1] == 0:
            return float("nan")
        total = true + false
        precision = np.divide(true, total, out=np.zeros_like(true), where=total > 0)
        return float(np.sum(np.diff(np.r_[0.0, true]) * precision) / true[-1])

    def pairs(self) -> tuple[float, float]:
        """Return how many pairs of a positive and a negative are in order (ties half), and how many there are."""
        true, false = self._counts(None)
        if not len(true):
            return 0.0, 0.0
        return _area(true, false), float(true[-1] * false[-1])


def weighted_r2(labels: Floats, predictions: Floats, weights: Floats | None = None) -> float:
    """Return the share of variance that predictions (n, m) explain, mean over outputs; NaN labels are left out."""
    return float(np.nanmean([
        _r2(y, p, weights) for y, p in zip(labels.T, predictions.T, strict=True)
    ])) if labels.size else float("nan")  # fmt: skip


def _r2(y: Floats, p: Floats, weights: Floats | None) -> float:
    known = ~np.isnan(y)
    w = np.ones(int(known.sum())) if weights is None else weights[known]
    y, p = y[known], p[known]
    if w.sum() <= 0:
        return float("nan")
    spread = float((w * (y - (w * y).sum() / w.sum()) ** 2).sum())
    return 1.0 - float((w * (y - p) ** 2).sum()) / spread if spread > 0 else float("nan")


def weighted_correlation(labels: Floats, predictions: Floats, weights: Floats | None = None) -> float:
    """Return the mean over outputs of Pearson's correlation of (n, m) values; of ranks, it is Spearman's."""
    found = []
    for y, p in zip(labels.T, predictions.T, strict=True):
        known = ~np.isnan(y)
        w = np.ones(int(known.sum())) if weights is None else weights[known]
        if w.sum() <= 0:
            continue
        a, b = (v[known] - (w * v[known]).sum() / w.sum() for v in (y, p))
        spread = math.sqrt(float((w * a * a).sum()) * float((w * b * b).sum()))
        found.append(float((w * a * b).sum()) / spread if spread > 0 else float("nan"))
    return float(np.nanmean(found)) if len(found) and not np.isnan(found).all() else float("nan")


def resampled(
    metric: Callable[[Floats | None], float], units: npt.NDArray[np.int64], *, resamples: int, seed: int
) -> Floats:
    """Return a metric of weighted rows at each of some bootstrap samples: weights are how often each row is drawn.

    With one seed, metrics of the same rows see the same samples, so that their differences are paired.

    Parameters
    ----------
    metric
        Of (n,) weights.
    units
        (n,) number of the independent unit that each row belongs to, from 0; units are drawn, with all their rows.
    """
    rng = np.random.default_rng(seed)
    count = int(units.max()) + 1 if len(units) else 0
    return np.array([
        metric(np.bincount(rng.integers(0, count, count), minlength=count).astype(np.float64)[units])
        for _ in range(resamples)
    ])  # fmt: skip


def percentile_interval(value: float, samples: Floats) -> Interval:
    """Return an estimate with the 95 % percentile interval of its bootstrap samples."""
    known = samples[~np.isnan(samples)]
    if not len(known):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(known, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def _area(true: Floats, false: Floats) -> float:
    """Return the area under a curve of true against false positives, straight between its points."""
    above = np.r_[0.0, true]
    return float(np.sum(np.diff(np.r_[0.0, false]) * (above[1:] + above[:-1]) / 2.0))
