"""Two independent implementations of Hawk's layers, and their weights by our names.

The first is the torch half of google-deepmind/recurrentgemma 1.0.1, of the authors of the paper; the second is the
RecurrentGemma of `transformers`. `tests/ops` compares numbers with them, `tests/benchmarks/rivals.py` speed.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from lrgenome.config import HawkConfig
from lrgenome.models.hawk import HawkBlock


@contextmanager
def recurrentgemma_modules() -> Iterator[ModuleType]:
    """Import its torch half, without the packages' ``__init__``, which would import JAX and a tokenizer.

    Raises
    ------
    ImportError
        If it, einops or jaxtyping is not installed.
    """
    spec = importlib.util.find_spec("recurrentgemma")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("needs the oracle: pip install --no-deps recurrentgemma==1.0.1")
    (folder,) = spec.submodule_search_locations
    kept = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "recurrentgemma"}
    for name in kept:
        del sys.modules[name]
    try:
        for name, path in (("recurrentgemma", folder), ("recurrentgemma.torch", f"{folder}/torch")):
            package = ModuleType(name)
            package.__path__ = [path]
            sys.modules[name] = package
        yield importlib.import_module("recurrentgemma.torch.modules")
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "recurrentgemma"]:
            del sys.modules[name]
        sys.modules.update(kept)


def recurrentgemma_block(modules: ModuleType, config: HawkConfig) -> nn.Module:
    """Make their residual block of the shape of one of ours."""
    block: nn.Module = modules.ResidualBlock(
        width=config.width,
        mlp_expanded_width=config.mlp_width,
        num_heads=config.heads,
        attention_window_size=1,
        temporal_block_type=modules.common.TemporalBlockType.RECURRENT,
        lru_width=config.recurrent_width,
    )
    return block


def transformers_block(config: HawkConfig) -> nn.Module:
    """Make the residual block of `transformers`' RecurrentGemma in the shape of one of ours."""
    settings = importlib.import_module("transformers").RecurrentGemmaConfig(
        num_hidden_layers=1,
        hidden_size=config.width,
        intermediate_size=2 * config.mlp_width,
        num_attention_heads=config.heads,
        lru_width=config.recurrent_width,
        conv1d_width=config.conv_width,
        block_types=["recurrent"],
        vocab_size=config.vocab,
    )
    module = importlib.import_module("transformers.models.recurrent_gemma.modeling_recurrent_gemma")
    block: nn.Module = module.RecurrentGemmaDecoderLayer(settings, 0)
    return block


def scrambled(module: nn.Module, *, seed: int = 3) -> nn.Module:
    """Give every parameter a value that matters: as drawn, biases and scales of zero would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith(("a_param", "recurrent_param")):
                # Radii of 0.9 to 0.999, as drawn by both.
                radius = 0.9 + 0.099 * torch.rand(parameter.shape, generator=generator)
                parameter.copy_(torch.log(torch.expm1(-torch.log(radius))))
            elif parameter.ndim > 1:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
            else:
                parameter.copy_(0.3 * noise)
    return module


def pack_gates(weights: tuple[Tensor, Tensor], biases: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Their two block-diagonal layers, input gate first, as our (h, w, 2w) weight and (2, e) bias."""
    return torch.cat(weights, -1), torch.stack([bias.flatten() for bias in biases])


