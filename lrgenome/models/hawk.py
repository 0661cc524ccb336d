"""Bidirectional Hawk: recurrent blocks of De et al. 2024 (arXiv:2402.19427), tied between directions.

In- and out-projections, gate branch, norms and MLP are shared by both directions; each direction has its own
convolution and RG-LRU. So ``out(g * y_f) + out(g * y_r) = out(g * (y_f + y_r))`` is one product.
"""

from __future__ import annotations

import math
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from lrgenome.config import HawkConfig
from lrgenome.config.hawk import RING, RING_HALF_LIFE
from lrgenome.models.base import DirectionState, Prepared, Saved
from lrgenome.models.stack import RecurrentStack, normal
from lrgenome.ops.conv import conv, next_halo
from lrgenome.ops.gating import gate_sum, geglu
from lrgenome.ops.linear import linear, per_head
from lrgenome.ops.norm import add_rms_norm, rms_norm
from lrgenome.ops.record import Record, halos_at
from lrgenome.ops.rglru import rglru
from lrgenome.ops.rglru.naive import split_gates
from lrgenome.ops.workspace import Workspace

DECAY_SCALE = 8.0
_HALF_LIFE_MIN = 2.0


def initial_lambda(config: HawkConfig) -> Tensor:
    """Draw the (e,) parameters Lambda with softplus(Lambda) = -log(radius).

    A gate of sigma decays by radius^(8 sigma) a position, so the half-life at a neutral gate (sigma = 1/2) is
    ln 2 / (4 * -log(radius)).
    """
    uniform, share = torch.rand(config.recurrent_width), config.half_life_share
    low, high = RING[0] ** 2 + 1e-8, RING[1] ** 2 + 1e-8
    minus_log_radius = -0.5 * torch.log(low + (high - low) * uniform)
    if config.half_life_max is not None:
        least = _HALF_LIFE_MIN if share == 1 else RING_HALF_LIFE
        half_life = least * torch.exp(uniform * math.log(config.half_life_max / least))
        steps = torch.floor(share * torch.arange(config.recurrent_width + 1, dtype=torch.float64))
        chosen = steps.diff() > 0  # evenly over the heads
        minus_log_radius = torch.where(chosen, math.log(2.0) / (4.0 * half_life), minus_log_radius)
    return torch.log(torch.expm1(minus_log_radius))


class Direction(nn.Module):
    """Convolution and RG-LRU of one direction."""

    def __init__(self, config: HawkConfig) -> None:
        super().__init__()
        e, w = config.recurrent_width, config.head_width
        self.conv_weight = normal(config.conv_width, e, std=math.sqrt(0.01 / config.conv_width))
        self.conv_bias = nn.Parameter(torch.zeros(e))
        self.gate_weight = normal(config.heads, w, 2 * w, std=math.sqrt(1.0 / w))
        self.gate_bias = nn.Parameter(torch.zeros(2, e))
        self.a_param = nn.Parameter(initial_lambda(config))


