"""The RG-LRU as Triton kernels for a GPU: gates and recurrence in one pass, forward and backward.

Positions are cut into tiles that run side by side. Each tile's decay and end from a zero state are made first, then
the states between tiles from those, then the states inside; so memory is read twice and written once. The backward
pass runs the adjoint s_t = dy_t + a_{t+1} s_{t+1} in the same way from the other end, and makes the states again in
float32 from those between tiles, since y may have been rounded.

Arithmetic is float32 whatever x is. "Step" counts from where the direction begins, "position" from the left.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lrgenome.ops import backend
from lrgenome.ops.record import Record
from lrgenome.ops.rglru import naive
from lrgenome.ops.trusted import largest_difference, on_its_device

TILE = 64
"""Steps of a tile."""
CHANNELS = 32
"""Channels of a tile, at most, all of one head."""
_LEAST = 0.5 / naive.MAX_SQRT_SLOPE
"""The least root that the slope of a square root is made of."""


@triton.jit
def _compose(a1, b1, a2, b2):
    """Compose h -> a1 h + b1 with h -> a2 h + b2, the first one first."""
    return a1 * a2, a2 * b1 + b2


@triton.jit
def _position(steps, t, REVERSE: tl.constexpr):
    """Return positions (int64) of steps."""
    return (t - 1 - steps if REVERSE else steps).to(tl.int64)


@triton.jit
def _one_minus_square(log_a):
    """Compute 1 - exp(2 log_a) for log_a <= 0, to a few units in the last place near 0 too."""
    z = 2.0 * log_a
    series = 1.0 + z * (1.0 / 7.0)
    series = 1.0 + z * (1.0 / 6.0) * series
    series = 1.0 + z * (1.0 / 5.0) * series
    series = 1.0 + z * (1.0 / 4.0) * series
    series = 1.0 + z * (1.0 / 3.0) * series
    series = 1.0 + z * (1.0 / 2.0) * series
    return tl.where(z > -0.25, -z * series, 1.0 - tl.exp(z))


@triton.jit
def _place(t, w, heads, TILE: tl.constexpr, CHANNELS: tl.constexpr):
    """Return what a program works on: row of the batch, steps (TILE, 1), head, channels in it (1, CHANNELS)."""
    tile, row, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    blocks = tl.cdiv(w, CHANNELS)
    steps = tile * TILE + tl.arange(0, TILE)[:, None]
    return row.to(tl.int64), steps, part // blocks, (part % blocks) * CHANNELS + tl.arange(0, CHANNELS)[None, :]


@triton.jit
def _read(x, gates, bias, decay, row, steps, t, head, off, w, heads, there,
          REVERSE: tl.constexpr, RESET: tl.constexpr):  # fmt: skip
    """Read inputs at `steps`; return value, input gate, recurrence gate, log a, a, root of 1 - a^2.

    Where there is nothing, a = 1 and the value is 0, which leaves a state as it was.
    """
    e = heads * w
    where = _position(steps, t, REVERSE)
    there = there & (steps >= 0) & (steps < t) & (off < w)
    at = row * t + where
    value = tl.load(x + at * e + head * w + off, mask=there, other=0.0).to(tl.float32)
    rows = tl.num_programs(1).to(tl.int64) * t
    products = gates + (head * rows + at) * (2 * w) + off
    bias_at = bias + head * w + off
    gate = tl.load(products, mask=there, other=0.0).to(tl.float32)
    gate = tl.sigmoid(gate + tl.load(bias_at, mask=off < w, other=0.0))
    opened = tl.load(products + w, mask=there, other=0.0).to(tl.float32)
    opened = tl.sigmoid(opened + tl.load(bias_at + e, mask=off < w, other=0.0))
    log_a = -opened * tl.load(decay + head * w + off, mask=off < w, other=0.0)
    a = tl.exp(log_a)
    root = tl.sqrt(_one_minus_square(log_a))
    if RESET:
        a = tl.where(steps == 0, 0.0, a)
        root = tl.where(steps == 0, 1.0, root)
    a = tl.where(there, a, 1.0)
    return value, gate, opened, a, root


@triton.jit
def _edge(values, at: tl.constexpr, TILE: tl.constexpr):
    """Return row `at` of (TILE, CHANNELS) values as (1, CHANNELS)."""
    return tl.sum(tl.where(tl.arange(0, TILE)[:, None] == at, values, 0.0), 0)[None, :]


@triton.jit
def _tile_ends(x, gates, bias, decay, decays, ends, t, w, heads, TILE: tl.constexpr, CHANNELS: tl.constexpr,
               REVERSE: tl.constexpr, RESET: tl.constexpr):  # fmt: skip
    """Write, of each tile, the product of a and the end from a zero state, (b, tiles, e) float32."""
    row, steps, head, off = _place(t, w, heads, TILE, CHANNELS)
    value, gate, _, a, root = _read(x, gates, bias, decay, row, steps, t, head, off, w, heads, True, REVERSE, RESET)
    a, h = tl.associative_scan((a, value * gate * root), 0, _compose)
    to = (row * tl.num_programs(0) + tl.program_id(0)) * heads * w + head * w + off
    tl.store(decays + to, _edge(a, TILE - 1, TILE), mask=off < w)
    tl.store(ends + to, _edge(h, TILE - 1, TILE), mask=off < w)


@triton.jit
def _carry(decays, ends, h0, states, count, e, BACK: tl.constexpr, TILE: tl.constexpr,
           CHANNELS: tl.constexpr):  # fmt: skip
    """Write the (b, count + 1, e) states between tiles, h0 first; with BACK they run from the last tile back."""
    row = tl.program_id(0).to(tl.int64)
    off = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    there = off < e
    h = tl.load(h0 + row * e + off, mask=there, other=0.0)
    first = count if BACK else 0
    tl.store(states + (row * (count + 1) + first) * e + off, h, mask=there)
    low = 0
    while low < count:
        steps = low + tl.arange(0, TILE)[:, None]
        inside = there & (steps < count)
        tiles = count - 1 - steps if BACK else steps
        at = (row * count + tiles) * e + off
        a = tl.load(decays + at, mask=inside, other=1.0)
        u = tl.load(ends + at, mask=inside, other=0.0)
        a, u = tl.associative_scan((a, u), 0, _compose)
        u = a * h + u
        to = tiles if BACK else tiles + 1
        tl.store(states + (row * (count + 1) + to) * e + off, u, mask=inside)
        h = _edge(u, TILE - 1, TILE)
        low += TILE


@triton.jit
def _tile_states(x, gates, bias, decay, states, y, t, w, heads, TILE: tl.constexpr, CHANNELS: tl.constexpr,
                 REVERSE: tl.constexpr, RESET: tl.constexpr):  # fmt: skip
    """Write y (b, t, e), from the states between tiles."""
    row, steps, head, off = _place(t, w, heads, TILE, CHANNELS)
    value, gate, _, a, root = _read(x, gates, bias, decay, row, steps, t, head, off, w, heads, True, REVERSE, RESET)
    e = heads * w
    entry = (row * (tl.num_programs(0) + 1) + tl.program_id(0)) * e + head * w + off
    h = tl.load(states + entry, mask=off < w, other=0.0)
    a, u = tl.associative_scan((a, value * gate * root), 0, _compose)
    where = _position(steps, t, REVERSE)
    to = (row * t + where) * e + head * w + off
    tl.store(y + to, (a * h + u).to(y.dtype.element_ty), mask=(steps < t) & (off < w))


@triton.jit
def _after(gates, bias, decay, row, steps, t, head, off, w, heads,
           REVERSE: tl.constexpr):  # fmt: skip
    """Return a of the step after each of `steps`; 1 after the last one, where what enters is the end's gradient."""
    steps = steps + 1
    where = _position(steps, t, REVERSE)
    there = (steps < t) & (off < w)
    rows = tl.num_programs(1).to(tl.int64) * t
    opened = tl.load(gates + (head * rows + row * t + where) * (2 * w) + w + off, mask=there, other=0.0).to(tl.float32)
    opened = tl.sigmoid(opened + tl.load(bias + heads * w + head * w + off, mask=off < w, other=0.0))
    a = tl.exp(-opened * tl.load(decay + head * w + off, mask=off < w, other=0.0))
    return tl.where(there, a, 1.0)


