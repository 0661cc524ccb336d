"""The selective scan on a CPU: step sizes, recurrence, skip and gate in one pass over memory, forward and backward.

One task is a block of `LANES` channels of one sequence; inside it, positions run in order and channels are SIMD
lanes, for a few entries of the state at a time. State and arithmetic are float32; input, step sizes, gate and
output are float32 or bfloat16.
"""

from typing import Any

import numpy as np
import torch
from numba import prange
from numba.extending import register_jitable
from torch import Tensor
from torch.nn.functional import pad

from lrgenome.ops.intrinsics import (
    CACHE_LINE,
    exp2_parts,
    expm1,
    fma,
    from_f32,
    lane_sum,
    prefetch,
    silu,
    silu_and_slope,
    softplus,
    to_f32,
    u,
)
from lrgenome.ops.jit import kernel, storage
from lrgenome.ops.record import Record

LANES = 64
SEGMENT = 64
"""Positions that the backward pass runs again at a time, from a state that the forward pass kept."""
_GROUP = 4
"""Entries of the state at a time: what belongs to the channel alone is read and written once for them."""
_AHEAD = 6
_ZERO = np.float32(0.0)
_LOG2_E = np.float32(1.4426950408889634)
_LN_2 = np.float32(0.6931471805599453)


@register_jitable
def _step(state: Any, delta: Any, rate: Any, inflow: Any) -> Any:
    """Return the next state."""
    p, s = exp2_parts(delta * rate)
    return fma(s, fma(p, state, state), inflow)


