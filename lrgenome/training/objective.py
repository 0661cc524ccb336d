"""The masked-language-model objective.

15 % of the bases are targets; of these 80 % are replaced by [MASK], 10 % by a random base, 10 % are kept (Devlin
et al. 2019, as in the paper's appendix A). N and padding are never targets. Unlike Caduceus, the random
replacement is one of the four bases, not any token id: special tokens never occur in a genome.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.nn.functional import cross_entropy

from lrgenome.dna import FIRST_BASE, MASK, IdArray

MASK_SHARE = 0.8
RANDOM_SHARE = 0.1


class Masked(NamedTuple):
    """A corrupted window."""

    ids: IdArray
    """(t,) uint8 input."""
    targets: np.ndarray
    """(t,) bool: positions whose true base the loss asks for."""


def corrupt(ids: IdArray, rng: np.random.Generator, fraction: float) -> Masked:
    """Choose targets among the bases A, C, G, T of a window (t,) and corrupt them."""
    eligible = (ids >= FIRST_BASE) & (ids < FIRST_BASE + 4)
    targets = eligible & (rng.random(ids.shape) < fraction)
    how = rng.random(ids.shape)
    random_bases = rng.integers(FIRST_BASE, FIRST_BASE + 4, ids.shape, dtype=np.uint8)
    corrupted = ids.copy()
    corrupted[targets & (how < MASK_SHARE)] = MASK
    swap = targets & (how >= MASK_SHARE) & (how < MASK_SHARE + RANDOM_SHARE)
    corrupted[swap] = random_bases[swap]
    return Masked(corrupted, targets)


def masked_losses(logits: Tensor, truth: Tensor) -> Tensor:
    """Return (n,) float32 cross-entropies in nats for (n, v) logits at targets with true ids (n,)."""
    return cross_entropy(logits, truth.long(), reduction="none")
