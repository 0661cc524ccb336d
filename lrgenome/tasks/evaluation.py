"""Metrics of predictions, over all rows, in tissues, at distances and within groups, with intervals."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from lrgenome.io.examples import Examples
from lrgenome.metrics import (
    Interval,
    Ranked,
    mean_interval,
    percentile_interval,
    resampled,
    weighted_correlation,
    weighted_r2,
)

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]
RESAMPLES = 1000
_MOST = 2e7
"""Rows times bootstrap samples of one metric, from which fewer samples are taken."""
_FEWEST = 100
DISTANCES = (("0-30kbp", 0.0, 30_000.0), ("30-100kbp", 30_000.0, 100_000.0), ("100kbp+", 100_000.0, np.inf))
"""Buckets of the benchmark."""
_LEAST = 10
"""Rows of each class in a tissue or bucket of which metrics are taken."""


class MetricRow(NamedTuple):
    """One number of a report."""

    model: str
    subset: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    """Rows with a label."""
    positives: int
    """Labels that are 1; 0 for numbers."""
    over_baseline: Interval | None = None
    """How much more than the baseline's, at the same bootstrap samples."""


Metric = Callable[[Floats | None], float]


def metrics_of(kind: str, labels: Floats, predictions: Floats) -> dict[str, Metric]:
    """Return metrics of (n, m) labels and predictions, as functions of weights of the rows.

    Of binary labels, ``AUROC`` and ``AUPRC`` are of scores, the mean over outputs; with ``_HARD`` they are of labels
    cut at one half and flattened over outputs, which is what the benchmark's own code took; ``_MICRO`` are of
    flattened scores. Of numbers, ``R2`` is the mean over outputs.
    """
    if kind == "numbers":
        ranks = [np.stack([_ranks(v, labels[:, i]) for i, v in enumerate(of.T)], 1) for of in (labels, predictions)]
        return {
            "R2": lambda w: weighted_r2(labels, predictions, w),
            "PEARSON": lambda w: weighted_correlation(labels, predictions, w),
            "SPEARMAN": lambda w: weighted_correlation(ranks[0], ranks[1], w),
        }
    columns = []
    for y, p in zip(labels.T, predictions.T, strict=True):
        known = ~np.isnan(y)
        columns.append((Ranked(y[known], p[known]), known))

    def mean(area: Callable[[Ranked, Floats | None], float]) -> Metric:
        def metric(w: Floats | None) -> float:
            found = [area(ranked, None if w is None else w[known]) for ranked, known in columns]
            return float(np.nanmean(found)) if not np.isnan(found).all() else float("nan")

        return metric

    flat = ~np.isnan(labels)
    hard = Ranked(labels[flat], predictions[flat] > 0.5)
    micro = Ranked(labels[flat], predictions[flat]) if labels.shape[1] > 1 else None

    def spread(w: Floats | None) -> Floats | None:
        return None if w is None else np.broadcast_to(w[:, None], labels.shape)[flat]

    metrics: dict[str, Metric] = {
        "AUROC": mean(lambda ranked, w: ranked.auroc(w)), "AUPRC": mean(lambda ranked, w: ranked.auprc(w)),
        "AUROC_HARD": lambda w: hard.auroc(spread(w)), "AUPRC_HARD": lambda w: hard.auprc(spread(w)),
    }  # fmt: skip
    if micro is not None:
        metrics |= {"AUROC_MICRO": lambda w: micro.auroc(spread(w)), "AUPRC_MICRO": lambda w: micro.auprc(spread(w))}
    return metrics


def _ranks(values: Floats, labels: Floats) -> Floats:
    """Rank values of rows with a label; others are NaN."""
    found = np.full(len(values), np.nan)
    known = ~np.isnan(labels)
    found[known] = rankdata(values[known])
    return found


def evaluate(
    examples: Examples, predictions: Mapping[str, npt.NDArray[np.float32]], *, baseline: str | None, seed: int
) -> list[MetricRow]:
    """Take all metrics of all models on the same rows.

    Parameters
    ----------
    examples
        The rows that are evaluated.
    predictions
        By model, (n, [K,] m).
    baseline
        The one of them that the others are compared with.
    """
    rows: list[MetricRow] = []
    labels = _flat(examples.labels)
    found = {name: _flat(values) for name, values in predictions.items()}
    units = _units(examples)
    for subset, mask in _subsets(examples):
        repeat = len(labels) // max(1, len(examples))
        chosen = np.repeat(mask, repeat)
        rows += _of_subset(
            examples.kind, subset, labels[chosen], {n: v[chosen] for n, v in found.items()}, baseline, seed,
            np.repeat(units, repeat)[chosen],
        )  # fmt: skip
    if examples.group is not None:
        if examples.kind == "classes":
            rows += _within_groups(examples, found, baseline)
        else:
            log.warning("metrics within groups are of one binary label; these are %s", examples.kind)
    return rows


