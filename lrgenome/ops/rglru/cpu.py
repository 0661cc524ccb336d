"""The RG-LRU on a CPU: gates and recurrence fused in one pass over memory, forward and backward.

One task is a block of `LANES` channels of one sequence; inside it, positions run in order and channels are
SIMD lanes. Gate products are read where the matrix product left them. State is float32; input, gates and
output are float32 or bfloat16.
"""

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from lrgenome.ops.intrinsics import CACHE_LINE, expm1, fma, from_f32, prefetch, sigmoid, to_f32, u
from lrgenome.ops.jit import kernel, storage
from lrgenome.ops.record import Record
from lrgenome.ops.rglru.naive import MAX_SQRT_SLOPE

LANES = 64
_AHEAD = 6
_ONE = np.float32(1.0)
_TWO = np.float32(2.0)
_HALF = np.float32(0.5)
_LEAST = np.float32(0.5 / MAX_SQRT_SLOPE)


@kernel
def _forward(
    x: Any, gates: Any, bias: Any, decay: Any, h: Any, y: Any, when: Any, marks: Any, lanes: int, reverse: bool,
    reset: bool,
) -> None:  # fmt: skip
    b, t, e = x.shape
    w = gates.shape[2] // 2
    blocks = e // lanes
    for task in prange(b * blocks):
        row, block = task // blocks, task % blocks
        lo = block * lanes
        head, off = lo // w, lo % w
        state = np.empty(lanes, np.float32)
        for c in range(lanes):
            state[c] = h[row, u(lo + c)]
        mark = 0
        for step in range(t):
            while mark < len(when) and when[mark] == step:
                for c in range(lanes):
                    marks[row, mark, u(lo + c)] = state[c]
                mark += 1
            p = t - 1 - step if reverse else step
            q = row * t + p
            # Rows lie kilobytes apart: the hardware does not foresee them.
            ahead = -_AHEAD if reverse else _AHEAD
            for c in range(0, lanes, CACHE_LINE // x.itemsize):
                prefetch(x, row, p + ahead, lo + c, 0)
                prefetch(gates, head, q + ahead, off + c, 0)
                prefetch(gates, head, q + ahead, w + off + c, 0)
                prefetch(y, row, p + ahead, lo + c, 1)
            if reset and step == 0:
                for c in range(lanes):
                    gate = sigmoid(to_f32(gates[head, q, u(off + c)]) + bias[0, u(lo + c)])
                    value = to_f32(x[row, p, u(lo + c)]) * gate
                    state[c] = value
                    y[row, p, u(lo + c)] = from_f32(value, y)
            else:
                for c in range(lanes):
                    gate = sigmoid(to_f32(gates[head, q, u(off + c)]) + bias[0, u(lo + c)])
                    r = sigmoid(to_f32(gates[head, q, u(w + off + c)]) + bias[1, u(lo + c)])
                    em = expm1(-r * decay[u(lo + c)])
                    value = to_f32(x[row, p, u(lo + c)]) * gate * np.sqrt(-em * (_TWO + em))
                    value = state[c] + fma(em, state[c], value)
                    state[c] = value
                    y[row, p, u(lo + c)] = from_f32(value, y)
        for c in range(lanes):
            h[row, u(lo + c)] = state[c]
        for last in range(mark, len(when)):
            for c in range(lanes):
                marks[row, last, u(lo + c)] = state[c]


@kernel
def _backward(
    x: Any, gates: Any, bias: Any, decay: Any, h0: Any, dy: Any, dh: Any,
    dx: Any, dgates: Any, dbias: Any, ddecay: Any, lanes: int, reverse: bool, reset: bool,
) -> None:  # fmt: skip
    b, t, e = x.shape
    w = gates.shape[2] // 2
    blocks = e // lanes
    for task in prange(b * blocks):
        row, block = task // blocks, task % blocks
        lo = block * lanes
        head, off = lo // w, lo % w
        # States are made again in float32: stored ones may have been rounded to bfloat16.
        states = np.empty((t + 1, lanes), np.float32)
        for c in range(lanes):
            states[0, c] = h0[row, u(lo + c)]
        for step in range(t):
            p = t - 1 - step if reverse else step
            q = row * t + p
            if reset and step == 0:
                for c in range(lanes):
                    gate = sigmoid(to_f32(gates[head, q, u(off + c)]) + bias[0, u(lo + c)])
                    states[1, c] = to_f32(x[row, p, u(lo + c)]) * gate
            else:
                for c in range(lanes):
                    gate = sigmoid(to_f32(gates[head, q, u(off + c)]) + bias[0, u(lo + c)])
                    r = sigmoid(to_f32(gates[head, q, u(w + off + c)]) + bias[1, u(lo + c)])
                    em = expm1(-r * decay[u(lo + c)])
                    value = to_f32(x[row, p, u(lo + c)]) * gate * np.sqrt(-em * (_TWO + em))
                    states[step + 1, c] = states[step, c] + fma(em, states[step, c], value)
        grad = np.empty(lanes, np.float32)
        sums = np.zeros((3, lanes), np.float32)
        for c in range(lanes):
            grad[c] = dh[row, u(lo + c)]
        for back in range(t):
            step = t - 1 - back
            p = t - 1 - step if reverse else step
            q = row * t + p
            if reset and step == 0:
                for c in range(lanes):
                    s = grad[c] + to_f32(dy[row, p, u(lo + c)])
                    gate = sigmoid(to_f32(gates[head, q, u(off + c)]) + bias[0, u(lo + c)])
                    value = to_f32(x[row, p, u(lo + c)])
                    dx[row, p, u(lo + c)] = from_f32(s * gate, dx)
                    dgate = s * value * gate * (_ONE - gate)
                    dgates[head, q, u(off + c)] = from_f32(dgate, dgates)
                    dgates[head, q, u(w + off + c)] = from_f32(np.float32(0.0), dgates)
                    sums[0, c] += dgate
                    grad[c] = np.float32(0.0)
            else:
                for c in range(lanes):
                    s = grad[c] + to_f32(dy[row, p, u(lo + c)])
                    gate = sigmoid(to_f32(gates[head, q, u(off + c)]) + bias[0, u(lo + c)])
                    r = sigmoid(to_f32(gates[head, q, u(w + off + c)]) + bias[1, u(lo + c)])
                    em = expm1(-r * decay[u(lo + c)])
                    a = _ONE + em
                    m = np.sqrt(-em * (_TWO + em))
                    value = to_f32(x[row, p, u(lo + c)])
                    dx[row, p, u(lo + c)] = from_f32(s * gate * m, dx)
                    dgate = s * value * m * gate * (_ONE - gate)
                    # Both ways from log a to the loss: the decayed state, and the factor of the input.
                    # The bound is put on m, not on the quotient: m is -0 where nothing decays, and 1 / -0 is -inf.
                    slope = _HALF / max(m, _LEAST)
                    dlog = a * fma(s, states[step, c], -_TWO * a * slope * (s * value * gate))
                    dr = -dlog * decay[u(lo + c)] * r * (_ONE - r)
                    dgates[head, q, u(off + c)] = from_f32(dgate, dgates)
                    dgates[head, q, u(w + off + c)] = from_f32(dr, dgates)
                    sums[0, c] += dgate
                    sums[1, c] += dr
                    sums[2, c] = fma(-dlog, r, sums[2, c])
                    grad[c] = s * a
        for c in range(lanes):
            dh[row, u(lo + c)] = grad[c]
            dbias[row, 0, u(lo + c)] = sums[0, c]
            dbias[row, 1, u(lo + c)] = sums[1, c]
            ddecay[row, u(lo + c)] = sums[2, c]


def _lanes(head_width: int) -> int:
    """Channels a task: at most LANES, and within one head."""
    return next(n for n in range(min(LANES, head_width), 0, -1) if head_width % n == 0)


class _RgLru(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gates: Tensor, bias: Tensor, decay: Tensor, h0: Tensor, reverse: bool, reset: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, gates, bias, decay, h0)
        ctx.flags = (reverse, reset)
        return run(x, gates, bias, decay, h0, reverse=reverse, reset=reset)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dh: Tensor) -> tuple[Tensor | None, ...]:
        x, gates, bias, decay, h0 = ctx.saved_tensors
        b, _, e = x.shape
        dh = dh.float().clone(memory_format=torch.contiguous_format)
        dx, dgates = torch.empty_like(x), torch.empty_like(gates)
        dbias = torch.empty(b, 2, e)
        ddecay = torch.empty(b, e)
        _backward(
            storage(x), storage(gates), storage(bias), storage(decay), storage(h0),
            storage(dy.to(x.dtype).contiguous()), storage(dh),
            storage(dx), storage(dgates), storage(dbias), storage(ddecay),
            _lanes(gates.shape[2] // 2), *ctx.flags,
        )  # fmt: skip
        return dx, dgates, dbias.sum(0), ddecay.sum(0), dh, None, None


def run(
    x: Tensor, gates: Tensor, gate_bias: Tensor, decay: Tensor, h0: Tensor, *,
    reverse: bool, reset: bool, out: Tensor | None = None, record: Record | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the forward kernel without autograd; `out` (b, t, e) receives y, `record` states, if given."""
    y = torch.empty_like(x) if out is None else out
    h = h0.clone(memory_format=torch.contiguous_format)
    b, t, e = x.shape
    when = torch.empty(0, dtype=torch.int64) if record is None else record.steps(t, reverse=reverse)
    # In the order in which the direction comes to them.
    order = torch.arange(len(when)).flip(0) if reverse else torch.arange(len(when))
    marks = torch.empty(b, len(when), e)
    _forward(
        storage(x), storage(gates), storage(gate_bias), storage(decay), storage(h), storage(y),
        storage(when[order]), storage(marks), _lanes(gates.shape[2] // 2), reverse, reset,
    )  # fmt: skip
    if record is not None:
        record.h.copy_(marks[:, order])
    return y, h


def rglru(
    x: Tensor, gates: Tensor, gate_bias: Tensor, decay: Tensor, h0: Tensor, *, reverse: bool, reset: bool
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over one chunk; shapes and meaning as in `naive.rglru`; float32 or bfloat16, contiguous."""
    y, h = _RgLru.apply(
        x.contiguous(), gates.contiguous(), gate_bias.float().contiguous(), decay.float().contiguous(),
        h0.float().contiguous(), reverse, reset,
    )  # fmt: skip
    return y, h