@triton.jit
def _slopes(dy, row, steps, t, head, off, w, heads, REVERSE: tl.constexpr):
    """Read dy at `steps`, 0 where there is nothing."""
    where = _position(steps, t, REVERSE)
    at = (row * t + where) * heads * w + head * w + off
    return tl.load(dy + at, mask=(steps < t) & (off < w), other=0.0).to(tl.float32)


@triton.jit
def _adjoint_ends(gates, bias, decay, dy, decays, ends, t, w, heads, TILE: tl.constexpr, CHANNELS: tl.constexpr,
                  REVERSE: tl.constexpr):  # fmt: skip
    """Write, of each tile, what `_tile_ends` does, of the adjoint, which runs from the last step to the first."""
    row, steps, head, off = _place(t, w, heads, TILE, CHANNELS)
    a = _after(gates, bias, decay, row, steps, t, head, off, w, heads, REVERSE)
    s = _slopes(dy, row, steps, t, head, off, w, heads, REVERSE)
    a, s = tl.associative_scan((a, s), 0, _compose, reverse=True)
    to = (row * tl.num_programs(0) + tl.program_id(0)) * heads * w + head * w + off
    tl.store(decays + to, _edge(a, 0, TILE), mask=off < w)
    tl.store(ends + to, _edge(s, 0, TILE), mask=off < w)


