"""Norm, gated MLP and gated sum as Triton kernels for a GPU, each one pass over memory; arithmetic is float32."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lrgenome.ops import backend
from lrgenome.ops.trusted import largest_difference, on_its_device

BLOCK = 1024
"""Values of a program."""
PROGRAMS = 1024
"""Programs that the rows of a norm's backward pass are shared among; each has a sum of its own."""
GELU, SILU = 0, 1


@triton.jit
def _gate(x, KIND: tl.constexpr):
    """Return act(x) and its slope: GELU in its tanh form, 1/2 (1 + tanh u) = sigmoid(2 u), or SiLU."""
    z = x if KIND == 1 else 1.5957691216057308 * (x + 0.044715 * x * x * x)
    dz = 1.0 if KIND == 1 else 1.5957691216057308 * (1.0 + 0.134145 * x * x)
    small = tl.exp(-tl.abs(z))
    large = 1.0 / (1.0 + small)
    small = small * large
    opened, closed = tl.where(z < 0.0, small, large), tl.where(z < 0.0, large, small)
    return x * opened, opened + x * opened * closed * dz


@triton.jit
def _geglu(m, out, size, f, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    left = m + at // f * (2 * f) + at % f
    value, _ = _gate(tl.load(left, mask=inside, other=0.0).to(tl.float32), 0)
    value = value * tl.load(left + f, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _geglu_backward(m, dout, dm, size, f, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    left = at // f * (2 * f) + at % f
    value, slope = _gate(tl.load(m + left, mask=inside, other=0.0).to(tl.float32), 0)
    right = tl.load(m + left + f, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(dout + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(dm + left, (g * right * slope).to(dm.dtype.element_ty), mask=inside)
    tl.store(dm + left + f, (g * value).to(dm.dtype.element_ty), mask=inside)


@triton.jit
def _gate_sum(gate, y1, y2, out, size, KIND: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    value, _ = _gate(tl.load(gate + at, mask=inside, other=0.0).to(tl.float32), KIND)
    both = tl.load(y1 + at, mask=inside, other=0.0).to(tl.float32)
    both += tl.load(y2 + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, (value * both).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gate_sum_backward(gate, y1, y2, dout, dgate, dy, size, KIND: tl.constexpr,
                       BLOCK: tl.constexpr):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    value, slope = _gate(tl.load(gate + at, mask=inside, other=0.0).to(tl.float32), KIND)
    both = tl.load(y1 + at, mask=inside, other=0.0).to(tl.float32)
    both += tl.load(y2 + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(dout + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(dgate + at, (g * both * slope).to(dgate.dtype.element_ty), mask=inside)
    tl.store(dy + at, (g * value).to(dy.dtype.element_ty), mask=inside)


@triton.jit
def _norm(x, delta, total, scale, y, n, d, eps, ADD: tl.constexpr, ROWS: tl.constexpr,
          WIDE: tl.constexpr):  # fmt: skip
    """Normalise ROWS rows; with ADD, x + delta is normalised, and written to `total`, which may be x."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    off = tl.arange(0, WIDE)[None, :]
    inside = (row < n) & (off < d)
    at = row * d + off
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        value += tl.load(delta + at, mask=inside, other=0.0).to(tl.float32)
        value = value.to(total.dtype.element_ty)
        tl.store(total + at, value, mask=inside)
        value = value.to(tl.float32)
    factor = 1.0 / tl.sqrt(tl.sum(value * value, 1)[:, None] / d + eps)
    weight = 1.0 + tl.load(scale + off, mask=off < d, other=0.0)
    tl.store(y + at, (value * factor * weight).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _norm_backward(x, scale, dy, dtotal, dx, sums, n, d, eps, ADD: tl.constexpr, ROWS: tl.constexpr,
                   WIDE: tl.constexpr):  # fmt: skip
    """Write dx of each row (plus `dtotal`, with ADD), and of each program its sum for the scale, (programs, d)."""
    off = tl.arange(0, WIDE)[None, :]
    weight = 1.0 + tl.load(scale + off, mask=off < d, other=0.0)
    total = tl.zeros((ROWS, WIDE), tl.float32)
    low = tl.program_id(0).to(tl.int64) * ROWS
    while low < n:
        row = low + tl.arange(0, ROWS)[:, None]
        inside = (row < n) & (off < d)
        at = row * d + off
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        factor = 1.0 / tl.sqrt(tl.sum(value * value, 1)[:, None] / d + eps)
        pull = tl.sum(value * g * weight, 1)[:, None] * factor * factor * factor / d
        result = g * weight * factor - value * pull
        if ADD:
            result += tl.load(dtotal + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx + at, result.to(dx.dtype.element_ty), mask=inside)
        total += g * value * factor
        low += tl.num_programs(0) * ROWS
    tl.store(sums + tl.program_id(0) * d + off, tl.sum(total, 0)[None, :], mask=off < d)


def _blocks(size: int) -> tuple[int]:
    return (triton.cdiv(size, BLOCK),)


def _tile(d: int) -> tuple[int, int]:
    """Return rows and width of a norm's tile."""
    wide = triton.next_power_of_2(d)
    return max(1, 4096 // wide), wide


class _Geglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, m: Tensor) -> Tensor:
        ctx.save_for_backward(m)
        return _run_geglu(m)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Tensor:
        (m,) = ctx.saved_tensors
        n, f = dout.shape
        dm = torch.empty_like(m)
        _geglu_backward[_blocks(n * f)](m, dout.contiguous(), dm, n * f, f, BLOCK)
        return dm


def _run_geglu(m: Tensor, out: Tensor | None = None) -> Tensor:
    n, f = m.shape[0], m.shape[1] // 2
    out = m.new_empty(n, f) if out is None else out
    _geglu[_blocks(n * f)](m, out, n * f, f, BLOCK)
    return out


@on_its_device
def geglu(m: Tensor, out: Tensor | None = None) -> Tensor:
    """Compute gelu(m[:, :f]) * m[:, f:] for (n, 2f) products; `out` (n, f), contiguous, is ignored under autograd."""
    m = m.contiguous()
    if backend.wants_grad(m):
        result: Tensor = _Geglu.apply(m)
        return result
    return _run_geglu(m, out)


class _GateSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, y1: Tensor, y2: Tensor, kind: int) -> Tensor:
        ctx.save_for_backward(gate, y1, y2)
        ctx.kind = kind
        return _run_gate_sum(gate, y1, y2, kind)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        gate, y1, y2 = ctx.saved_tensors
        dgate, dy = torch.empty_like(gate), torch.empty_like(y1)
        size = gate.numel()
        _gate_sum_backward[_blocks(size)](gate, y1, y2, dout.contiguous(), dgate, dy, size, ctx.kind, BLOCK)
        return dgate, dy, dy, None


def _run_gate_sum(gate: Tensor, y1: Tensor, y2: Tensor, kind: int, out: Tensor | None = None) -> Tensor:
    out = torch.empty_like(gate) if out is None else out
    _gate_sum[_blocks(gate.numel())](gate, y1, y2, out, gate.numel(), kind, BLOCK)
    return out


@on_its_device
def gate_sum(gate: Tensor, y1: Tensor, y2: Tensor, kind: int = GELU, out: Tensor | None = None) -> Tensor:
    """Compute act(gate) * (y1 + y2), all (n, e); `out`, contiguous, may be an input; ignored under autograd."""
    gate, y1, y2 = gate.contiguous(), y1.contiguous(), y2.contiguous()
    if backend.wants_grad(gate, y1, y2):
        result: Tensor = _GateSum.apply(gate, y1, y2, kind)
        return result
    return _run_gate_sum(gate, y1, y2, kind, out)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor | None, scale: Tensor, dtype: torch.dtype, eps: float
    ) -> tuple[Tensor, Tensor]:
        total, y = _run_norm(x, delta, scale, dtype, eps, in_place=False)
        ctx.save_for_backward(total, scale)
        ctx.add, ctx.eps = None if delta is None else delta.dtype, eps
        return (x.new_empty(0) if delta is None else total), y

    @staticmethod
    def backward(ctx: Any, dtotal: Tensor, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        n, d = x.shape
        dx, sums = torch.empty_like(x), torch.empty(min(PROGRAMS, n), d, dtype=torch.float32, device=x.device)
        add = ctx.add is not None
        _norm_backward[(len(sums),)](
            x, scale, dy.contiguous(), dtotal.contiguous() if add else dx, dx, sums, n, d, ctx.eps, add, *_tile(d)
        )
        return dx, dx.to(ctx.add) if add else None, sums.sum(0), None, None


def _run_norm(
    x: Tensor, delta: Tensor | None, scale: Tensor, dtype: torch.dtype, eps: float, *,
    in_place: bool, out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    n, d = x.shape
    y = torch.empty(n, d, dtype=dtype, device=x.device) if out is None else out
    total = x if in_place or delta is None else torch.empty_like(x)
    rows, wide = _tile(d)
    _norm[(triton.cdiv(n, rows),)](
        x, x if delta is None else delta, total, scale, y, n, d, eps, delta is not None, rows, wide
    )
    return total, y


@on_its_device
def rms_norm(
    x: Tensor, scale: Tensor, dtype: torch.dtype, eps: float, delta: Tensor | None = None, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Normalise the rows of x + delta (n, d); returns that sum, and its norm in `dtype`.

    Without autograd the sum is written to x, and the norm to `out` (n, d), contiguous, if that is given.
    """
    x, scale = x.contiguous(), scale.float().contiguous()
    delta = None if delta is None else delta.contiguous()
    if backend.wants_grad(x, scale, delta):
        total, y = _Norm.apply(x, delta, scale, dtype, eps)
        return (x if delta is None else total), y
    return _run_norm(x, delta, scale, dtype, eps, in_place=True, out=out)


def worst_error(device: str) -> float:
    """Return how far outputs and gradients are from the definition's on random input."""
    from lrgenome.ops import gating, norm

    generator = torch.Generator().manual_seed(0)
    x, other, third = (torch.randn(50, 72, generator=generator).to(device).requires_grad_() for _ in range(3))
    scale = torch.randn(72, generator=generator).to(device).requires_grad_()

    def normed(x: Tensor, scale: Tensor, dtype: torch.dtype, eps: float, delta: Tensor) -> tuple[Tensor, Tensor]:
        return x + delta, norm.naive_rms_norm(x + delta, scale, dtype, eps)

    calls = (
        (geglu, gating.naive_geglu, (x,)),
        (gate_sum, gating.naive_gate_sum, (x, other, third)),
        (lambda x, y, z: gate_sum(x, y, z, SILU), gating.naive_silu_gate_sum, (x, other, third)),
        (lambda x, s: rms_norm(x, s, torch.float32, 1e-6)[1], lambda x, s: norm.naive_rms_norm(x, s, torch.float32),
         (x, scale)),
        (lambda x, o, s: torch.cat(rms_norm(x, s, torch.float32, 1e-6, o)),
         lambda x, o, s: torch.cat(normed(x, s, torch.float32, 1e-6, o)), (x, other, scale)),
    )  # fmt: skip
    got: list[Tensor] = []
    expected: list[Tensor] = []
    for fast, slow, leaves in calls:
        for function, to in ((fast, got), (slow, expected)):
            y = function(*leaves)
            to += [y.detach(), *torch.autograd.grad(y.sin().sum() / len(y), leaves)]
            with torch.no_grad():
                to.append(function(*(leaf.clone() for leaf in leaves)))
    return largest_difference(got, expected)
