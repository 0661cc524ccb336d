"""The depthwise convolution of width 4, with or without SiLU, on a CPU: one pass over memory each way."""

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from lrgenome.ops.intrinsics import fma, from_f32, to_f32, u
from lrgenome.ops.intrinsics import silu as silu_of
from lrgenome.ops.jit import kernel, storage

WIDTH = 4
_ROWS = 128
_LANES = 64


@kernel
def _forward(x: Any, weight: Any, bias: Any, halo: Any, y: Any, reverse: bool, silu: bool) -> None:
    b, t, e = x.shape
    blocks = (t + _ROWS - 1) // _ROWS
    for task in prange(b * blocks):
        row, block = task // blocks, task % blocks
        # Tap j reads row p - 3 + j (left to right) or p + 3 - j; rows off the chunk are in the halo.
        sign = 1 if reverse else -1
        for p in range(block * _ROWS, min(t, (block + 1) * _ROWS)):
            far = p + sign * 3
            p1, p2 = p + sign * 2, p + sign
            if 0 <= far < t and silu:
                for c in range(e):
                    value = fma(weight[0, c], to_f32(x[row, far, c]), bias[c])
                    value = fma(weight[1, c], to_f32(x[row, p1, c]), value)
                    value = fma(weight[2, c], to_f32(x[row, p2, c]), value)
                    value = fma(weight[3, c], to_f32(x[row, p, c]), value)
                    y[row, p, c] = from_f32(silu_of(value), y)
            elif 0 <= far < t:
                for c in range(e):
                    value = fma(weight[0, c], to_f32(x[row, far, c]), bias[c])
                    value = fma(weight[1, c], to_f32(x[row, p1, c]), value)
                    value = fma(weight[2, c], to_f32(x[row, p2, c]), value)
                    value = fma(weight[3, c], to_f32(x[row, p, c]), value)
                    y[row, p, c] = from_f32(value, y)
            else:
                for c in range(e):
                    value = bias[c]
                    for j in range(WIDTH):
                        q = p + sign * (3 - j)
                        if q < 0:
                            value = fma(weight[j, c], to_f32(halo[row, q + 3, c]), value)
                        elif q >= t:
                            value = fma(weight[j, c], to_f32(halo[row, q - t, c]), value)
                        else:
                            value = fma(weight[j, c], to_f32(x[row, q, c]), value)
                    y[row, p, c] = from_f32(silu_of(value) if silu else value, y)


