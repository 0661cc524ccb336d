"""Settings of a Nucleotide Transformer v2."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lrgenome.config.common import check_counts, check_family, check_flags
from lrgenome.errors import UsageError

NUCLEOTIDE_TRANSFORMER = "nucleotide-transformer"
KMER_VOCAB = 4107
"""6 special tokens, 4,096 6-mers, 4 single bases and N."""


@dataclass(frozen=True)
class NucleotideTransformerConfig:
    """Shape of a Nucleotide Transformer v2 (Dalla-Torre et al. 2024): pre-norm encoder, rotary positions, gated MLP."""

    layers: int
    """Encoder blocks."""
    width: int
    """Model width d."""
    heads: int
    """Attention heads; each is d / heads wide."""
    mlp_width: int
    """Width of the gated MLP."""
    max_tokens: int = 2048
    """Longest input seen in training, in tokens, the first (CLS) included."""
    kmers: bool = True
    """6-mer tokens; false: one token a base, with the ids of `lrgenome.dna`."""
    vocab: int = KMER_VOCAB
    """Token ids."""
    tied: bool = False
    """The head multiplies by the embedding rather than by a matrix of its own."""
    norm_eps: float = 1e-5
    """Added to the variance in norms; the published checkpoints say 1e-12."""
    family: str = NUCLEOTIDE_TRANSFORMER
    """Which architecture these settings are for."""

    def __post_init__(self) -> None:
        check_counts(self, "layers", "width", "heads", "mlp_width", "max_tokens", "vocab")
        check_flags(self, "kmers", "tied")
        check_family(self, NUCLEOTIDE_TRANSFORMER)
        if self.width % self.heads or self.width // self.heads % 2:
            raise UsageError(
                f"model setting heads: got {self.heads}, expected a divisor of width {self.width} that leaves heads of "
                "an even width"
            )
        least = KMER_VOCAB if self.kmers else 12
        if self.vocab < least:
            raise UsageError(f"model setting vocab: got {self.vocab}, expected at least {least}")
        eps = self.norm_eps
        if not isinstance(eps, int | float) or isinstance(eps, bool) or not 0 < eps < 1:
            raise UsageError(f"model setting norm_eps: got {eps!r}, expected a number above 0 and below 1")

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.width // self.heads

    @property
    def parameters(self) -> int:
        """Number of weights of a model with these settings, without making it."""
        d, f = self.width, self.mlp_width
        block = 2 * d + 3 * (d * d + d) + d * d + d + 2 * d + 2 * f * d + d * f
        head = d * d + d + 2 * d + (0 if self.tied else self.vocab * d) + self.vocab
        return self.vocab * d + self.layers * block + 2 * d + head

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return dataclasses.asdict(self)
