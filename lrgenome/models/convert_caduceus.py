"""Published Caduceus weights (Schiff et al. 2024, kuleshov-group on Hugging Face) as weights of `models.caduceus`.

Of a network with both strands side by side (``rcps``), the weights that were trained with fused kernels
(``fused_add_norm``) belong to another function than their names say: its blocks take the second strand's half of the
residual stream for the first one's, so halves change places in every block. With F for the order of channels in
reverse and z = F q for the second half q, a block computes

    p' = F z + f(norm(F z)),    z' = F p + f_r(norm(F p)),

where f_r is f with its directions exchanged. In terms of (F z', F p') after an odd number of blocks, and of (p, z)
after an even one, blocks 1, 3, ... are f as it is, and blocks 0, 2, ... are F f_r F: norm, columns of the
in-projection and rows of the out-projection in reverse, directions exchanged. That is a network without exchange. Where
the number of blocks is odd, its end is (F z, F p), which `CaduceusConfig.crossed_end` undoes before the final norm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lrgenome.config import CaduceusConfig
from lrgenome.dna import COMPLEMENT, VOCAB_SIZE
from lrgenome.errors import ModelError, UsageError
from lrgenome.models.caduceus import NORM_EPS

_BACKBONE = "caduceus.backbone."
_WORDS = _BACKBONE + "embeddings.word_embeddings."

_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "model_type": ("caduceus",),
    "bidirectional": (True,),
    "bidirectional_strategy": ("add", None),
    "bidirectional_weight_tie": (True,),
    "rms_norm": (True,),
    "norm_epsilon": (NORM_EPS,),
    "rcps": (False, True),
    "fused_add_norm": (True, False),
}
"""What a setting may be; the first of a setting that is not there."""

_SUPPORTED_SSM: dict[str, tuple[Any, ...]] = {"conv_bias": (True,), "bias": (False,)}
_SSM_SIZES = {"d_state": 16, "d_conv": 4, "expand": 2}
_SSM_INITIAL = {"dt_init", "dt_scale", "dt_init_floor", "use_fast_path"}
"""Settings of fresh weights and of kernels, which published weights do not depend on."""


def convert(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> tuple[CaduceusConfig, dict[str, Tensor]]:
    """Name, shape and transform published weights as ours.

    Parameters
    ----------
    tensors
        Weights of a ``CaduceusForMaskedLM`` by their published names. Names of one tied weight may be there or not.
    settings
        What the ``config.json`` beside them says.

    Returns
    -------
    config
        Settings of our model.
    weights
        Its parameters by name, float32 (float64 where the published ones are).

    Raises
    ------
    ModelError
        If a setting is none that we support, or a tensor is missing, unknown or of the wrong shape, or a tie is
        broken; it names the setting or tensor.
    """
    config, crosses = read_settings(settings)
    source = _Published(tensors)
    v, d = config.vocab, config.width
    ps, wrapped = config.equivariant, ("submodule." if config.equivariant and not crosses else "")
    embedding = source.take(_WORDS + ("embedding.weight" if ps else "weight"), v, d)
    weights = {"embedding": embedding}
    for number in range(config.layers):
        block = _block(source, config, f"{_BACKBONE}layers.{number}.", wrapped)
        if crosses and number % 2 == 0:
            block = _seen_from_the_other_strand(block)
        weights |= {f"blocks.{number}.{name}": tensor for name, tensor in block.items()}
    weights["final_norm"] = source.take(f"{_BACKBONE}norm_f.{wrapped}weight", d) - 1.0
    if ps:
        for buffer in (_WORDS + "complement_map", "lm_head.complement_map"):
            _check_complement(source.take_whole_numbers(buffer, v), f"tensor {buffer}")
    head_name = "lm_head.lm_head.weight" if ps else "lm_head.weight"
    if head_name in source.left and not torch.equal(head := source.take(head_name, v, d), embedding):
        weights["head"] = head
        config = dataclasses.replace(config, tied=False)
    if source.left:
        raise ModelError(f"tensor {min(source.left)} is unknown ({len(source.left)} in all)")
    return config, {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}


def read_settings(settings: Mapping[str, Any]) -> tuple[CaduceusConfig, bool]:
    """Read published settings: ours, with a tied head, and whether the halves change places in every block."""
    values = {name: _choice(settings, name, allowed, "setting") for name, allowed in _SUPPORTED.items()}
    ssm = settings.get("ssm_cfg") or {}
    if not isinstance(ssm, dict):
        raise ModelError(f"setting ssm_cfg: got {ssm!r}, expected an object")
    for name, allowed in _SUPPORTED_SSM.items():
        _choice(ssm, name, allowed, "setting ssm_cfg")
    known = {*_SUPPORTED_SSM, *_SSM_SIZES, *_SSM_INITIAL, "dt_rank", "dt_min", "dt_max"}
    if unknown := sorted(set(ssm) - known):
        raise ModelError(f"setting ssm_cfg: unknown {', '.join(unknown)}; expected {', '.join(sorted(known))}")
    _check_vocabulary(settings)
    if settings.get("complement_map") is not None:
        _check_complement(_map_values(settings["complement_map"]), "setting complement_map")
    crosses = values["rcps"] and values["fused_add_norm"]
    rank = ssm.get("dt_rank", "auto")
    sizes = {name: ssm.get(name, usual) for name, usual in _SSM_SIZES.items()}
    layers = _needed(settings, "n_layer")
    try:
        config = CaduceusConfig(
            layers=layers,
            width=_needed(settings, "d_model"),
            equivariant=values["rcps"],
            crossed_end=bool(crosses and layers % 2),
            state=sizes["d_state"],
            conv_width=sizes["d_conv"],
            expand=sizes["expand"],
            dt_rank=0 if rank == "auto" else rank,
            **{name: ssm[name] for name in ("dt_min", "dt_max") if name in ssm},
        )
    except UsageError as error:
        raise ModelError(f"published settings do not fit: {error}") from error
    return config, crosses


def _choice(settings: Mapping[str, Any], name: str, allowed: tuple[Any, ...], where: str) -> Any:
    got = settings.get(name, allowed[0])
    if got not in allowed:
        expected = " or ".join(map(repr, allowed))
        raise ModelError(f"{where} {name}: got {got!r}, expected {expected}: no other kind is supported")
    return got


def _needed(settings: Mapping[str, Any], name: str) -> int:
    got = settings.get(name)
    if not isinstance(got, int) or isinstance(got, bool) or got < 1:
        raise ModelError(f"setting {name}: got {got!r}, expected a positive whole number")
    return got


def _check_vocabulary(settings: Mapping[str, Any]) -> None:
    """Raise unless the token ids, padded as in pre-training, are as many as ours."""
    size = _needed(settings, "vocab_size")
    multiple = _needed({"pad_vocab_size_multiple": 8, **settings}, "pad_vocab_size_multiple")
    if -(-size // multiple) * multiple != VOCAB_SIZE:
        raise ModelError(
            f"setting vocab_size: got {size} (padded to a multiple of {multiple}), expected {VOCAB_SIZE}, "
            "the ids of Caduceus's own tokenizer"
        )


def _map_values(complement_map: Any) -> list[int]:
    """List the values of a map from id (as text) to id by rising id; JSON may have sorted the keys as text."""
    try:
        pairs = sorted((int(key), int(value)) for key, value in complement_map.items())
        if [key for key, _ in pairs] == list(range(len(pairs))):
            return [value for _, value in pairs]
    except (AttributeError, TypeError, ValueError):
        pass
    raise ModelError(f"setting complement_map: got {complement_map!r}, expected an id for every id")


def _check_complement(values: list[int], where: str) -> None:
    """Raise unless ids and their complements are ours; ids that are left out are their own."""
    if len(values) > VOCAB_SIZE or values != COMPLEMENT[: len(values)].tolist():
        raise ModelError(f"{where}: got {values}, expected {COMPLEMENT.tolist()}: the tokenizer is another one")


class _Published:
    """Published tensors, of which each is taken once."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.left = dict(tensors)

    def _pop(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in self.left:
            raise ModelError(f"tensor {name} is missing")
        tensor = self.left.pop(name)
        if tuple(tensor.shape) != shape:
            raise ModelError(f"tensor {name} has shape {tuple(tensor.shape)}, expected {shape}")
        return tensor

    def take(self, name: str, *shape: int) -> Tensor:
        """Take a weight of this shape."""
        tensor = self._pop(name, shape)
        if not tensor.is_floating_point():
            raise ModelError(f"tensor {name} holds {tensor.dtype}, expected floating-point numbers")
        return tensor if tensor.dtype == torch.float64 else tensor.float()

    def take_twin(self, name: str, original: str, tensor: Tensor) -> None:
        """Take the other name of a tied weight, if it is there."""
        if name in self.left and not torch.equal(self.take(name, *tensor.shape), tensor):
            raise ModelError(f"tensor {name} differs from {original}: the tie between the directions was broken")

    def take_whole_numbers(self, name: str, size: int) -> list[int]:
        """Take a buffer of ids."""
        tensor = self._pop(name, (size,))
        if tensor.is_floating_point() or tensor.is_complex():
            raise ModelError(f"tensor {name} holds {tensor.dtype}, expected whole numbers")
        return [int(value) for value in tensor]


def _block(source: _Published, config: CaduceusConfig, prefix: str, wrapped: str) -> dict[str, Tensor]:
    """Take a block's tensors and give them our names (inside a block) and shapes."""
    d, e, n, r, k = config.width, config.recurrent_width, config.state, config.dt_rank, config.conv_width
    mixer = prefix + ("mixer.submodule." if config.equivariant else "mixer.")
    block = {"norm": source.take(f"{prefix}norm.{wrapped}weight", d) - 1.0}
    for name, shape in (("in_proj.weight", (2 * e, d)), ("out_proj.weight", (d, e))):
        original = f"{mixer}mamba_fwd.{name}"
        tensor = source.take(original, *shape)
        source.take_twin(f"{mixer}mamba_rev.{name}", original, tensor)
        if name == "out_proj.weight":
            block["out_weight"] = tensor
        else:
            block["in_branch_weight"], block["in_gate_weight"] = tensor[:e], tensor[e:]
    for direction, side in enumerate(("mamba_fwd.", "mamba_rev.")):
        own = {
            "conv_weight": source.take(mixer + side + "conv1d.weight", e, 1, k)[:, 0].t(),
            "conv_bias": source.take(mixer + side + "conv1d.bias", e),
            "x_weight": source.take(mixer + side + "x_proj.weight", r + 2 * n, e),
            "dt_weight": source.take(mixer + side + "dt_proj.weight", e, r),
            "dt_bias": source.take(mixer + side + "dt_proj.bias", e),
            "a_log": source.take(mixer + side + "A_log", e, n),
            "skip": source.take(mixer + side + "D", e),
        }
        block |= {f"directions.{direction}.{name}": tensor for name, tensor in own.items()}
    return block


def _seen_from_the_other_strand(block: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Reverse the channels of the residual stream that a block sees, and exchange its directions."""
    exchanged = {}
    for name, tensor in block.items():
        if name.startswith("directions."):
            _, direction, rest = name.split(".")
            exchanged[f"directions.{1 - int(direction)}.{rest}"] = tensor
        else:
            exchanged[name] = tensor.flip(0 if name in ("norm", "out_weight") else 1)
    return exchanged