class HawkBlock(nn.Module):
    """RMSNorm, recurrent mixer, RMSNorm, gated MLP, both residual."""

    def __init__(self, config: HawkConfig) -> None:
        super().__init__()
        d, e, f = config.width, config.recurrent_width, config.mlp_width
        out_variance = 2.0 / config.layers
        self.config = config
        self.compute_dtype = torch.float32
        self.mixer_norm = nn.Parameter(torch.zeros(d))
        self.in_branch_weight = normal(e, d, std=math.sqrt(1.0 / d))
        self.in_branch_bias = nn.Parameter(torch.zeros(e))
        self.in_gate_weight = normal(e, d, std=math.sqrt(1.0 / d))
        self.in_gate_bias = nn.Parameter(torch.zeros(e))
        self.directions = nn.ModuleList([Direction(config), Direction(config)])
        self.out_weight = normal(d, e, std=math.sqrt(out_variance / e))
        self.out_bias = nn.Parameter(torch.zeros(d))
        self.mlp_norm = nn.Parameter(torch.zeros(d))
        self.up_weight = normal(2 * f, d, std=math.sqrt(1.0 / d))
        self.up_bias = nn.Parameter(torch.zeros(2 * f))
        self.down_weight = normal(d, f, std=math.sqrt(out_variance / f))
        self.down_bias = nn.Parameter(torch.zeros(d))

    def prepare(self, x: Tensor, ws: Workspace, out: Prepared | None = None) -> Prepared:
        """Norm and in-projections; see `models.base.Block`."""
        b, t, d = x.shape
        e, dtype, n = self.config.recurrent_width, self.compute_dtype, b * t
        rows = rms_norm(x.reshape(n, d), self.mixer_norm, dtype, out=ws.get("norm", (n, d), dtype, x.device))
        flat = (None, None) if out is None else (out.branch.view(n, e), out.gate.view(n, e))
        branch = linear(rows, self.in_branch_weight, self.in_branch_bias, out=flat[0])
        gate = linear(rows, self.in_gate_weight, self.in_gate_bias, out=flat[1])
        return Prepared(branch.view(b, t, e), gate.view(b, t, e))

    def scan(
        self, u: Prepared, state: DirectionState, *,
        weights: int, reverse: bool, reset: bool, ws: Workspace, out: Tensor | None = None, saved: Saved | None = None,
    ) -> tuple[Tensor, DirectionState]:  # fmt: skip
        """Convolution, gates and recurrence of one direction; see `models.base.Block`."""
        own = cast(Direction, self.directions[weights])
        b, t, e = u.branch.shape
        dtype, device = u.branch.dtype, u.branch.device
        v = conv(
            u.branch, own.conv_weight, own.conv_bias, state.halo,
            reverse=reverse, out=ws.get("conv", (b, t, e), dtype, device),
        )  # fmt: skip
        heads, w = self.config.heads, self.config.head_width
        gates = per_head(
            v.view(b * t, e), own.gate_weight, out=ws.get("gates", (heads, b * t, 2 * w), dtype, device)
        )
        decay = DECAY_SCALE * softplus(own.a_param)
        record = None if saved is None else Record(saved.at, saved.h)
        y, h = rglru(v, gates, own.gate_bias, decay, state.h, reverse=reverse, reset=reset, out=out, record=record)
        if saved is not None:
            saved.halo.copy_(halos_at(u.branch, state.halo, saved.at, reverse=reverse))
        return y, DirectionState(h, next_halo(u.branch, state.halo, reverse=reverse))

    def decay_rates(self, u: Prepared, *, weights: int, reverse: bool) -> Tensor:
        """Return -log a at each position of a window, (b, t, e) float32: what a state loses there, one direction."""
        own = cast(Direction, self.directions[weights])
        b, t, e = u.branch.shape
        halo = self.initial_state(b, u.branch.device).halo
        v = conv(u.branch, own.conv_weight, own.conv_bias, halo, reverse=reverse)
        _, opened = split_gates(per_head(v.reshape(b * t, e), own.gate_weight), own.gate_bias, b, t)
        return DECAY_SCALE * softplus(own.a_param) * torch.sigmoid(opened)

    def combine(self, x: Tensor, u: Prepared, y1: Tensor, y2: Tensor, ws: Workspace) -> Tensor:
        """Gate, out-projection, residual, MLP, residual; see `models.base.Block`."""
        b, t, d = x.shape
        n, e, f = b * t, self.config.recurrent_width, self.config.mlp_width
        dtype, device = self.compute_dtype, x.device
        mixed = gate_sum(
            u.gate.view(n, e), y1.reshape(n, e), y2.reshape(n, e), out=ws.get("mixed", (n, e), dtype, device)
        )
        delta = linear(mixed, self.out_weight, self.out_bias)
        rows, normed = add_rms_norm(
            x.view(n, d), delta, self.mlp_norm, dtype, out=ws.get("norm", (n, d), dtype, device)
        )
        up = linear(normed, self.up_weight, self.up_bias)
        inner = geglu(up, out=ws.get("inner", (n, f), dtype, device))
        delta = linear(inner, self.down_weight, self.down_bias)
        rows = rows.add_(delta) if ws.enabled else rows + delta
        return rows.view(b, t, d)

    def initial_state(self, batch: int, device: torch.device) -> DirectionState:
        """Return zeros; see `models.base.Block`."""
        e, dtype = self.config.recurrent_width, self.compute_dtype
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return DirectionState(
            torch.zeros(batch, e, dtype=wide, device=device),
            torch.zeros(batch, self.config.conv_width - 1, e, dtype=dtype, device=device),
        )


class Hawk(RecurrentStack):
    """Embedding, blocks, final norm, and a head tied to the embedding."""

    KEPT_WIDE: ClassVar[tuple[str, ...]] = ("conv_weight", "conv_bias", "gate_bias")

    def __init__(self, config: HawkConfig) -> None:
        embedding = normal(config.vocab, config.width, std=math.sqrt(1.0 / config.width))
        super().__init__(embedding, [HawkBlock(config) for _ in range(config.layers)])
        self.config = config

    def prepared_width(self) -> int:
        """Values per position in `Prepared`."""
        return 2 * self.config.recurrent_width

    def scan_width(self) -> int:
        """Values per position in a scan's y."""
        return self.config.recurrent_width

    def widest_step(self) -> int:
        """Values per position that the widest product, the MLP's first, reads and writes."""
        return self.config.width + 2 * self.config.mlp_width

    def scratch_width(self) -> int:
        """Values per position that a sweep works in, besides what it stores."""
        return 2 * self.config.width + 5 * self.config.recurrent_width + 3 * self.config.mlp_width

    def graph_width(self) -> int:
        """Values per position, without the residual stream's, that autograd keeps of a block."""
        # Norms' outputs; a mixer's two branches, both directions' convolutions, gate products (two for each channel)
        # and outputs, and their gated sum; an MLP's halves and their product.
        c = self.config
        return 2 * c.width + (2 + 2 * (1 + 2 + 1) + 1) * c.recurrent_width + 3 * c.mlp_width

    def graph_norms(self) -> int:
        """Norms in a block, each of which keeps its input."""
        return 2


def build(config: HawkConfig, *, seed: int | None = None) -> Hawk:
    """Make a Hawk with fresh weights; with `seed`, the same ones each time, global random state untouched."""
    if seed is None:
        return Hawk(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Hawk(config)
