"""Per-position losses: their mean, and how sure that mean is."""

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]

BLOCK = 10_000
"""Block of the bootstrap, in bp."""


def mean_loss(losses: FloatArray) -> float:
    """Mean over the positions that have a loss, nats/bp."""
    return float(np.nanmean(losses, dtype=np.float64))


def bootstrap_interval(
    losses: FloatArray, block: int = BLOCK, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of the mean loss by resampling whole blocks of neighbouring positions.

    Parameters
    ----------
    losses : (t,) float32
        Nats, NaN where there is none.
    block
        Block length, bp. Defaults to 10,000.
    resamples
        Number of resamples. Defaults to 2,000.
    seed
        Seed of the resampling. Defaults to 0.
    """
    edges = np.arange(0, len(losses), block)
    known = np.isfinite(losses)
    sums = np.add.reduceat(np.where(known, losses, 0).astype(np.float64), edges)
    sizes = np.add.reduceat(known.astype(np.int64), edges)
    draws = np.random.default_rng(seed).integers(len(edges), size=(resamples, len(edges)))
    means = sums[draws].sum(axis=1) / sizes[draws].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