@triton.jit
def _gradients(x, gates, bias, decay, states, dy, adjoints, dx, dgates, sums, t, w, heads, least,
               TILE: tl.constexpr, CHANNELS: tl.constexpr, REVERSE: tl.constexpr,
               RESET: tl.constexpr):  # fmt: skip
    """Write dx, dgates, and of each tile the sums for both biases and the decay, (b, tiles, 3, e) float32."""
    row, steps, head, off = _place(t, w, heads, TILE, CHANNELS)
    e, tiles, tile = heads * w, tl.num_programs(0), tl.program_id(0)
    inside = (steps < t) & (off < w)
    # The state before each step: the same scan one step later, without what lies before the tile.
    begins = tl.arange(0, TILE)[:, None] > 0
    value, gate, _, a, root = _read(
        x, gates, bias, decay, row, steps - 1, t, head, off, w, heads, begins, REVERSE, RESET
    )
    at = (row * (tiles + 1) + tile) * e + head * w + off
    entry = tl.load(states + at, mask=off < w, other=0.0)
    a, u = tl.associative_scan((a, value * gate * root), 0, _compose)
    before = a * entry + u
    a = _after(gates, bias, decay, row, steps, t, head, off, w, heads, REVERSE)
    s = _slopes(dy, row, steps, t, head, off, w, heads, REVERSE)
    a, s = tl.associative_scan((a, s), 0, _compose, reverse=True)
    s = s + a * tl.load(adjoints + at + e, mask=off < w, other=0.0)
    value, gate, opened, a, root = _read(
        x, gates, bias, decay, row, steps, t, head, off, w, heads, True, REVERSE, RESET
    )
    dgate = s * value * root * gate * (1.0 - gate)
    # Both ways from log a to the loss: the decayed state, and the factor of the input.
    dlog = a * (s * before - a * s * value * gate / tl.maximum(root, least))
    if RESET:
        dlog = tl.where(steps == 0, 0.0, dlog)
    rate = tl.load(decay + head * w + off, mask=off < w, other=0.0)
    dopened = -dlog * rate * opened * (1.0 - opened)
    where = _position(steps, t, REVERSE)
    position = row * t + where
    tl.store(dx + position * e + head * w + off, (s * gate * root).to(dx.dtype.element_ty), mask=inside)
    to = dgates + (head * tl.num_programs(1).to(tl.int64) * t + position) * (2 * w) + off
    tl.store(to, dgate.to(dgates.dtype.element_ty), mask=inside)
    tl.store(to + w, dopened.to(dgates.dtype.element_ty), mask=inside)
    to = sums + (row * tiles + tile) * 3 * e + head * w + off
    tl.store(to, tl.sum(tl.where(inside, dgate, 0.0), 0)[None, :], mask=off < w)
    tl.store(to + e, tl.sum(tl.where(inside, dopened, 0.0), 0)[None, :], mask=off < w)
    tl.store(to + 2 * e, tl.sum(tl.where(inside, -dlog * opened, 0.0), 0)[None, :], mask=off < w)


class _Shape:
    """Sizes of a call, and the grid of its kernels."""

    def __init__(self, x: Tensor, gates: Tensor) -> None:
        self.b, self.t, self.e = x.shape
        self.heads, self.w = gates.shape[0], gates.shape[2] // 2
        self.tiles = triton.cdiv(self.t, TILE)
        self.channels = min(CHANNELS, triton.next_power_of_2(self.w))
        self.grid = (self.tiles, self.b, self.heads * triton.cdiv(self.w, self.channels))
        self.sizes = (self.t, self.w, self.heads, TILE, self.channels)

    def between(self, x: Tensor, extra: int = 0) -> Tensor:
        """Return memory for a value of each tile (and `extra` more) and channel, float32."""
        return torch.empty(self.b, self.tiles + extra, self.e, dtype=torch.float32, device=x.device)

    def carry(self, decays: Tensor, ends: Tensor, first: Tensor, *, back: bool) -> Tensor:
        """Return the states between tiles, `first` (b, e) at the end where they begin."""
        states = self.between(ends, 1)
        grid = (self.b, triton.cdiv(self.e, CHANNELS))
        _carry[grid](decays, ends, first, states, self.tiles, self.e, back, TILE, CHANNELS)
        return states


