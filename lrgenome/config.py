"""Frozen settings of models, and the named presets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lrgenome.dna import VOCAB_SIZE
from lrgenome.errors import UsageError

HAWK = "hawk"
_HALF_LIFE_LIMIT = 1e12


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
    vocab: int = VOCAB_SIZE
    """Token ids."""
    family: str = HAWK
    """Which architecture these settings are for."""

    def __post_init__(self) -> None:
        for name in ("layers", "width", "recurrent_width", "heads", "mlp_width", "conv_width", "vocab"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UsageError(f"model setting {name}: got {value!r}, expected a positive whole number")
        if self.family != HAWK:
            raise UsageError(f"model setting family: got {self.family!r}, expected {HAWK!r}")
        if self.recurrent_width % self.heads:
            raise UsageError(
                f"model setting heads: got {self.heads}, expected a divisor of recurrent_width {self.recurrent_width}"
            )
        if self.conv_width < 2:
            raise UsageError(f"model setting conv_width: got {self.conv_width}, expected at least 2")
        if self.vocab < VOCAB_SIZE:
            raise UsageError(f"model setting vocab: got {self.vocab}, expected at least {VOCAB_SIZE}")
        life = self.half_life_max
        if life is not None and not (isinstance(life, int | float) and 2 < life <= _HALF_LIFE_LIMIT):
            raise UsageError(f"--half-life-max: got {life!r}, expected more than 2 bp and at most {_HALF_LIFE_LIMIT:g}")

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


ModelConfig = HawkConfig

PRESETS: dict[str, ModelConfig] = {
    # The paper's Hawk (appendix A), projections tied between directions: 56.7 M parameters.
    "hawk-50m": HawkConfig(layers=12, width=576, recurrent_width=768, heads=6, mlp_width=1728),
    # The embedded default: small enough to score thousands of variants on two CPU cores.
    "hawk-mini": HawkConfig(
        layers=4, width=192, recurrent_width=256, heads=4, mlp_width=576, half_life_max=12_000.0
    ),
}


def preset(name: str) -> ModelConfig:
    """Return the preset of that name; `UsageError` if there is none."""
    if name not in PRESETS:
        raise UsageError(f"--preset: got {name!r}, expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def config_from_json(values: object) -> ModelConfig:
    """Read model settings from decoded JSON; `UsageError` names what is missing, unknown or impossible."""
    if not isinstance(values, dict):
        raise UsageError(f"model settings: got {type(values).__name__}, expected an object")
    known = {field.name for field in dataclasses.fields(HawkConfig)}
    needed = {f.name for f in dataclasses.fields(HawkConfig) if f.default is dataclasses.MISSING}
    if unknown := sorted(set(values) - known):
        raise UsageError(f"model settings: unknown {', '.join(unknown)}; expected {', '.join(sorted(known))}")
    if missing := sorted(needed - set(values)):
        raise UsageError(f"model settings: missing {', '.join(missing)}")
    return HawkConfig(**values)
