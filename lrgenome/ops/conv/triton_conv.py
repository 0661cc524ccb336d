"""The depthwise convolution as Triton kernels for a GPU; "step" counts from where the direction comes from."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from lrgenome.ops import backend
from lrgenome.ops.conv import naive
from lrgenome.ops.trusted import largest_difference, on_its_device

TILE = 64
"""Steps of a tile."""
CHANNELS = 32
"""Channels of a tile."""


@triton.jit
def _at(steps, t, e, off, row, REVERSE: tl.constexpr):
    """Return where steps of a row lie in (b, t, e) memory."""
    where = t - 1 - steps if REVERSE else steps
    return (row * t + where.to(tl.int64)) * e + off


@triton.jit
def _input(x, halo, steps, t, e, off, row, K: tl.constexpr, REVERSE: tl.constexpr):
    """Read inputs at steps from -(K - 1), which the halo holds; 0 past the last one."""
    inside = (steps >= 0) & (steps < t) & (off < e)
    before = (steps < 0) & (off < e)
    value = tl.load(x + _at(steps, t, e, off, row, REVERSE), mask=inside, other=0.0).to(tl.float32)
    where = -1 - steps if REVERSE else steps + K - 1
    held = tl.load(halo + (row * (K - 1) + where.to(tl.int64)) * e + off, mask=before, other=0.0).to(tl.float32)
    return value + held


@triton.jit
def _forward(x, weight, bias, halo, y, t, e, K: tl.constexpr, TILE: tl.constexpr, CHANNELS: tl.constexpr,
             REVERSE: tl.constexpr, SILU: tl.constexpr):  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    steps = tl.program_id(0) * TILE + tl.arange(0, TILE)[:, None]
    off = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    total = tl.zeros((TILE, CHANNELS), tl.float32) + tl.load(bias + off, mask=off < e, other=0.0)
    for back in tl.static_range(K):
        tap = tl.load(weight + (K - 1 - back) * e + off, mask=off < e, other=0.0)
        total += tap * _input(x, halo, steps - back, t, e, off, row, K, REVERSE)
    if SILU:
        total = total * tl.sigmoid(total)
    tl.store(y + _at(steps, t, e, off, row, REVERSE), total.to(y.dtype.element_ty), mask=(steps < t) & (off < e))


@triton.jit
def _backward(x, weight, halo, dy, dx, sums, t, e, K: tl.constexpr, TILE: tl.constexpr, CHANNELS: tl.constexpr,
              REVERSE: tl.constexpr):  # fmt: skip
    """Write dx, and of each tile the sums for the taps and the bias, (b, tiles, K + 1, e) float32."""
    row = tl.program_id(1).to(tl.int64)
    steps = tl.program_id(0) * TILE + tl.arange(0, TILE)[:, None]
    off = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    inside = (steps < t) & (off < e)
    own = tl.load(dy + _at(steps, t, e, off, row, REVERSE), mask=inside, other=0.0).to(tl.float32)
    to = sums + (row * tl.num_programs(0) + tl.program_id(0)) * (K + 1) * e + off
    total = tl.zeros((TILE, CHANNELS), tl.float32)
    for back in tl.static_range(K):
        tap = tl.load(weight + (K - 1 - back) * e + off, mask=off < e, other=0.0)
        later = steps + back
        there = (later < t) & (off < e)
        total += tap * tl.load(dy + _at(later, t, e, off, row, REVERSE), mask=there, other=0.0).to(tl.float32)
        value = _input(x, halo, steps - back, t, e, off, row, K, REVERSE)
        tl.store(to + (K - 1 - back) * e, tl.sum(own * value, 0)[None, :], mask=off < e)
    tl.store(to + K * e, tl.sum(own, 0)[None, :], mask=off < e)
    tl.store(dx + _at(steps, t, e, off, row, REVERSE), total.to(dx.dtype.element_ty), mask=inside)


def _grid(x: Tensor) -> tuple[int, int, int]:
    b, t, e = x.shape
    return triton.cdiv(t, TILE), b, triton.cdiv(e, CHANNELS)


def _run(x: Tensor, weight: Tensor, bias: Tensor, halo: Tensor, y: Tensor, reverse: bool, silu: bool) -> Tensor:
    _, t, e = x.shape
    _forward[_grid(x)](x, weight, bias, halo, y, t, e, weight.shape[0], TILE, CHANNELS, reverse, silu)
    return y


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, halo: Tensor, reverse: bool, dtype: torch.dtype
    ) -> Tensor:
        ctx.save_for_backward(x, weight, halo)
        ctx.reverse = reverse
        return _run(x, weight, bias, halo, torch.empty_like(x, dtype=dtype), reverse, False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, halo = ctx.saved_tensors
        (b, t, e), k, dy = x.shape, weight.shape[0], dy.contiguous()
        grid, dx = _grid(x), torch.empty_like(x)
        sums = torch.empty(b, grid[0], k + 1, e, dtype=torch.float32, device=x.device)
        _backward[grid](x, weight, halo, dy, dx, sums, t, e, k, TILE, CHANNELS, ctx.reverse)
        sums = sums.sum((0, 1))
        dhalo = _halo_gradient(weight, dy, ctx.reverse).to(halo.dtype) if ctx.needs_input_grad[3] else None
        return dx, sums[:k], sums[k], dhalo, None, None


def _halo_gradient(weight: Tensor, dy: Tensor, reverse: bool) -> Tensor:
    """Return the gradient (b, k-1, e) of what came before: input j steps before step 0 has tap k - 1 - j at step 0."""
    k, t = weight.shape[0], dy.shape[1]
    first = (dy.flip(1) if reverse else dy)[:, : k - 1].float()
    rows = []
    for before in range(1, k):
        rows.append(sum((weight[k - 1 - before - step] * first[:, step] for step in range(min(t, k - before))),
                        torch.zeros_like(first[:, 0])))  # fmt: skip
    # Genomic order: the nearest last on the left side, first on the right one.
    return torch.stack(rows if reverse else rows[::-1], 1)


@on_its_device
def conv(
    x: Tensor, weight: Tensor, bias: Tensor, halo: Tensor, *,
    reverse: bool, silu: bool = False, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Convolve one chunk; shapes and meaning as in `naive.conv`; float32 or bfloat16, t > 0, two taps or more."""
    inputs = (
        x.contiguous(), weight.float().contiguous(), bias.float().contiguous(), halo.to(x.dtype).contiguous()
    )  # fmt: skip
    if backend.wants_grad(x, weight, bias, halo):
        # SiLU is taken of the sums before they are rounded.
        y: Tensor = _Conv.apply(*inputs, reverse, torch.float32 if silu else x.dtype)
        return functional.silu(y).to(x.dtype) if silu else y
    return _run(*inputs, torch.empty_like(inputs[0]) if out is None else out, reverse, silu)


def worst_error(device: str) -> float:
    """Return how far outputs and gradients are from the definition's on random input."""
    generator = torch.Generator().manual_seed(0)
    leaves = [
        torch.randn(shape, generator=generator).to(device).requires_grad_()
        for shape in ((2, TILE + 9, CHANNELS + 8), (4, CHANNELS + 8), (CHANNELS + 8,), (2, 3, CHANNELS + 8))
    ]
    got: list[Tensor] = []
    expected: list[Tensor] = []
    for reverse in (False, True):
        for silu in (False, True):
            for function, to in ((conv, got), (naive.conv, expected)):
                y = function(*leaves, reverse=reverse, silu=silu)
                with torch.no_grad():
                    to.append(function(*leaves, reverse=reverse, silu=silu))
                to += [y.detach(), *torch.autograd.grad(y.sin().sum() / y.shape[1], leaves)]
    return largest_difference(got, expected)