@kernel
def _forward(
    x: Any, dt: Any, z: Any, bc: Any, a: Any, skip: Any, bias: Any, h: Any, y: Any, marks: Any, when: Any, kept: Any,
    gated: bool, reverse: bool,
) -> None:  # fmt: skip
    b, t, e = x.shape
    n, m = a.shape[1], bc.shape[2] // 2
    blocks = (e + LANES - 1) // LANES
    for task in prange(b * blocks):
        row, block = task // blocks, task % blocks
        lo = block * LANES
        width = min(LANES, e - lo)
        # Few arrays, since a loop over lanes first finds out which of its arrays overlap. Rows of `held`, for every
        # group of entries: states, rates. Rows of `lane`: step size, step size times input, output.
        held = np.zeros((m // _GROUP, 2 * _GROUP, LANES), np.float32)
        lane = np.zeros((3, LANES), np.float32)
        for i in range(n):
            for c in range(width):
                held[i // _GROUP, i % _GROUP, c] = h[row, u(lo + c), i]
                held[i // _GROUP, _GROUP + i % _GROUP, c] = a[u(lo + c), i] * _LOG2_E
        place = 0
        for step in range(t):
            while place < len(when) and when[place] == step:
                for i in range(n):
                    for c in range(width):
                        kept[row, place, u(lo + c), i] = held[i // _GROUP, i % _GROUP, c]
                place += 1
            if marks.shape[1] and step % SEGMENT == 0:
                for i in range(n):
                    for c in range(width):
                        marks[row, step // SEGMENT, i, u(lo + c)] = held[i // _GROUP, i % _GROUP, c]
            p = t - 1 - step if reverse else step
            # Rows lie kilobytes apart: the hardware does not foresee them.
            ahead = -_AHEAD if reverse else _AHEAD
            for c in range(0, width, CACHE_LINE // x.itemsize):
                prefetch(x, row, p + ahead, lo + c, 0)
                prefetch(dt, row, p + ahead, lo + c, 0)
                prefetch(z, row, p + ahead, lo + c, 0)
                prefetch(y, row, p + ahead, lo + c, 1)
            for c in range(width):
                value = to_f32(x[row, p, u(lo + c)])
                delta = softplus(to_f32(dt[row, p, u(lo + c)]) + bias[u(lo + c)])
                lane[0, c] = delta
                lane[1, c] = delta * value
                lane[2, c] = skip[u(lo + c)] * value
            for g in range(m // _GROUP):
                first = g * _GROUP
                for c in range(LANES):
                    total = lane[2, c]
                    for k in range(_GROUP):
                        inflow = lane[1, c] * bc[row, p, u(first + k)]
                        state = _step(held[g, k, c], lane[0, c], held[g, _GROUP + k, c], inflow)
                        held[g, k, c] = state
                        total = fma(bc[row, p, u(m + first + k)], state, total)
                    lane[2, c] = total
            if gated:
                for c in range(width):
                    y[row, p, u(lo + c)] = from_f32(lane[2, c] * silu(to_f32(z[row, p, u(lo + c)])), y)
            else:
                for c in range(width):
                    y[row, p, u(lo + c)] = from_f32(lane[2, c], y)
        for i in range(n):
            for c in range(width):
                h[row, u(lo + c), i] = held[i // _GROUP, i % _GROUP, c]
                for last in range(place, len(when)):
                    kept[row, last, u(lo + c), i] = held[i // _GROUP, i % _GROUP, c]


@kernel
def _backward(
    x: Any, dt: Any, z: Any, bc: Any, a: Any, skip: Any, bias: Any, marks: Any, dy: Any, dh: Any,
    dx: Any, ddt: Any, dz: Any, dbc: Any, da: Any, dskip: Any, dbias: Any, gated: bool, reverse: bool,
) -> None:  # fmt: skip
    b, t, e = x.shape
    n, m = a.shape[1], bc.shape[2] // 2
    blocks = (e + LANES - 1) // LANES
    for task in prange(b * blocks):
        row, block = task // blocks, task % blocks
        lo = block * LANES
        width = min(LANES, e - lo)
        # Rows of `held`, for every group of entries: gradients of the states, rates, gradients of the rates, states.
        # Rows of `lane`: step size, input, their product, gradient of the output before the gate; sums over entries,
        # of the gradients of the inflow and of the exponent; sums over positions, of the gradients of skip and bias;
        # for every entry of a group, what adds up over channels to the gradient of b, then of c.
        held = np.zeros((m // _GROUP, 4 * _GROUP, LANES), np.float32)
        lane = np.zeros((8 + 2 * _GROUP, LANES), np.float32)
        states = np.zeros((SEGMENT, m // _GROUP, _GROUP, LANES), np.float32)
        # For every position of a segment: step size, input, output before the gate.
        steps = np.zeros((SEGMENT, 3, LANES), np.float32)
        for i in range(n):
            for c in range(width):
                held[i // _GROUP, i % _GROUP, c] = dh[row, u(lo + c), i]
                held[i // _GROUP, _GROUP + i % _GROUP, c] = a[u(lo + c), i] * _LOG2_E
        for segment in range(marks.shape[1] - 1, -1, -1):
            start = segment * SEGMENT
            count = min(SEGMENT, t - start)
            for i in range(n):
                for c in range(width):
                    held[i // _GROUP, 3 * _GROUP + i % _GROUP, c] = marks[row, segment, i, u(lo + c)]
            for s in range(count):
                p = t - 1 - start - s if reverse else start + s
                ahead = -_AHEAD if reverse else _AHEAD
                for c in range(0, width, CACHE_LINE // x.itemsize):
                    prefetch(x, row, p + ahead, lo + c, 0)
                    prefetch(dt, row, p + ahead, lo + c, 0)
                for c in range(width):
                    value = to_f32(x[row, p, u(lo + c)])
                    delta = softplus(to_f32(dt[row, p, u(lo + c)]) + bias[u(lo + c)])
                    steps[s, 0, c] = delta
                    steps[s, 1, c] = value
                    steps[s, 2, c] = skip[u(lo + c)] * value
                    lane[2, c] = delta * value
                for g in range(m // _GROUP):
                    first = g * _GROUP
                    for c in range(LANES):
                        total = steps[s, 2, c]
                        for k in range(_GROUP):
                            inflow = lane[2, c] * bc[row, p, u(first + k)]
                            state = held[g, 3 * _GROUP + k, c]
                            states[s, g, k, c] = state
                            state = _step(state, steps[s, 0, c], held[g, _GROUP + k, c], inflow)
                            held[g, 3 * _GROUP + k, c] = state
                            total = fma(bc[row, p, u(m + first + k)], state, total)
                        steps[s, 2, c] = total
            for back in range(count):
                s = count - 1 - back
                p = t - 1 - start - s if reverse else start + s
                ahead = _AHEAD if reverse else -_AHEAD
                for c in range(0, width, CACHE_LINE // x.itemsize):
                    prefetch(dy, row, p + ahead, lo + c, 0)
                    prefetch(z, row, p + ahead, lo + c, 0)
                    prefetch(dz, row, p + ahead, lo + c, 1)
                    prefetch(dx, row, p + ahead, lo + c, 1)
                    prefetch(ddt, row, p + ahead, lo + c, 1)
                if gated:
                    for c in range(width):
                        out = to_f32(dy[row, p, u(lo + c)])
                        gate, slope = silu_and_slope(to_f32(z[row, p, u(lo + c)]))
                        dz[row, p, u(lo + c)] = from_f32(out * steps[s, 2, c] * slope, dz)
                        lane[3, c] = out * gate
                else:
                    for c in range(width):
                        lane[3, c] = to_f32(dy[row, p, u(lo + c)])
                for c in range(LANES):
                    delta, value = steps[s, 0, c], steps[s, 1, c]
                    lane[0, c] = delta
                    lane[1, c] = value
                    lane[2, c] = delta * value
                    lane[4, c] = _ZERO
                    lane[5, c] = _ZERO
                    lane[6, c] = fma(lane[3, c], value, lane[6, c])
                for g in range(m // _GROUP):
                    first = g * _GROUP
                    for c in range(LANES):
                        of_inflow, of_exponent = lane[4, c], lane[5, c]
                        for k in range(_GROUP):
                            bi, ci = bc[row, p, u(first + k)], bc[row, p, u(m + first + k)]
                            rate, delta, before = held[g, _GROUP + k, c], lane[0, c], states[s, g, k, c]
                            factor, power = exp2_parts(delta * rate)
                            grad = fma(ci, lane[3, c], held[g, k, c])
                            faded = power * fma(factor, before, before)
                            exponent = grad * faded
                            held[g, k, c] = power * fma(factor, grad, grad)
                            held[g, 2 * _GROUP + k, c] = fma(exponent, delta, held[g, 2 * _GROUP + k, c])
                            of_inflow = fma(grad, bi, of_inflow)
                            of_exponent = fma(exponent, rate, of_exponent)
                            lane[8 + k, c] = grad * lane[2, c]
                            lane[8 + _GROUP + k, c] = lane[3, c] * fma(lane[2, c], bi, faded)
                        lane[4, c] = of_inflow
                        lane[5, c] = of_exponent
                    for k in range(_GROUP):
                        dbc[row, block, p, u(first + k)] = lane_sum(lane, 8 + k, LANES)
                        dbc[row, block, p, u(m + first + k)] = lane_sum(lane, 8 + _GROUP + k, LANES)
                for c in range(LANES):
                    # The slope of softplus, by its value.
                    slope = -expm1(-lane[0, c])
                    grad = slope * fma(lane[1, c], lane[4, c], _LN_2 * lane[5, c])
                    lane[5, c] = grad
                    lane[7, c] += grad
                for c in range(width):
                    ddt[row, p, u(lo + c)] = from_f32(lane[5, c], ddt)
                for c in range(width):
                    grad = fma(lane[0, c], lane[4, c], skip[u(lo + c)] * lane[3, c])
                    dx[row, p, u(lo + c)] = from_f32(grad, dx)
        for i in range(n):
            for c in range(width):
                dh[row, u(lo + c), i] = held[i // _GROUP, i % _GROUP, c]
                da[row, u(lo + c), i] = held[i // _GROUP, 2 * _GROUP + i % _GROUP, c]
        for c in range(width):
            dskip[row, u(lo + c)] = lane[6, c]
            dbias[row, u(lo + c)] = lane[7, c]


def _pack(b: Tensor, c: Tensor) -> Tensor:
    """Put b and c (b, t, n) side by side as one float32 array, each padded to a multiple of the kernel's group."""
    short = -b.shape[2] % _GROUP
    return torch.cat([pad(v.float(), (0, short)) for v in (b, c)], 2)


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, bias: Tensor, h0: Tensor,
        z: Tensor | None, reverse: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        rows, t, e = x.shape
        bc = _pack(b, c)
        y, h = torch.empty_like(x), h0.clone()
        marks = torch.empty(rows, -(-t // SEGMENT), a.shape[1], e)
        _launch(x, dt, z, bc, a, skip, bias, h, y, marks, reverse)
        ctx.save_for_backward(x, dt, z, bc, a, skip, bias, marks)
        ctx.reverse = reverse
        return y, h

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dh: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, z, bc, a, skip, bias, marks = ctx.saved_tensors
        rows, t, e = x.shape
        n, m = a.shape[1], bc.shape[2] // 2
        dh = dh.float().clone(memory_format=torch.contiguous_format)
        dx, ddt = torch.empty_like(x), torch.empty_like(dt)
        dz = None if z is None else torch.empty_like(z)
        dbc = torch.empty(rows, -(-e // LANES), t, 2 * m)
        da, dskip, dbias = torch.empty(rows, e, n), torch.empty(rows, e), torch.empty(rows, e)
        _backward(
            storage(x), storage(dt), storage(x if z is None else z), storage(bc), storage(a), storage(skip),
            storage(bias), storage(marks), storage(dy.to(x.dtype).contiguous()), storage(dh),
            storage(dx), storage(ddt), storage(dx if dz is None else dz), storage(dbc), storage(da), storage(dskip),
            storage(dbias), z is not None, ctx.reverse,
        )  # fmt: skip
        dbc = dbc.sum(1).to(x.dtype)
        db, dc = dbc[..., :n], dbc[..., m : m + n]
        return dx, ddt, da.sum(0), db, dc, dskip.sum(0), dbias.sum(0), dh, dz, None


def _launch(
    x: Tensor, dt: Tensor, z: Tensor | None, bc: Tensor, a: Tensor, skip: Tensor, bias: Tensor, h: Tensor, y: Tensor,
    marks: Tensor, reverse: bool, record: Record | None = None,
) -> None:  # fmt: skip
    """Run the forward kernel; h is replaced by the last state; without z, x stands in its place unread."""
    b, t, e = x.shape
    when = torch.empty(0, dtype=torch.int64) if record is None else record.steps(t, reverse=reverse)
    # In the order in which the direction comes to them.
    order = torch.arange(len(when)).flip(0) if reverse else torch.arange(len(when))
    kept = torch.empty(b, len(when), e, a.shape[1])
    _forward(
        storage(x), storage(dt), storage(x if z is None else z), storage(bc), storage(a), storage(skip),
        storage(bias), storage(h), storage(y), storage(marks), storage(when[order]), storage(kept), z is not None,
        reverse,
    )  # fmt: skip
    if record is not None:
        record.h.copy_(kept[:, order])


def run(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, dt_bias: Tensor, h0: Tensor, *,
    reverse: bool, z: Tensor | None = None, out: Tensor | None = None, record: Record | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the forward kernel without autograd; `out` (b, t, e) receives y, `record` states, if given."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
    h = h0.float().clone(memory_format=torch.contiguous_format)
    _launch(
        x.contiguous(), dt.contiguous(), None if z is None else z.contiguous(), _pack(b, c), a.float().contiguous(),
        skip.float().contiguous(), dt_bias.float().contiguous(), h, y, torch.empty(x.shape[0], 0, 1, 1), reverse,
        record,
    )  # fmt: skip
    return y, h


def selective_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, dt_bias: Tensor, h0: Tensor, *,
    reverse: bool, z: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the recurrence over one chunk; as in `naive.selective_scan`; x, dt, b, c and z float32 or bfloat16."""
    y, h = _SelectiveScan.apply(
        x.contiguous(), dt.contiguous(), a.float().contiguous(), b, c, skip.float().contiguous(),
        dt_bias.float().contiguous(), h0.float().contiguous(), None if z is None else z.contiguous(), reverse,
    )  # fmt: skip
    return y, h