def _states(x: Tensor, gates: Tensor, bias: Tensor, decay: Tensor, h0: Tensor, y: Tensor, flags: tuple[bool, bool]
            ) -> Tensor:  # fmt: skip
    """Write y, and return the states between tiles."""
    shape = _Shape(x, gates)
    decays, ends = shape.between(x), shape.between(x)
    _tile_ends[shape.grid](x, gates, bias, decay, decays, ends, *shape.sizes, *flags)
    states = shape.carry(decays, ends, h0, back=False)
    _tile_states[shape.grid](x, gates, bias, decay, states, y, *shape.sizes, *flags)
    return states


class _RgLru(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gates: Tensor, bias: Tensor, decay: Tensor, h0: Tensor, reverse: bool, reset: bool
    ) -> tuple[Tensor, Tensor]:
        y = torch.empty_like(x)
        states = _states(x, gates, bias, decay, h0, y, (reverse, reset))
        ctx.save_for_backward(x, gates, bias, decay, states)
        ctx.flags = (reverse, reset)
        return y, states[:, -1].clone()

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dh: Tensor) -> tuple[Tensor | None, ...]:
        x, gates, bias, decay, states = ctx.saved_tensors
        reverse, reset = ctx.flags
        shape = _Shape(x, gates)
        dy, dh = dy.contiguous(), dh.float().contiguous()
        decays, ends = shape.between(x), shape.between(x)
        _adjoint_ends[shape.grid](gates, bias, decay, dy, decays, ends, *shape.sizes, reverse)
        adjoints = shape.carry(decays, ends, dh, back=True)
        dx, dgates = torch.empty_like(x), torch.empty_like(gates)
        sums = torch.empty(shape.b, shape.tiles, 3, shape.e, dtype=torch.float32, device=x.device)
        _gradients[shape.grid](
            x, gates, bias, decay, states, dy, adjoints, dx, dgates, sums, shape.t, shape.w, shape.heads, _LEAST,
            TILE, shape.channels, reverse, reset,
        )  # fmt: skip
        sums = sums.sum((0, 1))
        # What reaches h0 has decayed by the first step too, which the adjoint between tiles has not.
        first = _first_decay(gates, bias, decay, shape, reverse=reverse, reset=reset)
        return dx, dgates, sums[:2], sums[2], adjoints[:, 0] * first, None, None


def _first_decay(gates: Tensor, bias: Tensor, decay: Tensor, shape: _Shape, *, reverse: bool, reset: bool) -> Tensor:
    """Return a of the first step, (b, e)."""
    if reset:
        return torch.zeros(shape.b, shape.e, device=gates.device)
    products = gates.view(shape.heads, shape.b, shape.t, -1)[:, :, -1 if reverse else 0, shape.w :]
    opened = torch.sigmoid(products.transpose(0, 1).reshape(shape.b, shape.e).float() + bias[1])
    return torch.exp(-opened * decay)


@on_its_device
def rglru(
    x: Tensor, gates: Tensor, gate_bias: Tensor, decay: Tensor, h0: Tensor, *,
    reverse: bool, reset: bool, out: Tensor | None = None, record: Record | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the recurrence over one chunk; shapes and meaning as in `naive.rglru`; float32 or bfloat16, t > 0.

    `out` (b, t, e) receives y where autograd is not at work.
    """
    inputs = (
        x.contiguous(), gates.contiguous(), gate_bias.float().contiguous(), decay.float().contiguous(),
        h0.float().contiguous(),
    )  # fmt: skip
    if backend.wants_grad(x, gates, gate_bias, decay, h0):
        y, end = _RgLru.apply(*inputs, reverse, reset)
        return y, end
    # The states asked for are float32, whatever y is.
    wide = record is not None and x.dtype != torch.float32
    y = torch.empty_like(inputs[0], dtype=torch.float32 if wide else x.dtype) if out is None or wide else out
    end = _states(*inputs, y, (reverse, reset))[:, -1].clone()
    if record is not None:
        record.pick(y, h0, reverse=reverse)
    if not wide:
        return y, end
    return (y.to(x.dtype) if out is None else out.copy_(y)), end


def worst_error(device: str) -> float:
    """Return how far outputs and gradients are from the definition's on random input."""
    generator = torch.Generator().manual_seed(0)
    b, t, heads, w = 2, TILE + 9, 2, 40

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device).requires_grad_()

    leaves = [draw(b, t, heads * w), draw(heads, b * t, 2 * w), draw(2, heads * w), draw(heads * w), draw(b, heads * w)]
    got: list[Tensor] = []
    expected: list[Tensor] = []
    for reverse, reset in ((False, True), (True, False)):
        for function, to in ((rglru, got), (naive.rglru, expected)):
            x, gates, bias, decay, h0 = leaves
            y, end = function(x, gates, bias, decay.exp(), h0, reverse=reverse, reset=reset)
            loss = (y.sin().sum() + end.sum()) / t
            to += [y.detach(), end.detach(), *torch.autograd.grad(loss, leaves)]
    return largest_difference(got, expected)