def of_recurrentgemma(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name and shape what belongs to the parameters of their residual block as those of ours."""
    gate_weight, gate_bias = pack_gates(
        tuple(values[f"recurrent_block.rg_lru.{gate}.w"] for gate in ("input_gate", "a_gate")),
        tuple(values[f"recurrent_block.rg_lru.{gate}.b"] for gate in ("input_gate", "a_gate")),
    )
    up = values["mlp_block.ffw_up.w"]
    return {
        "mixer_norm": values["temporal_pre_norm.scale"],
        "in_branch_weight": values["recurrent_block.linear_x.weight"],
        "in_branch_bias": values["recurrent_block.linear_x.bias"],
        "in_gate_weight": values["recurrent_block.linear_y.weight"],
        "in_gate_bias": values["recurrent_block.linear_y.bias"],
        "conv_weight": values["recurrent_block.conv_1d.w"],
        "conv_bias": values["recurrent_block.conv_1d.b"],
        "gate_weight": gate_weight,
        "gate_bias": gate_bias,
        "a_param": values["recurrent_block.rg_lru.a_param"],
        "out_weight": values["recurrent_block.linear_out.weight"],
        "out_bias": values["recurrent_block.linear_out.bias"],
        "mlp_norm": values["channel_pre_norm.scale"],
        "up_weight": torch.cat([up[0].t(), up[1].t()]),
        "up_bias": values["mlp_block.ffw_up.b"].flatten(),
        "down_weight": values["mlp_block.ffw_down.weight"],
        "down_bias": values["mlp_block.ffw_down.bias"],
    }


def of_transformers(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name and shape what belongs to the parameters of their residual block as those of ours."""
    gate_weight, gate_bias = pack_gates(
        tuple(values[f"temporal_block.rg_lru.{gate}_gate_weight"] for gate in ("input", "recurrent")),
        tuple(values[f"temporal_block.rg_lru.{gate}_gate_bias"] for gate in ("input", "recurrent")),
    )
    return {
        "mixer_norm": values["temporal_pre_norm.weight"],
        "in_branch_weight": values["temporal_block.linear_x.weight"],
        "in_branch_bias": values["temporal_block.linear_x.bias"],
        "in_gate_weight": values["temporal_block.linear_y.weight"],
        "in_gate_bias": values["temporal_block.linear_y.bias"],
        "conv_weight": values["temporal_block.conv_1d.weight"][:, 0].t(),
        "conv_bias": values["temporal_block.conv_1d.bias"],
        "gate_weight": gate_weight,
        "gate_bias": gate_bias,
        "a_param": values["temporal_block.rg_lru.recurrent_param"],
        "out_weight": values["temporal_block.linear_out.weight"],
        "out_bias": values["temporal_block.linear_out.bias"],
        "mlp_norm": values["channel_pre_norm.weight"],
        "up_weight": torch.cat([values[f"mlp_block.{half}_proj.weight"] for half in ("gate", "up")]),
        "up_bias": torch.cat([values[f"mlp_block.{half}_proj.bias"] for half in ("gate", "up")]),
        "down_weight": values["mlp_block.down_proj.weight"],
        "down_bias": values["mlp_block.down_proj.bias"],
    }


class BothWays(nn.Module):
    """Their residual block with a second convolution and RG-LRU over the flipped sequence, as in a bidirectional Hawk.

    Their modules do all the work; the projections are those of `one`, as ours are tied.
    """

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x: Tensor) -> Tensor:
        """Run (b, t, d)."""
        positions = torch.arange(x.shape[1]).expand(x.shape[:2])
        mixer = self._mixer(self.one)
        normed = self.one.temporal_pre_norm(x)
        gate = gelu(mixer.linear_y(normed), approximate="tanh")
        branch = mixer.linear_x(normed)
        there = self._scan(mixer, branch, positions)
        back = self._scan(self._mixer(self.other), branch.flip(1), positions).flip(1)
        x = x + mixer.linear_out((there + back) * gate)
        result: Tensor = x + self.one.mlp_block(self.one.channel_pre_norm(x))
        return result

    def _mixer(self, block: nn.Module) -> Any:
        return block.recurrent_block if hasattr(block, "recurrent_block") else block.temporal_block

    def _scan(self, mixer: Any, branch: Tensor, positions: Tensor) -> Tensor:
        if isinstance(mixer.conv_1d, nn.Conv1d):
            branch = mixer.conv_1d(branch.transpose(1, 2))[..., : branch.shape[1]].transpose(1, 2)
            mixer.rg_lru.recurrent_states = None
            y: Tensor = mixer.rg_lru(branch, positions)
            return y
        branch, _ = mixer.conv_1d(x=branch, segment_pos=positions, cache=None, return_cache=False)
        y, _ = mixer.rg_lru(x=branch, segment_pos=positions, cache=None, return_cache=False)
        return y


def copy_weights(block: HawkBlock, weights: Mapping[str, Tensor], direction: int) -> dict[str, Tensor]:
    """Give our block weights in one direction; returns the parameters that got them, by name."""
    known = dict(block.named_parameters())
    mine = {name: known[name] if name in known else known[f"directions.{direction}.{name}"] for name in weights}
    # Nothing but the other direction is left out.
    assert len(mine) + len(list(block.directions[1 - direction].parameters())) == len(known)
    with torch.no_grad():
        for name, parameter in mine.items():
            assert parameter.shape == weights[name].shape, name
            parameter.copy_(weights[name])
    return mine
