"""From settings to a model: one function an architecture."""

from __future__ import annotations

import torch

from lrgenome.config import CaduceusConfig, HawkConfig, ModelConfig
from lrgenome.models.caduceus import Caduceus
from lrgenome.models.hawk import Hawk
from lrgenome.models.nucleotide_transformer import NucleotideTransformer

Recurrent = Hawk | Caduceus
"""Models that stream their windows through the sweeps."""

Model = Hawk | Caduceus | NucleotideTransformer


def build(config: ModelConfig, *, seed: int | None = None) -> Model:
    """Make a model with fresh weights; with `seed`, the same ones each time, global random state untouched."""
    if seed is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build(config)
    if isinstance(config, HawkConfig):
        return Hawk(config)
    if isinstance(config, CaduceusConfig):
        return Caduceus(config)
    return NucleotideTransformer(config)
