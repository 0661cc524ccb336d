"""Settings of a bidirectional Hawk."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from lrgenome.config.common import check_counts, check_family
from lrgenome.dna import VOCAB_SIZE
from lrgenome.errors import UsageError

HAWK = "hawk"
HALF_LIFE_LIMIT = 1e12
RING = (0.9, 0.999)
"""Radii between which the channels of a Griffin begin."""
RING_HALF_LIFE = math.log(2.0) / (-4.0 * math.log(RING[1]))
"""Of the largest radius, in bp at a neutral gate: 173."""


@dataclass(frozen=True)
class HawkConfig:
    """Shape and initialisation of a bidirectional Hawk."""

    layers: int
    """Residual blocks, each a recurrent mixer and an MLP."""
    width: int
    """Model width d."""
    recurrent_width: int
    """Width e of the recurrence and of the gate branch."""
    heads: int
    """Blocks of the block-diagonal gate products; each is e / heads wide."""
    mlp_width: int
    """Width f of the gated MLP."""
    conv_width: int = 4
    """Taps of the convolution before the recurrence."""
    half_life_max: float | None = None
    """None: initial radii on the ring 0.9 - 0.999 of the Griffin paper. A number: initial half-lives
    log-uniform from 2 bp up to it, in bp at a neutral gate."""
    half_life_share: float = 1.0
    """Share of the channels of which `half_life_max` is. Below 1 theirs are log-uniform from the ring's longest
    (173 bp), and all other channels are on the ring."""
    vocab: int = VOCAB_SIZE
    """Token ids."""
    family: str = HAWK
    """Which architecture these settings are for."""

    def __post_init__(self) -> None:
        check_counts(self, "layers", "width", "recurrent_width", "heads", "mlp_width", "conv_width", "vocab")
        check_family(self, HAWK)
        if self.recurrent_width % self.heads:
            raise UsageError(
                f"model setting heads: got {self.heads}, expected a divisor of recurrent_width {self.recurrent_width}"
            )
        if self.conv_width < 2:
            raise UsageError(f"model setting conv_width: got {self.conv_width}, expected at least 2")
        if self.vocab < VOCAB_SIZE:
            raise UsageError(f"model setting vocab: got {self.vocab}, expected at least {VOCAB_SIZE}")
        life, share = self.half_life_max, self.half_life_share
        least = 2 if share == 1 else RING_HALF_LIFE
        if life is not None and not (isinstance(life, int | float) and least < life <= HALF_LIFE_LIMIT):
            raise UsageError(
                f"--half-life-max: got {life!r}, expected more than {least:.4g} bp and at most {HALF_LIFE_LIMIT:g}"
            )
        if isinstance(share, bool) or not (isinstance(share, int | float) and 0 < share <= 1):
            raise UsageError(f"--half-life-share: got {share!r}, expected more than 0 and at most 1")
        if life is None and share != 1:
            raise UsageError(f"--half-life-share: got {share!r}, expected --half-life-max with it")
        if share * min(self.recurrent_width, 1 << 53) < 1:  # a float cannot hold every width
            raise UsageError(
                f"--half-life-share: got {share!r}, expected at least one of {self.recurrent_width} channels"
            )

    @property
    def head_width(self) -> int:
        """Width w of one head."""
        return self.recurrent_width // self.heads

    @property
    def parameters(self) -> int:
        """Number of weights of a model with these settings, without making it."""
        d, e, f = self.width, self.recurrent_width, self.mlp_width
        direction = self.conv_width * e + e + 2 * e * self.head_width + 2 * e + e
        mixer = d + 2 * (e * d + e) + 2 * direction + d * e + d
        mlp = d + 2 * f * d + 2 * f + d * f + d
        return self.vocab * d + self.layers * (mixer + mlp) + d

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return dataclasses.asdict(self)
