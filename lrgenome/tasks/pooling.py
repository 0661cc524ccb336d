"""From hidden states and log-probabilities of a span to what two alleles are compared by."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lrgenome.dna import FIRST_BASE, IdArray


class Pooled(NamedTuple):
    """A span of a sequence."""

    mean: npt.NDArray[np.float64]
    """(w,) mean hidden state."""
    log_likelihood: float
    """Sum of the log-probabilities of its bases."""


def pool(hidden: Tensor, log_p: npt.NDArray[np.float64], bases: IdArray) -> Pooled:
    """Pool hidden states (n, w) and log-probabilities (n, v) of a span, its bases (n,) as the strand reads them.

    Bases that are none of A, C, G, T do not count in the likelihood.
    """
    known = np.flatnonzero((bases >= FIRST_BASE) & (bases < FIRST_BASE + 4))
    total = hidden.double().sum(0).cpu().numpy()
    return Pooled(np.asarray(total) / max(1, len(bases)), float(log_p[known, bases[known]].sum()))


def distances(u: npt.NDArray[np.float64], v: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return cosine distance and L2 distance of two (d,) vectors.

    1 - cos(u, v) is computed as half the squared distance of the unit vectors, which does not cancel when they
    are close.
    """
    norm_u, norm_v = math.sqrt(float(u @ u)), math.sqrt(float(v @ v))
    l2 = float(np.linalg.norm(v - u))
    if norm_u == 0.0 or norm_v == 0.0:
        return (0.0 if l2 == 0.0 else 1.0), l2
    gap = v / norm_v - u / norm_u
    return 0.5 * float(gap @ gap), l2
