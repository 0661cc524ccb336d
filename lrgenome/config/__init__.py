"""Frozen settings of models, and the named presets."""

from __future__ import annotations

from lrgenome.config.caduceus import CADUCEUS, CaduceusConfig
from lrgenome.config.common import from_object
from lrgenome.config.hawk import HALF_LIFE_LIMIT, HAWK, HawkConfig
from lrgenome.config.nucleotide_transformer import NUCLEOTIDE_TRANSFORMER, NucleotideTransformerConfig
from lrgenome.dna import VOCAB_SIZE
from lrgenome.errors import UsageError

RecurrentConfig = HawkConfig | CaduceusConfig
ModelConfig = HawkConfig | CaduceusConfig | NucleotideTransformerConfig

FAMILIES: dict[str, type[ModelConfig]] = {
    HAWK: HawkConfig,
    CADUCEUS: CaduceusConfig,
    NUCLEOTIDE_TRANSFORMER: NucleotideTransformerConfig,
}

PRESETS: dict[str, ModelConfig] = {
    # The paper's Hawk (appendix A), projections tied between directions: 56.7 M parameters.
    "hawk-50m": HawkConfig(layers=12, width=576, recurrent_width=768, heads=6, mlp_width=1728),
    # The embedded default: small enough to score thousands of variants on two CPU cores.
    "hawk-mini": HawkConfig(
        layers=4, width=192, recurrent_width=256, heads=4, mlp_width=576, half_life_max=12_000.0
    ),
    # As large as hawk-mini, to compare architectures at an equal number of weights.
    "caduceus-mini": CaduceusConfig(layers=8, width=192),
    "caduceus-mini-ps": CaduceusConfig(layers=8, width=192, equivariant=True),
    # A rotary encoder of single bases; pretrain sets max_tokens to its window.
    "transformer-mini": NucleotideTransformerConfig(
        layers=5, width=192, heads=6, mlp_width=512, kmers=False, vocab=VOCAB_SIZE, tied=True, max_tokens=1
    ),
    # Schiff et al. 2024: the published shape (7.73 M parameters), and one of 50.5 M as in the paper's comparison.
    "caduceus-7.7m": CaduceusConfig(layers=16, width=256),
    "caduceus-7.7m-ps": CaduceusConfig(layers=16, width=256, equivariant=True),
    "caduceus-50m": CaduceusConfig(layers=18, width=640),
    "caduceus-50m-ps": CaduceusConfig(layers=18, width=640, equivariant=True),
    # 55.9 M parameters as published (InstaDeepAI/nucleotide-transformer-v2-50m-multi-species).
    "nt-v2-50m": NucleotideTransformerConfig(layers=12, width=512, heads=16, mlp_width=2048),
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
    family = values.get("family", HAWK)
    if not isinstance(family, str) or family not in FAMILIES:
        raise UsageError(f"model setting family: got {family!r}, expected one of {', '.join(FAMILIES)}")
    return from_object(FAMILIES[family], values, "model")


__all__ = [
    "CADUCEUS",
    "FAMILIES",
    "HALF_LIFE_LIMIT",
    "HAWK",
    "NUCLEOTIDE_TRANSFORMER",
    "PRESETS",
    "CaduceusConfig",
    "HawkConfig",
    "ModelConfig",
    "NucleotideTransformerConfig",
    "RecurrentConfig",
    "config_from_json",
    "preset",
]
