"""Published Nucleotide Transformer v2 checkpoints (Hugging Face's layout) as ours.

Every tensor of theirs is used exactly once or is one of those that the published code keeps and never reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lrgenome.config import NucleotideTransformerConfig
from lrgenome.errors import ModelError, UsageError
from lrgenome.models.nucleotide_transformer import NucleotideTransformer
from lrgenome.ops.rope import BASE

_COUNTS = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "vocab": "vocab_size",
}
_POSITIONS = "max_position_embeddings"
_EXPECTED = {
    "position_embedding_type": "rotary",
    "add_bias_fnn": False,
    "token_dropout": False,
    "emb_layer_norm_before": False,
}
_ALLOWED = {
    "rope_theta": BASE,
    "rope_scaling": None,
    "rope_parameters": {"rope_theta": BASE, "rope_type": "default"},
    "pad_token_id": 1,
    "mask_token_id": 2,
}
"""What other settings must say where they are given at all."""

_EMBEDDING = "esm.embeddings.word_embeddings.weight"
_DECODER = "lm_head.decoder.weight"
_TOP = {
    "embedding": _EMBEDDING,
    "final_norm.scale": "esm.encoder.emb_layer_norm_after.weight",
    "final_norm.shift": "esm.encoder.emb_layer_norm_after.bias",
    "head_weight": "lm_head.dense.weight",
    "head_bias": "lm_head.dense.bias",
    "head_norm.scale": "lm_head.layer_norm.weight",
    "head_norm.shift": "lm_head.layer_norm.bias",
    "decoder_weight": _DECODER,
    "decoder_bias": "lm_head.bias",
}
_BLOCK = {
    "attention_norm.scale": ("attention.LayerNorm.weight",),
    "attention_norm.shift": ("attention.LayerNorm.bias",),
    "qkv_weight": ("attention.self.query.weight", "attention.self.key.weight", "attention.self.value.weight"),
    "qkv_bias": ("attention.self.query.bias", "attention.self.key.bias", "attention.self.value.bias"),
    "out_weight": ("attention.output.dense.weight",),
    "out_bias": ("attention.output.dense.bias",),
    "mlp_norm.scale": ("LayerNorm.weight",),
    "mlp_norm.shift": ("LayerNorm.bias",),
    "up_weight": ("intermediate.dense.weight",),
    "down_weight": ("output.dense.weight",),
}


def convert(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> tuple[NucleotideTransformerConfig, dict[str, Tensor]]:
    """Translate a published state dict.

    Parameters
    ----------
    tensors
        Of an ``EsmForMaskedLM`` with rotary positions and gated MLPs, by their names there.
    settings
        Its ``config.json``.

    Returns
    -------
    settings, tensors
        For `models.checkpoint`: our settings, and float32 tensors by the names of our parameters.

    Raises
    ------
    ModelError
        If a setting is one that the published models do not have, or a tensor is missing, unknown or of the wrong
        shape or type; it names the setting or tensor.
    """
    config = _read_settings(settings, tied=_DECODER not in tensors)
    if config.layers > len(tensors):
        raise ModelError(f"published model: got {len(tensors)} tensors, too few for {config.layers} layers")
    # Before shapes are made of them; the tensor that is missing or of another shape is named below.
    if config.parameters > 1000 * (held := sum(tensor.numel() for tensor in tensors.values())):
        raise ModelError(f"published model: got {held} weights, too few for its settings")
    with torch.device("meta"):
        ours = {name: tuple(p.shape) for name, p in NucleotideTransformer(config).named_parameters()}
    sources = dict(_sources(config, ours))
    shapes = {
        source: (ours[name][0] // len(parts), *ours[name][1:]) for name, parts in sources.items() for source in parts
    }
    _check(tensors, shapes, dict(_unused(config, settings)))
    if config.tied and _DECODER in tensors:
        _check_equal(tensors, _DECODER, _EMBEDDING)
    if "lm_head.decoder.bias" in tensors:
        _check_equal(tensors, "lm_head.decoder.bias", "lm_head.bias")
    return config, {name: torch.cat([tensors[part].float() for part in parts]) for name, parts in sources.items()}


def _read_settings(settings: Mapping[str, Any], *, tied: bool) -> NucleotideTransformerConfig:
    needed = [*_COUNTS.values(), _POSITIONS, "layer_norm_eps", *_EXPECTED]
    if missing := [name for name in needed if name not in settings]:
        raise ModelError(f"published model's settings: {missing[0]} is missing ({len(missing)} in all)")
    for name, expected in (_EXPECTED | _ALLOWED).items():
        got = settings.get(name)
        # None (null) is how settings say that there is no such thing, but positions there must be.
        if got != expected and (got is not None or isinstance(expected, str)):
            raise ModelError(f"published model's setting {name}: got {got!r}, expected {expected!r}")
    positions = settings[_POSITIONS]
    if not isinstance(positions, int) or positions < 3:
        raise ModelError(f"published model's setting {_POSITIONS}: got {positions!r}, expected at least 3")
    try:
        return NucleotideTransformerConfig(
            **{ours: settings[theirs] for ours, theirs in _COUNTS.items()},
            # The first two rows of the table of positions are kept for padding.
            max_tokens=positions - 2,
            tied=settings.get("tie_word_embeddings", tied),
            norm_eps=settings["layer_norm_eps"],
        )
    except UsageError as error:
        raise ModelError(f"published model's settings: {error}") from error


def _sources(
    config: NucleotideTransformerConfig, ours: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each of our parameters with the published tensors that it stacks."""
    for name, source in _TOP.items():
        if name in ours:
            yield name, (source,)
    for layer in range(config.layers):
        for name, parts in _BLOCK.items():
            yield f"blocks.{layer}.{name}", tuple(f"esm.encoder.layer.{layer}.{part}" for part in parts)


def _unused(
    config: NucleotideTransformerConfig, settings: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the tensors that may be there and are not read, with their shapes."""
    d, turns = config.width, (config.head_width // 2,)
    yield "esm.embeddings.position_embeddings.weight", (settings[_POSITIONS], d)
    yield "esm.embeddings.position_ids", (1, settings[_POSITIONS])
    yield "esm.contact_head.regression.weight", (1, config.layers * config.heads)
    yield "esm.contact_head.regression.bias", (1,)
    yield "esm.rotary_embeddings.inv_freq", turns
    for layer in range(config.layers):
        yield f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq", turns
    yield "lm_head.decoder.bias", (config.vocab,)
    if config.tied:
        yield _DECODER, (config.vocab, d)


def _check(
    tensors: Mapping[str, Tensor], needed: Mapping[str, tuple[int, ...]], unused: Mapping[str, tuple[int, ...]]
) -> None:
    if missing := sorted(set(needed) - set(tensors)):
        raise ModelError(f"published model: tensor {missing[0]} is missing ({len(missing)} in all)")
    if unknown := sorted(set(tensors) - set(needed) - set(unused)):
        raise ModelError(f"published model: tensor {unknown[0]} is unknown ({len(unknown)} in all)")
    for name, tensor in tensors.items():
        shape = needed[name] if name in needed else unused[name]
        if tuple(tensor.shape) != shape:
            raise ModelError(f"published model: tensor {name} has shape {tuple(tensor.shape)}, expected {shape}")
        if name in needed and not tensor.is_floating_point():
            raise ModelError(f"published model: tensor {name} has type {tensor.dtype}, expected floating point")


def _check_equal(tensors: Mapping[str, Tensor], name: str, other: str) -> None:
    if not torch.equal(tensors[name], tensors[other]):
        raise ModelError(f"published model: tensor {name} differs from {other}, which it should repeat")
