"""Two independent implementations of Mamba's mixer, and their weights by our names.

The first is the `MambaMixer` of `transformers` in its plain path, a loop over positions; the second is `mambapy`, a
parallel scan in plain torch. `tests/models` compares numbers with them, `tests/benchmarks/rivals.py` speed.
"""

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from lrgenome.config import CaduceusConfig
from lrgenome.models.caduceus import CaduceusBlock, Direction


class BothWays(nn.Module):
    """A bidirectional mixer of two: left to right plus right to left, as Caduceus adds them."""

    def __init__(self, forward: nn.Module, reverse: nn.Module) -> None:
        super().__init__()
        self.one, self.other = forward, reverse

    def forward(self, x: Tensor) -> Tensor:
        """Run both over (b, t, d)."""
        out: Tensor = self.one(x) + self.other(x.flip(1)).flip(1)
        return out


def transformers_mixer(config: CaduceusConfig) -> nn.Module:
    """Make the mixer of `transformers`; ImportError where it is not installed."""
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    settings = MambaConfig(
        hidden_size=config.width, state_size=config.state, expand=config.expand, conv_kernel=config.conv_width,
        time_step_rank=config.dt_rank, num_hidden_layers=1, use_mambapy=False,
    )  # fmt: skip
    mixer: nn.Module = MambaMixer(settings, layer_idx=0)
    return mixer


def mambapy_mixer(config: CaduceusConfig) -> nn.Module:
    """Make the mixer of mambapy; ImportError where it is not installed."""
    from mambapy.mamba import MambaBlock, MambaConfig

    settings = MambaConfig(
        d_model=config.width, n_layers=1, d_state=config.state, expand_factor=config.expand,
        d_conv=config.conv_width, dt_rank=config.dt_rank,
    )  # fmt: skip
    mixer: nn.Module = MambaBlock(settings)
    return mixer


def scrambled(mixer: nn.Module, seed: int) -> nn.Module:
    """Give every weight a value that matters, the same for the same seed; decays stay those of a Mamba."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in mixer.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if name == "A_log":
                p.copy_(torch.log(torch.arange(1.0, p.shape[1] + 1.0)) + 0.1 * noise)
            elif name == "dt_proj.bias":
                p.copy_(-4.0 + noise)
            else:
                p.copy_(noise / (p.shape[-1] ** 0.5 if p.dim() > 1 else 2.0))
    return mixer


def copy_weights(block: CaduceusBlock, named: Mapping[str, Tensor], direction: int) -> None:
    """Put a mixer's weights into a block: its own ones into `direction`, the projections for both."""
    own, e = cast(Direction, block.directions[direction]), block.config.recurrent_width
    with torch.no_grad():
        block.in_branch_weight.copy_(named["in_proj.weight"][:e])
        block.in_gate_weight.copy_(named["in_proj.weight"][e:])
        block.out_weight.copy_(named["out_proj.weight"])
        own.conv_weight.copy_(named["conv1d.weight"][:, 0].t())
        own.conv_bias.copy_(named["conv1d.bias"])
        own.x_weight.copy_(named["x_proj.weight"])
        own.dt_weight.copy_(named["dt_proj.weight"])
        own.dt_bias.copy_(named["dt_proj.bias"])
        own.a_log.copy_(named["A_log"])
        own.skip.copy_(named["D"])


def tied_pair(config: CaduceusConfig, make: Callable[[CaduceusConfig], nn.Module]) -> BothWays:
    """Make a bidirectional mixer of `make(config)` whose two directions share in- and out-projection."""
    one, other = (scrambled(make(config), seed) for seed in (0, 1))
    with torch.no_grad():
        for name in ("in_proj.weight", "out_proj.weight"):
            other.get_parameter(name).copy_(one.get_parameter(name))
    return BothWays(one, other)
