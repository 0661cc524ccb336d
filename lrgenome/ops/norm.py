"""RMSNorm with the residual sum before it: the definition in torch, and a fused CPU pass.

y = x / sqrt(mean(x^2) + eps) * (1 + scale), as in RecurrentGemma (scale starts at 0), whose eps is the default. Mean
and product are float32 whatever the dtypes.
"""

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from lrgenome.ops import backend
from lrgenome.ops.intrinsics import fma, from_f32, to_f32
from lrgenome.ops.jit import kernel, storage
from lrgenome.ops.trusted import TRITON_ROWS, trusted

EPS = 1e-6
_ROWS = 32
_PARTS = 32


def naive_rms_norm(x: Tensor, scale: Tensor, dtype: torch.dtype, eps: float = EPS) -> Tensor:
    """Normalise the last axis of `x` (..., d) by the definition; the result has `dtype`."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    x = x.to(wide)
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * (1.0 + scale.to(wide))).to(dtype)


@kernel
def _forward(x: Any, delta: Any, add: bool, scale: Any, y: Any, eps: float) -> None:
    n, d = x.shape
    lanes = 16
    for block in prange((n + _ROWS - 1) // _ROWS):
        row = np.empty(d, np.float32)
        for i in range(block * _ROWS, min(n, (block + 1) * _ROWS)):
            if add:
                for c in range(d):
                    x[i, c] = from_f32(to_f32(x[i, c]) + to_f32(delta[i, c]), x)
            for c in range(d):
                row[c] = to_f32(x[i, c])
            # Sixteen partial sums by hand: reassociation is off, so the compiler may not make them.
            parts = np.zeros(lanes, np.float32)
            whole = d // lanes * lanes
            for lo in range(0, whole, lanes):
                for c in range(lanes):
                    parts[c] = fma(row[lo + c], row[lo + c], parts[c])
            total = np.float32(0.0)
            for c in range(whole, d):
                total += row[c] * row[c]
            for c in range(lanes):
                total += parts[c]
            factor = np.float32(1.0) / np.sqrt(total / np.float32(d) + np.float32(eps))
            for c in range(d):
                y[i, c] = from_f32(row[c] * factor * (np.float32(1.0) + scale[c]), y)


@kernel
def _backward(x: Any, scale: Any, dy: Any, dx: Any, dscale: Any, eps: float) -> None:
    n, d = x.shape
    size = (n + _PARTS - 1) // _PARTS
    for part in prange(_PARTS):
        row = np.empty(d, np.float32)
        g = np.empty(d, np.float32)
        sums = np.zeros(d, np.float32)
        for i in range(part * size, min(n, (part + 1) * size)):
            squares = np.zeros(16, np.float32)
            dots = np.zeros(16, np.float32)
            whole = d // 16 * 16
            for c in range(d):
                row[c] = to_f32(x[i, c])
                g[c] = to_f32(dy[i, c])
            for lo in range(0, whole, 16):
                for c in range(16):
                    value = row[lo + c]
                    squares[c] = fma(value, value, squares[c])
                    dots[c] = fma(value * g[lo + c], np.float32(1.0) + scale[lo + c], dots[c])
            square, dot = np.float32(0.0), np.float32(0.0)
            for c in range(whole, d):
                square += row[c] * row[c]
                dot += row[c] * g[c] * (np.float32(1.0) + scale[c])
            for c in range(16):
                square += squares[c]
                dot += dots[c]
            factor = np.float32(1.0) / np.sqrt(square / np.float32(d) + np.float32(eps))
            pull = dot * factor * factor * factor / np.float32(d)
            for c in range(d):
                dx[i, c] = from_f32(fma(g[c] * (np.float32(1.0) + scale[c]), factor, -row[c] * pull), dx)
                sums[c] = fma(g[c] * row[c], factor, sums[c])
        for c in range(d):
            dscale[part, c] = sums[c]


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, dtype: torch.dtype, eps: float) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.eps = eps
        y = torch.empty(x.shape, dtype=dtype)
        _forward(storage(x), storage(x), False, storage(scale), storage(y), eps)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        dx = torch.empty_like(x)
        dscale = torch.empty(_PARTS, x.shape[1])
        _backward(storage(x), storage(scale), storage(dy.contiguous()), storage(dx), storage(dscale), ctx.eps)
        return dx, dscale.sum(0), None, None


def rms_norm(
    x: Tensor, scale: Tensor, dtype: torch.dtype, *, eps: float = EPS, out: Tensor | None = None
) -> Tensor:
    """Normalise rows.

    Parameters
    ----------
    x
        (n, d) rows.
    scale
        (d,) float32.
    dtype
        Of the result.
    eps
        Added to the mean square.
    out
        (n, d) buffer of `dtype` for the result; ignored where autograd is at work.
    """
    if backend.select(x) != "cpu":
        kernels = trusted(TRITON_ROWS, str(x.device)) if backend.select(x) == "cuda" else None
        if kernels is None:
            return naive_rms_norm(x, scale, dtype, eps)
        normed: Tensor = kernels.rms_norm(x, scale, dtype, eps, out=out)[1]
        return normed
    if backend.wants_grad(x, scale):
        result: Tensor = _RmsNorm.apply(x.contiguous(), scale, dtype, eps)
        return result
    y = torch.empty(x.shape, dtype=dtype) if out is None else out
    _forward(storage(x), storage(x), False, storage(scale), storage(y), eps)
    return y


def add_rms_norm(
    x: Tensor, delta: Tensor, scale: Tensor, dtype: torch.dtype, *, eps: float = EPS, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Add `delta` (n, d) to the residual stream `x` (n, d), then normalise; returns (x + delta, normalised).

    Where autograd is not at work, `x` may be updated in place.
    """
    if backend.select(x) == "cuda" and (kernels := trusted(TRITON_ROWS, str(x.device))) is not None:
        result: tuple[Tensor, Tensor] = kernels.rms_norm(x, scale, dtype, eps, delta, out)
        return result
    if backend.select(x) != "cpu" or backend.wants_grad(x, delta, scale):
        x = x + delta
        return x, rms_norm(x, scale, dtype, eps=eps)
    y = torch.empty(x.shape, dtype=dtype) if out is None else out
    _forward(storage(x), storage(delta), True, storage(scale), storage(y), eps)
    return x, y