def _units(examples: Examples) -> npt.NDArray[np.int64]:
    """Return the number of the independent unit of each row: a window with all its bins, a variant in all tissues."""
    alts = examples.alt if examples.alt is not None else np.full(len(examples), "")
    places = zip(examples.contig, examples.start, examples.end, alts, strict=True)
    keys = ["\t".join(map(str, place)) for place in places]
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def _flat(values: npt.NDArray[np.float32]) -> Floats:
    """Make (n, m) of (n, m) or (n, K, m)."""
    return np.asarray(values, dtype=np.float64).reshape(-1, values.shape[-1])


def _subsets(examples: Examples) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    subsets = [("all", np.ones(len(examples), dtype=bool))]
    if examples.tissue is not None:
        subsets += [(f"tissue={name}", examples.tissue == i) for i, name in enumerate(examples.tissues)]
    if examples.distance is not None:
        with np.errstate(invalid="ignore"):
            far = np.abs(examples.distance)
            subsets += [(f"distance={name}", (far >= low) & (far < high)) for name, low, high in DISTANCES]
    return subsets


def _of_subset(
    kind: str, subset: str, labels: Floats, predictions: dict[str, Floats], baseline: str | None, seed: int,
    units: npt.NDArray[np.int64],
) -> list[MetricRow]:  # fmt: skip
    positives = int(np.nansum(labels > 0.5)) if kind != "numbers" else 0
    known = int((~np.isnan(labels)).any(1).sum())
    if subset != "all" and (
        len(labels) < 2 * _LEAST or (kind != "numbers" and not _LEAST <= positives <= labels.size - _LEAST)
    ):
        return []
    resamples = int(min(RESAMPLES, max(_FEWEST, _MOST // max(1, labels.size))))
    metrics = {name: metrics_of(kind, labels, values) for name, values in predictions.items()}
    units = np.unique(units, return_inverse=True)[1].astype(np.int64)
    samples = {
        name: {metric: resampled(of, units, resamples=resamples, seed=seed) for metric, of in own.items()}
        for name, own in metrics.items()
    }
    rows = []
    for name, own in metrics.items():
        for metric, of in own.items():
            value = percentile_interval(of(None), samples[name][metric])
            over = None
            if baseline in metrics and name != baseline:
                gap = samples[name][metric] - samples[baseline][metric]
                over = percentile_interval(value.value - metrics[baseline][metric](None), gap)
            rows.append(MetricRow(name, subset, metric, *value, known, positives, over))
    return rows


def _within_groups(examples: Examples, predictions: dict[str, Floats], baseline: str | None) -> list[MetricRow]:
    """Take the share of pairs of a positive and a negative of one group that are in order, groups resampled."""
    assert examples.group is not None
    truth = examples.labels[:, 0]
    names = [name for name in np.unique(examples.group) if name.strip() not in ("", ".", "NA")]
    members = [np.flatnonzero((examples.group == name) & ~np.isnan(truth)) for name in names]
    pairs = {
        name: np.array([Ranked(truth[of], values[of, 0]).pairs() for of in members]).reshape(-1, 2)
        for name, values in predictions.items()
    }
    rows = []
    both = next(iter(pairs.values()))[:, 1] > 0 if pairs else np.zeros(0, dtype=bool)
    if both.sum() < 2:
        return []
    n = int(sum(len(of) for of, counts in zip(members, both, strict=True) if counts))
    positives = int(sum(truth[of].sum() for of, counts in zip(members, both, strict=True) if counts))
    for name, own in pairs.items():
        value = mean_interval(own[:, 0], own[:, 1])
        over = None
        if baseline in pairs and name != baseline:
            over = mean_interval(own[:, 0] - pairs[baseline][:, 0], own[:, 1])
        rows.append(MetricRow(name, "within groups", "AUROC", *value, n, positives, over))
    return rows
