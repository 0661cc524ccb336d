"""The masked-language-model objective.

15 % of the bases are targets; of these 80 % are replaced by [MASK], 10 % by a random base, 10 % are kept (Devlin
et al. 2019, as in the paper's appendix A). N and padding are never targets. Unlike Caduceus, the random
replacement is one of the four bases, not any token id: special tokens never occur in a genome.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.nn.functional import cross_entropy

from lrgenome import kmers
from lrgenome.config import ModelConfig, NucleotideTransformerConfig
from lrgenome.dna import FIRST_BASE, MASK, IdArray
from lrgenome.errors import UsageError
from lrgenome.training.repeats import write_repeat

MASK_SHARE = 0.8
RANDOM_SHARE = 0.1


class Masked(NamedTuple):
    """A corrupted window."""

    ids: npt.NDArray[np.integer]
    """(t,) input: uint8 bases, or int64 tokens."""
    targets: np.ndarray
    """(t,) bool: positions whose true base or token the loss asks for."""


def corrupt(ids: IdArray, rng: np.random.Generator, fraction: float, spared: slice | None = None) -> Masked:
    """Choose targets among the bases A, C, G, T of a window (t,), but for `spared` ones, and corrupt them."""
    eligible = (ids >= FIRST_BASE) & (ids < FIRST_BASE + 4)
    if spared is not None:
        eligible[spared] = False
    targets = eligible & (rng.random(ids.shape) < fraction)
    how = rng.random(ids.shape)
    random_bases = rng.integers(FIRST_BASE, FIRST_BASE + 4, ids.shape, dtype=np.uint8)
    corrupted = ids.copy()
    corrupted[targets & (how < MASK_SHARE)] = MASK
    swap = targets & (how >= MASK_SHARE) & (how < MASK_SHARE + RANDOM_SHARE)
    corrupted[swap] = random_bases[swap]
    return Masked(corrupted, targets)


def corrupt_tokens(tokens: npt.NDArray[np.int64], rng: np.random.Generator, fraction: float) -> Masked:
    """Choose targets among the 6-mers and single bases of a window's tokens (n,) and corrupt them; N never is one.

    A random replacement is one of the 6-mers.
    """
    eligible = (tokens >= kmers.FIRST_KMER) & (tokens != kmers.SINGLE_N)
    targets = eligible & (rng.random(tokens.shape) < fraction)
    how = rng.random(tokens.shape)
    random_kmers = rng.integers(kmers.FIRST_KMER, kmers.FIRST_SINGLE, tokens.shape)
    corrupted = tokens.copy()
    corrupted[targets & (how < MASK_SHARE)] = kmers.MASK
    swap = targets & (how >= MASK_SHARE) & (how < MASK_SHARE + RANDOM_SHARE)
    corrupted[swap] = random_kmers[swap]
    return Masked(corrupted, targets)


def tokens_of(config: ModelConfig, length: int) -> int:
    """Return the tokens of a window of `length` bp without N."""
    if isinstance(config, NucleotideTransformerConfig) and config.kmers:
        return 1 + length // kmers.K + length % kmers.K
    return length


def masked_example(
    config: ModelConfig, bases: IdArray, rng: np.random.Generator, fraction: float
) -> tuple[npt.NDArray[np.integer], Masked]:
    """Return what a model with these settings reads of a window of bases (t,), true and corrupted: bases or 6-mers."""
    if isinstance(config, NucleotideTransformerConfig) and config.kmers:
        tokens = kmers.tokenize(bases).ids
        return tokens, corrupt_tokens(tokens, rng, fraction)
    return bases, corrupt(bases, rng, fraction)


def training_example(
    config: ModelConfig, bases: IdArray, rng: np.random.Generator, fraction: float, repeats: float
) -> tuple[npt.NDArray[np.integer], Masked]:
    """Return what `masked_example` does, for a share `repeats` of windows with a repeat written into them."""
    if repeats and rng.random() < repeats:
        if isinstance(config, NucleotideTransformerConfig) and config.kmers:
            raise UsageError("--repeats is of models that read single bases; this one reads 6-mers")
        written = write_repeat(bases, rng)
        return written.ids, corrupt(written.ids, rng, fraction, written.first)
    return masked_example(config, bases, rng, fraction)


def masked_losses(logits: Tensor, truth: Tensor) -> Tensor:
    """Return (n,) float32 cross-entropies in nats for (n, v) logits at targets with true ids (n,)."""
    return cross_entropy(logits, truth.long(), reduction="none")
