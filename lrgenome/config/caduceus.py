"""Settings of a Caduceus."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from lrgenome.config.common import check_counts, check_family, check_flags
from lrgenome.dna import VOCAB_SIZE
from lrgenome.errors import UsageError

CADUCEUS = "caduceus"


@dataclass(frozen=True)
class CaduceusConfig:
    """Shape of a Caduceus (Schiff et al. 2024, arXiv:2403.03234): bidirectional Mamba blocks."""

    layers: int
    """Residual blocks, each a norm and a mixer."""
    width: int
    """Model width d (of one strand)."""
    equivariant: bool = False
    """Caduceus-PS: both strands run side by side with the same weights, and the head adds them up."""
    crossed_end: bool = False
    """The strands change places before the final norm: published PS weights with an odd number of layers."""
    tied: bool = True
    """The head multiplies by the embedding rather than by a matrix of its own."""
    state: int = 16
    """State size n of each channel."""
    expand: int = 2
    """Recurrent width e over d."""
    dt_rank: int = 0
    """Rank r of the step size's projection; 0 is ceil(d / 16)."""
    conv_width: int = 4
    """Taps of the convolution before the recurrence."""
    dt_min: float = 1e-3
    """Least initial step size, where the recurrence's timescales come from."""
    dt_max: float = 0.1
    """Largest initial step size."""
    vocab: int = VOCAB_SIZE
    """Token ids."""
    family: str = CADUCEUS
    """Which architecture these settings are for."""

    def __post_init__(self) -> None:
        check_counts(self, "layers", "width", "state", "expand", "conv_width", "vocab")
        check_flags(self, "equivariant", "crossed_end", "tied")
        check_family(self, CADUCEUS)
        if self.dt_rank == 0 and not isinstance(self.dt_rank, bool):
            object.__setattr__(self, "dt_rank", -(-self.width // 16))
        check_counts(self, "dt_rank")
        if self.conv_width < 2:
            raise UsageError(f"model setting conv_width: got {self.conv_width}, expected at least 2")
        if self.vocab < VOCAB_SIZE:
            raise UsageError(f"model setting vocab: got {self.vocab}, expected at least {VOCAB_SIZE}")
        if self.crossed_end and not self.equivariant:
            raise UsageError("model setting crossed_end: got true, expected false in a model that is not equivariant")
        steps = (self.dt_min, self.dt_max)
        if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in steps) or not (
            0 < self.dt_min <= self.dt_max < math.inf
        ):
            raise UsageError(f"model settings dt_min, dt_max: got {steps}, expected 0 < dt_min <= dt_max")

    @property
    def recurrent_width(self) -> int:
        """Width e of the recurrence and of the gate branch."""
        return self.expand * self.width

    @property
    def parameters(self) -> int:
        """Number of weights of a model with these settings, without making it."""
        d, e, n, r = self.width, self.recurrent_width, self.state, self.dt_rank
        direction = self.conv_width * e + e + (r + 2 * n) * e + e * r + e + e * n + e
        embeddings = self.vocab * d * (1 if self.tied else 2)
        return embeddings + self.layers * (d + 2 * e * d + 2 * direction + d * e) + d

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return dataclasses.asdict(self)
