"""Smoothing of one level: windows of l bases, the base, r bases.

Each level is interpolated with the one below it. The weight depends on the level and on a bucket of the
context: its count, and the G statistic of its base counts against the lower level (gene finders such as
Glimmer weigh their orders by a chi-squared test in the same way). One weight a bucket is fitted to the
validation bases.
"""

import numba
import numpy as np

from baselines.counting import KmerCounts, digit, last
from baselines.losses import FloatArray
from lrgenome.dna import IdArray

N_COUNT_BUCKETS = 40
"""Half powers of two of a context's count."""

N_G_BUCKETS = 9
"""Powers of two of the G statistic."""


@numba.njit(cache=True)
def _context(counts, prior, start, stride):
    """Count and bucket (-1 if unseen) of the context whose four windows lie at ``start + x * stride``."""
    total = 0.0
    for x in range(4):
        total += counts[start + x * stride]
    if total == 0:
        return total, -1
    g = 0.0
    for x in range(4):
        count = counts[start + x * stride]
        if count > 0:
            g += count * np.log(count / (total * prior[start + x * stride]))
    by_count = min(int(2 * np.log2(total)), N_COUNT_BUCKETS - 1)
    by_g = 0 if g < 1 else min(int(np.log2(g)) + 1, N_G_BUCKETS - 1)
    return total, by_count * N_G_BUCKETS + by_g


@numba.njit(cache=True)
def _observe(ids, left, right, counts, prior, bucket, frequency, lower):
    """Bucket, relative frequency and lower-level probability of the base in each clean window of ``ids``."""
    width = left + 1 + right
    shift = 2 * right
    stride = np.int64(1) << shift
    code, run, n = np.int64(0), 0, 0
    for i in range(len(ids)):
        base = digit(ids[i])
        if base < 0:
            code, run = np.int64(0), 0
            continue
        code = last((code << 2) | base, width)
        run += 1
        if run < width:
            continue
        start = code - (((code >> shift) & 3) << shift)
        total, bucket[n] = _context(counts, prior, start, stride)
        frequency[n] = counts[code] / total if total > 0 else 0.0
        lower[n] = prior[code]
        n += 1
    return n


@numba.njit(cache=True)
def _fit_weights(bucket, frequency, lower):
    """Weight of the relative frequency in each bucket, by bisection of the (concave) likelihood's slope.

    A Beta(1.5, 1.5) prior keeps weights off 0 and 1. A bucket that validation never meets gets n / (n + 20).
    """
    n_buckets = N_COUNT_BUCKETS * N_G_BUCKETS
    low, high = np.zeros(n_buckets), np.ones(n_buckets)
    met = np.zeros(n_buckets, dtype=np.bool_)
    for b in bucket:
        if b >= 0:
            met[b] = True
    for _ in range(16):
        weights = 0.5 * (low + high)
        slope = 0.5 / weights - 0.5 / (1 - weights)
        for i in range(len(bucket)):
            b = bucket[i]
            if b >= 0:
                slope[b] += (frequency[i] - lower[i]) / (
                    weights[b] * frequency[i] + (1 - weights[b]) * lower[i]
                )
        for b in range(n_buckets):
            if slope[b] > 0:
                low[b] = weights[b]
            else:
                high[b] = weights[b]
    weights = 0.5 * (low + high)
    for b in range(n_buckets):
        if not met[b]:
            count = 2.0 ** ((b // N_G_BUCKETS) / 2)
            weights[b] = count / (count + 20)
    return weights


@numba.njit(cache=True)
def _smooth(counts, table, left, right, weights):
    """Turn a table of lower-level probabilities into those of this level, in place."""
    stride = np.int64(1) << (2 * right)
    for head in range(np.int64(1) << (2 * left)):
        for tail in range(stride):
            start = head * 4 * stride + tail
            total, bucket = _context(counts, table, start, stride)
            if bucket < 0:
                continue
            weight = weights[bucket]
            for x in range(4):
                j = start + x * stride
                table[j] = weight * counts[j] / total + (1 - weight) * table[j]


def smooth_level(counts: KmerCounts, prior: FloatArray, left: int, right: int, validation: IdArray) -> float:
    """Smooth one level: p = w count / total + (1 - w) prior, with w fitted to validation, in place.

    Parameters
    ----------
    counts
        Counts of k-mers at least ``left + 1 + right`` wide.
    prior : (4^(left + 1 + right),) float32
        Lower-level probability of the base in each window; becomes the probability of this level.
    left, right
        Bases of context on either side.
    validation : (t,) uint8
        Token ids.

    Returns
    -------
    float
        Loss on the clean windows of validation, nats/bp; NaN if there are none.
    """
    table = counts.table(left + 1 + right)
    bucket = np.empty(len(validation), dtype=np.int32)
    frequency = np.empty(len(validation), dtype=np.float32)
    lower = np.empty(len(validation), dtype=np.float32)
    n = _observe(validation, left, right, table, prior, bucket, frequency, lower)
    bucket, frequency, lower = bucket[:n], frequency[:n], lower[:n]
    weights = _fit_weights(bucket, frequency, lower)
    _smooth(table, prior, left, right, weights)
    weight = np.where(bucket >= 0, weights[bucket], 0.0)
    return float(-np.log(weight * frequency + (1 - weight) * lower).mean()) if n else float("nan")