@kernel
def _backward(
    x: Any, weight: Any, halo: Any, dy: Any, dx: Any, dhalo: Any, dweight: Any, dbias: Any, reverse: bool
) -> None:
    b, t, e = x.shape
    blocks = (e + _LANES - 1) // _LANES
    for task in prange(b * blocks):
        row, lo = task // blocks, (task % blocks) * _LANES
        hi = min(e, lo + _LANES)
        n = hi - lo
        sign = 1 if reverse else -1
        sums = np.zeros((5, _LANES), np.float32)
        for p in range(t):
            near, far = p - sign * 3, p + sign * 3
            # dx_q gathers from the outputs that read it: q, q - sign, q - 2 sign, q - 3 sign.
            if 0 <= near < t:
                p1, p2 = p - sign, p - sign * 2
                for c in range(lo, hi):
                    value = weight[3, u(c)] * to_f32(dy[row, p, u(c)])
                    value = fma(weight[2, u(c)], to_f32(dy[row, p1, u(c)]), value)
                    value = fma(weight[1, u(c)], to_f32(dy[row, p2, u(c)]), value)
                    value = fma(weight[0, u(c)], to_f32(dy[row, near, u(c)]), value)
                    dx[row, p, u(c)] = from_f32(value, dx)
            else:
                for c in range(lo, hi):
                    value = np.float32(0.0)
                    for j in range(WIDTH):
                        q = p - sign * (3 - j)
                        if 0 <= q < t:
                            value = fma(weight[j, u(c)], to_f32(dy[row, q, u(c)]), value)
                    dx[row, p, u(c)] = from_f32(value, dx)
            if 0 <= far < t:
                p1, p2 = p + sign * 2, p + sign
                for i in range(n):
                    c = lo + i
                    g = to_f32(dy[row, p, u(c)])
                    sums[0, i] = fma(g, to_f32(x[row, far, u(c)]), sums[0, i])
                    sums[1, i] = fma(g, to_f32(x[row, p1, u(c)]), sums[1, i])
                    sums[2, i] = fma(g, to_f32(x[row, p2, u(c)]), sums[2, i])
                    sums[3, i] = fma(g, to_f32(x[row, p, u(c)]), sums[3, i])
                    sums[4, i] += g
            else:
                for i in range(n):
                    c = lo + i
                    g = to_f32(dy[row, p, u(c)])
                    sums[4, i] += g
                    for j in range(WIDTH):
                        q = p + sign * (3 - j)
                        if q < 0:
                            sums[j, i] = fma(g, to_f32(halo[row, q + 3, u(c)]), sums[j, i])
                        elif q >= t:
                            sums[j, i] = fma(g, to_f32(halo[row, q - t, u(c)]), sums[j, i])
                        else:
                            sums[j, i] = fma(g, to_f32(x[row, q, u(c)]), sums[j, i])
        for slot in range(3):
            q = t + slot if reverse else slot - 3
            for c in range(lo, hi):
                value = np.float32(0.0)
                for j in range(WIDTH):
                    p = q - sign * (3 - j)
                    if 0 <= p < t:
                        value = fma(weight[j, u(c)], to_f32(dy[row, p, u(c)]), value)
                dhalo[row, slot, u(c)] = from_f32(value, dhalo)
        for i in range(n):
            for j in range(WIDTH):
                dweight[row, j, u(lo + i)] = sums[j, i]
            dbias[row, u(lo + i)] = sums[4, i]


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, halo: Tensor, reverse: bool, silu: bool) -> Tensor:
        ctx.save_for_backward(x, weight, bias, halo)
        ctx.flags = (reverse, silu)
        return run(x, weight, bias, halo, reverse=reverse, silu=silu)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, halo = ctx.saved_tensors
        reverse, silu = ctx.flags
        b, _, e = x.shape
        if silu:
            # What SiLU was taken of, made again, and unrounded: its slope crosses zero.
            before = run(x, weight, bias, halo, reverse=reverse, out=torch.empty(x.shape))
            dy = torch.ops.aten.silu_backward(dy.float(), before)
        dx, dhalo = torch.empty_like(x), torch.empty_like(halo)
        dweight, dbias = torch.empty(b, WIDTH, e), torch.empty(b, e)
        _backward(
            storage(x), storage(weight), storage(halo), storage(dy.contiguous()),
            storage(dx), storage(dhalo), storage(dweight), storage(dbias), reverse,
        )  # fmt: skip
        return dx, dweight.sum(0), dbias.sum(0), dhalo, None, None


def run(
    x: Tensor, weight: Tensor, bias: Tensor, halo: Tensor, *,
    reverse: bool, silu: bool = False, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Run the forward kernel without autograd; `out` (b, t, e) receives y if given."""
    y = torch.empty_like(x) if out is None else out
    _forward(storage(x), storage(weight), storage(bias), storage(halo), storage(y), reverse, silu)
    return y


def conv(x: Tensor, weight: Tensor, bias: Tensor, halo: Tensor, *, reverse: bool, silu: bool = False) -> Tensor:
    """Convolve one chunk; shapes and meaning as in `naive.conv`; width 4, float32 or bfloat16."""
    result: Tensor = _Conv.apply(
        x.contiguous(), weight.float().contiguous(), bias.float().contiguous(), halo.contiguous(), reverse, silu
    )
    return result
