"""Gates: of the MLP (GELU), and of the recurrent branch over the sum of both directions (GELU; SiLU in Mamba).

GELU is the tanh form, as in RecurrentGemma. Each has its definition in torch and a fused CPU pass.
"""

from types import ModuleType
from typing import Any, cast

import torch
from numba import prange
from torch import Tensor
from torch.nn.functional import gelu as torch_gelu
from torch.nn.functional import silu as torch_silu

from lrgenome.ops import backend
from lrgenome.ops.intrinsics import from_f32, gelu, gelu_and_slope, silu, silu_and_slope, to_f32
from lrgenome.ops.jit import kernel, storage
from lrgenome.ops.trusted import TRITON_ROWS, trusted

_ROWS = 32


def naive_geglu(m: Tensor) -> Tensor:
    """Compute gelu(m[:, :f]) * m[:, f:] for (n, 2f) products, by the definition."""
    left, right = m.chunk(2, dim=-1)
    wide = torch.float64 if m.dtype == torch.float64 else torch.float32
    return (torch_gelu(left.to(wide), approximate="tanh") * right.to(wide)).to(m.dtype)


def naive_gate_sum(gate: Tensor, y1: Tensor, y2: Tensor) -> Tensor:
    """Compute gelu(gate) * (y1 + y2), all (n, e), by the definition."""
    wide = torch.float64 if gate.dtype == torch.float64 else torch.float32
    return (torch_gelu(gate.to(wide), approximate="tanh") * (y1.to(wide) + y2.to(wide))).to(gate.dtype)


def naive_silu_gate_sum(gate: Tensor, y1: Tensor, y2: Tensor) -> Tensor:
    """Compute silu(gate) * (y1 + y2), all (n, e), by the definition."""
    wide = torch.float64 if gate.dtype == torch.float64 else torch.float32
    return (torch_silu(gate.to(wide)) * (y1.to(wide) + y2.to(wide))).to(gate.dtype)


