"""Caduceus: bidirectional Mamba blocks (Schiff et al. 2024, arXiv:2403.03234; Gu and Dao 2023, arXiv:2312.00752).

In-projection, gate and out-projection are shared by both directions; each direction has its own convolution,
projections of step size, B and C, and recurrence. So ``out(silu(z) y_f) + out(silu(z) y_r)`` is one product.

Caduceus-PS (``equivariant``) runs the same blocks over a window and over its reverse complement. The second strand
is kept in genomic order, on complemented bases with the two directions' weights exchanged, so nothing is ever
flipped: its rows are a second half of the batch, and only the head adds both strands up. The released PS weights are
of a network that exchanges the strand halves in every block; `convert_caduceus` turns them into weights of this one
that compute the same.
"""

from __future__ import annotations

import math
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from lrgenome.config import CaduceusConfig
from lrgenome.dna import COMPLEMENT
from lrgenome.models.base import DirectionState, Prepared, Saved
from lrgenome.models.stack import RecurrentStack, normal
from lrgenome.ops.conv import conv, next_halo
from lrgenome.ops.gating import silu_gate_sum
from lrgenome.ops.linear import linear
from lrgenome.ops.norm import rms_norm
from lrgenome.ops.record import Record, halos_at
from lrgenome.ops.selective_scan import selective_scan
from lrgenome.ops.workspace import Workspace

NORM_EPS = 1e-5


def _uniform(*shape: int, bound: float) -> nn.Parameter:
    return nn.Parameter((2.0 * torch.rand(*shape) - 1.0) * bound)


def initial_dt_bias(config: CaduceusConfig) -> Tensor:
    """Draw the (e,) biases whose softplus, the step size at a neutral input, is log-uniform from dt_min to dt_max."""
    low, high = math.log(config.dt_min), math.log(config.dt_max)
    dt = torch.exp(low + torch.rand(config.recurrent_width) * (high - low))
    return dt + torch.log(-torch.expm1(-dt))


class Direction(nn.Module):
    """Convolution and selective scan of one direction, with the initial values of Mamba."""

    def __init__(self, config: CaduceusConfig) -> None:
        super().__init__()
        e, n, r, k = config.recurrent_width, config.state, config.dt_rank, config.conv_width
        self.conv_weight = _uniform(k, e, bound=1.0 / math.sqrt(k))
        self.conv_bias = _uniform(e, bound=1.0 / math.sqrt(k))
        self.x_weight = _uniform(r + 2 * n, e, bound=1.0 / math.sqrt(e))
        self.dt_weight = _uniform(e, r, bound=1.0 / math.sqrt(r))
        self.dt_bias = nn.Parameter(initial_dt_bias(config))
        self.a_log = nn.Parameter(torch.log(torch.arange(1.0, n + 1.0)).repeat(e, 1))
        self.skip = nn.Parameter(torch.ones(e))


