"""Statistics of results: means with bootstrap intervals."""

from __future__ import annotations

from typing import NamedTuple

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