@kernel
def _geglu(m: Any, out: Any) -> None:
    n, f = out.shape
    for block in prange((n + _ROWS - 1) // _ROWS):
        for i in range(block * _ROWS, min(n, (block + 1) * _ROWS)):
            for c in range(f):
                out[i, c] = from_f32(gelu(to_f32(m[i, c])) * to_f32(m[i, f + c]), out)


@kernel
def _geglu_backward(m: Any, dout: Any, dm: Any) -> None:
    n, f = dout.shape
    for block in prange((n + _ROWS - 1) // _ROWS):
        for i in range(block * _ROWS, min(n, (block + 1) * _ROWS)):
            for c in range(f):
                value, slope = gelu_and_slope(to_f32(m[i, c]))
                g = to_f32(dout[i, c])
                dm[i, c] = from_f32(g * to_f32(m[i, f + c]) * slope, dm)
                dm[i, f + c] = from_f32(g * value, dm)


@kernel
def _gate_sum(gate: Any, y1: Any, y2: Any, out: Any) -> None:
    n, e = out.shape
    for block in prange((n + _ROWS - 1) // _ROWS):
        for i in range(block * _ROWS, min(n, (block + 1) * _ROWS)):
            for c in range(e):
                out[i, c] = from_f32(gelu(to_f32(gate[i, c])) * (to_f32(y1[i, c]) + to_f32(y2[i, c])), out)


@kernel
def _gate_sum_backward(gate: Any, y1: Any, y2: Any, dout: Any, dgate: Any, dy: Any) -> None:
    n, e = dout.shape
    for block in prange((n + _ROWS - 1) // _ROWS):
        for i in range(block * _ROWS, min(n, (block + 1) * _ROWS)):
            for c in range(e):
                value, slope = gelu_and_slope(to_f32(gate[i, c]))
                g = to_f32(dout[i, c])
                dgate[i, c] = from_f32(g * (to_f32(y1[i, c]) + to_f32(y2[i, c])) * slope, dgate)
                dy[i, c] = from_f32(g * value, dy)


@kernel
def _silu_gate_sum(gate: Any, y1: Any, y2: Any, out: Any) -> None:
    n, e = out.shape
    for block in prange((n + _ROWS - 1) // _ROWS):
        for i in range(block * _ROWS, min(n, (block + 1) * _ROWS)):
            for c in range(e):
                out[i, c] = from_f32(silu(to_f32(gate[i, c])) * (to_f32(y1[i, c]) + to_f32(y2[i, c])), out)


@kernel
def _silu_gate_sum_backward(gate: Any, y1: Any, y2: Any, dout: Any, dgate: Any, dy: Any) -> None:
    n, e = dout.shape
    for block in prange((n + _ROWS - 1) // _ROWS):
        for i in range(block * _ROWS, min(n, (block + 1) * _ROWS)):
            for c in range(e):
                value, slope = silu_and_slope(to_f32(gate[i, c]))
                g = to_f32(dout[i, c])
                dgate[i, c] = from_f32(g * (to_f32(y1[i, c]) + to_f32(y2[i, c])) * slope, dgate)
                dy[i, c] = from_f32(g * value, dy)


class _Geglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, m: Tensor) -> Tensor:
        ctx.save_for_backward(m)
        out = m.new_empty(m.shape[0], m.shape[1] // 2)
        _geglu(storage(m), storage(out))
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Tensor:
        (m,) = ctx.saved_tensors
        dm = torch.empty_like(m)
        _geglu_backward(storage(m), storage(dout.contiguous()), storage(dm))
        return dm


class _GateSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, y1: Tensor, y2: Tensor, forward: Any, backward: Any) -> Tensor:
        ctx.save_for_backward(gate, y1, y2)
        ctx.kernel = backward
        out = torch.empty_like(gate)
        forward(storage(gate), storage(y1), storage(y2), storage(out))
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        gate, y1, y2 = ctx.saved_tensors
        dgate, dy = torch.empty_like(gate), torch.empty_like(y1)
        ctx.kernel(storage(gate), storage(y1), storage(y2), storage(dout.contiguous()), storage(dgate), storage(dy))
        return dgate, dy, dy, None, None


def _kernels(x: Tensor) -> ModuleType | None:
    """Return the kernels for a GPU, if `x` is there and they are trusted."""
    return trusted(TRITON_ROWS, str(x.device)) if backend.select(x) == "cuda" else None


def geglu(m: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Compute gelu(m[:, :f]) * m[:, f:] for (n, 2f) products; `out` (n, f) is ignored under autograd."""
    if (kernels := _kernels(m)) is not None:
        return cast(Tensor, kernels.geglu(m, out))
    if backend.select(m) != "cpu":
        return naive_geglu(m)
    if backend.wants_grad(m):
        result: Tensor = _Geglu.apply(m.contiguous())
        return result
    y = m.new_empty(m.shape[0], m.shape[1] // 2) if out is None else out
    _geglu(storage(m), storage(y))
    return y


def _gate_both(gate: Tensor, y1: Tensor, y2: Tensor, out: Tensor | None, forward: Any, backward: Any) -> Tensor:
    if backend.wants_grad(gate, y1, y2):
        result: Tensor = _GateSum.apply(gate.contiguous(), y1.contiguous(), y2.contiguous(), forward, backward)
        return result
    y = torch.empty_like(gate) if out is None else out
    forward(storage(gate), storage(y1), storage(y2), storage(y))
    return y


def gate_sum(gate: Tensor, y1: Tensor, y2: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Compute gelu(gate) * (y1 + y2), all (n, e); `out` may be one of the inputs, and is ignored under autograd."""
    if (kernels := _kernels(gate)) is not None:
        return cast(Tensor, kernels.gate_sum(gate, y1, y2, kernels.GELU, out))
    if backend.select(gate) != "cpu":
        return naive_gate_sum(gate, y1, y2)
    return _gate_both(gate, y1, y2, out, _gate_sum, _gate_sum_backward)


def silu_gate_sum(gate: Tensor, y1: Tensor, y2: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Compute silu(gate) * (y1 + y2), as `gate_sum` does with GELU."""
    if (kernels := _kernels(gate)) is not None:
        return cast(Tensor, kernels.gate_sum(gate, y1, y2, kernels.SILU, out))
    if backend.select(gate) != "cpu":
        return naive_silu_gate_sum(gate, y1, y2)
    return _gate_both(gate, y1, y2, out, _silu_gate_sum, _silu_gate_sum_backward)