class CaduceusBlock(nn.Module):
    """RMSNorm and bidirectional mixer, residual."""

    def __init__(self, config: CaduceusConfig) -> None:
        super().__init__()
        d, e = config.width, config.recurrent_width
        self.config = config
        self.compute_dtype = torch.float32
        self.norm = nn.Parameter(torch.zeros(d))
        self.in_branch_weight = _uniform(e, d, bound=1.0 / math.sqrt(d))
        self.in_gate_weight = _uniform(e, d, bound=1.0 / math.sqrt(d))
        self.directions = nn.ModuleList([Direction(config), Direction(config)])
        self.out_weight = _uniform(d, e, bound=1.0 / math.sqrt(e * config.layers))

    def prepare(self, x: Tensor, ws: Workspace, out: Prepared | None = None) -> Prepared:
        """Norm and in-projections; see `models.base.Block`."""
        b, t, d = x.shape
        e, dtype, n = self.config.recurrent_width, self.compute_dtype, b * t
        buffer = ws.get("norm", (n, d), dtype, x.device)
        rows = rms_norm(x.reshape(n, d), self.norm, dtype, eps=NORM_EPS, out=buffer)
        flat = (None, None) if out is None else (out.branch.view(n, e), out.gate.view(n, e))
        branch = linear(rows, self.in_branch_weight, None, out=flat[0])
        gate = linear(rows, self.in_gate_weight, None, out=flat[1])
        return Prepared(branch.view(b, t, e), gate.view(b, t, e))

    def scan(
        self, u: Prepared, state: DirectionState, *,
        weights: int, reverse: bool, reset: bool, ws: Workspace, out: Tensor | None = None, saved: Saved | None = None,
    ) -> tuple[Tensor, DirectionState]:  # fmt: skip
        """Convolution and selective scan of one direction; see `models.base.Block`.

        A true first base needs nothing of its own (`reset`): the state before it is zero. The rows of an equivariant
        model's second strand take the other direction's weights.
        """
        if not self.config.equivariant:
            y, h = self._scan_rows(u.branch, state, weights, reverse=reverse, ws=ws, out=out, saved=saved)
        else:
            half = u.branch.shape[0] // 2
            parts = []
            for strand in (0, 1):
                at = slice(strand * half, (strand + 1) * half)
                own = DirectionState(state.h[at], state.halo[at])
                parts.append(self._scan_rows(
                    u.branch[at], own, weights ^ strand, reverse=reverse, ws=ws, out=None if out is None else out[at],
                    saved=None if saved is None else Saved(saved.at, saved.h[at], saved.halo[at]),
                ))  # fmt: skip
            in_place = out is not None and all(
                y.data_ptr() == out[i * half : (i + 1) * half].data_ptr() for i, (y, _) in enumerate(parts)
            )
            y = out if in_place and out is not None else torch.cat([y for y, _ in parts])
            h = torch.cat([h for _, h in parts])
        if saved is not None:
            saved.halo.copy_(halos_at(u.branch, state.halo, saved.at, reverse=reverse))
        return y, DirectionState(h, next_halo(u.branch, state.halo, reverse=reverse))

    def _scan_rows(
        self, branch: Tensor, state: DirectionState, weights: int, *,
        reverse: bool, ws: Workspace, out: Tensor | None, saved: Saved | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        own = cast(Direction, self.directions[weights])
        b, t, e = branch.shape
        dtype, device = branch.dtype, branch.device
        r, n = self.config.dt_rank, self.config.state
        v = conv(
            branch, own.conv_weight, own.conv_bias, state.halo,
            reverse=reverse, silu=True, out=ws.get("conv", (b, t, e), dtype, device),
        )  # fmt: skip
        made = linear(v.view(b * t, e), own.x_weight, None)
        dt = linear(made[:, :r].contiguous(), own.dt_weight, None).view(b, t, e)
        made = made.view(b, t, r + 2 * n)
        return selective_scan(
            v, dt, -torch.exp(own.a_log), made[..., r : r + n], made[..., r + n :], own.skip, own.dt_bias, state.h,
            reverse=reverse, out=out, record=None if saved is None else Record(saved.at, saved.h),
        )  # fmt: skip

    def decay_rates(self, u: Prepared, *, weights: int, reverse: bool) -> Tensor:
        """Return -log a at each position of a window, (b, t, e, n) float32: what a state loses there, one direction.

        Of an equivariant model the first strand's.
        """
        own = cast(Direction, self.directions[weights])
        branch = u.branch[: u.branch.shape[0] // 2] if self.config.equivariant else u.branch
        b, t, e = branch.shape
        halo = self.initial_state(b, branch.device).halo
        v = conv(branch, own.conv_weight, own.conv_bias, halo, reverse=reverse, silu=True)
        made = linear(v.reshape(b * t, e), own.x_weight, None)
        dt = linear(made[:, : self.config.dt_rank].contiguous(), own.dt_weight, None).view(b, t, e).float()
        return softplus(dt + own.dt_bias)[..., None] * torch.exp(own.a_log)

    def combine(self, x: Tensor, u: Prepared, y1: Tensor, y2: Tensor, ws: Workspace) -> Tensor:
        """Gate, out-projection, residual; see `models.base.Block`."""
        b, t, d = x.shape
        n, e = b * t, self.config.recurrent_width
        buffer = ws.get("mixed", (n, e), self.compute_dtype, x.device)
        mixed = silu_gate_sum(u.gate.view(n, e), y1.reshape(n, e), y2.reshape(n, e), out=buffer)
        delta = linear(mixed, self.out_weight, None).view(b, t, d)
        return x.add_(delta) if ws.enabled else x + delta

    def initial_state(self, batch: int, device: torch.device) -> DirectionState:
        """Return zeros, h (b, e, n); see `models.base.Block`."""
        e, dtype = self.config.recurrent_width, self.compute_dtype
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return DirectionState(
            torch.zeros(batch, e, self.config.state, dtype=wide, device=device),
            torch.zeros(batch, self.config.conv_width - 1, e, dtype=dtype, device=device),
        )


class Caduceus(RecurrentStack):
    """Embedding, blocks, final norm, and a head tied to the embedding.

    The output of an equivariant model is (b, t, 2d): the strand of the window, then the other one, both in genomic
    order. The reverse complement of a window gives the same numbers with positions and strands in reverse.
    """

    NORM_EPS: ClassVar[float] = NORM_EPS
    KEPT_WIDE: ClassVar[tuple[str, ...]] = ("conv_weight", "conv_bias", "dt_bias")

    def __init__(self, config: CaduceusConfig) -> None:
        embedding = normal(config.vocab, config.width, std=0.02)
        super().__init__(embedding, [CaduceusBlock(config) for _ in range(config.layers)])
        self.config = config
        self.head = None if config.tied else normal(config.vocab, config.width, std=0.02)

    @property
    def strands(self) -> int:
        """Rows of the residual stream for each window: 2 in an equivariant model."""
        return 2 if self.config.equivariant else 1

    def embed(self, ids: Tensor) -> Tensor:
        """Embed token ids (b, t) as (b, t, d); (2b, t, d) in an equivariant model, complements in the second half."""
        if not self.config.equivariant:
            return super().embed(ids)
        complement = torch.from_numpy(COMPLEMENT).to(ids.device)[ids.long()]
        return super().embed(torch.cat([ids, complement]))

    def finish(self, x: Tensor, *, norm: bool = True) -> Tensor:
        """Make the output: the final norm, and strands side by side."""
        if norm and self.config.crossed_end:
            first, second = x.chunk(2)
            x = torch.cat([second, first]).flip(-1)
        x = super().finish(x, norm=norm)
        return torch.cat(x.chunk(2), -1) if self.config.equivariant else x

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute (..., v) logits from final hidden states, in float32 (float64 models: float64)."""
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        weight = (self.embedding if self.head is None else self.head).to(wide)
        if not self.config.equivariant:
            return hidden.to(wide) @ weight.t()
        first, second = hidden.to(wide).chunk(2, -1)
        other = torch.arange(weight.shape[0], device=weight.device)
        known = torch.from_numpy(COMPLEMENT[: len(other)].astype("int64")).to(weight.device)
        other[: len(known)] = known
        return first @ weight.t() + second @ weight[other].t()

    def prepared_width(self) -> int:
        """Values per position in `Prepared`."""
        return 2 * self.config.recurrent_width

    def scan_width(self) -> int:
        """Values per position in a scan's y."""
        return self.config.recurrent_width

    def widest_step(self) -> int:
        """Values per position that the widest step, the scan, reads and writes."""
        return 3 * self.config.recurrent_width

    def scratch_width(self) -> int:
        """Values per position that a sweep works in, besides what it stores."""
        c = self.config
        return 2 * c.width + 5 * c.recurrent_width + 2 * (c.dt_rank + 2 * c.state)

    def graph_width(self) -> int:
        """Values per position, without the residual stream's, that autograd keeps of a block."""
        # The norm's output; branch and gate; in both directions the convolution, step sizes and output; their sum.
        return self.config.width + (2 + 2 * 3 + 1) * self.config.recurrent_width + 2 * 2 * 2 * self.config.state

    def graph_norms(self) -> int:
        """Norms in a block, each of which keeps its input."""
        return 1


def build(config: CaduceusConfig, *, seed: int | None = None) -> Caduceus:
    """Make a Caduceus with fresh weights; with `seed`, the same ones each time, global random state untouched."""
    if seed is None:
        return Caduceus(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Caduceus(config)
