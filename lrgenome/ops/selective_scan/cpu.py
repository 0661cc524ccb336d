"""The selective scan on a CPU: step sizes, recurrence, skip and gate in one pass over memory, forward and backward.

One task is a block of `LANES` channels of one sequence; inside it, positions run in order and channels are SIMD
lanes, for one entry of the state after the other. State and arithmetic are float32; input, step sizes, gate and
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
    fma,
    from_f32,
    lane_sum,
    prefetch,
    sigmoid,
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
        state, rate = np.zeros((m, LANES), np.float32), np.zeros((m, LANES), np.float32)
        delta, inflow, total = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
        for i in range(n):
            for c in range(width):
                state[i, c] = h[row, u(lo + c), i]
                rate[i, c] = a[u(lo + c), i] * _LOG2_E
        place = 0
        for step in range(t):
            while place < len(when) and when[place] == step:
                for i in range(n):
                    for c in range(width):
                        kept[row, place, u(lo + c), i] = state[i, c]
                place += 1
            if marks.shape[1] and step % SEGMENT == 0:
                for i in range(m):
                    for c in range(width):
                        marks[row, step // SEGMENT, i, u(lo + c)] = state[i, c]
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
                delta[c] = softplus(to_f32(dt[row, p, u(lo + c)]) + bias[u(lo + c)])
                inflow[c] = delta[c] * value
                total[c] = skip[u(lo + c)] * value
            # Four entries at a time: what belongs to the channel alone is read and written once for them.
            for i in range(0, m, _GROUP):
                b0, b1, b2, b3 = bc[row, p, i], bc[row, p, i + 1], bc[row, p, i + 2], bc[row, p, i + 3]
                c0, c1, c2, c3 = bc[row, p, m + i], bc[row, p, m + i + 1], bc[row, p, m + i + 2], bc[row, p, m + i + 3]
                for c in range(LANES):
                    d, v = delta[c], inflow[c]
                    h0 = _step(state[i, c], d, rate[i, c], v * b0)
                    h1 = _step(state[i + 1, c], d, rate[i + 1, c], v * b1)
                    h2 = _step(state[i + 2, c], d, rate[i + 2, c], v * b2)
                    h3 = _step(state[i + 3, c], d, rate[i + 3, c], v * b3)
                    state[i, c] = h0
                    state[i + 1, c] = h1
                    state[i + 2, c] = h2
                    state[i + 3, c] = h3
                    total[c] = fma(c3, h3, fma(c2, h2, fma(c1, h1, fma(c0, h0, total[c]))))
            if gated:
                for c in range(width):
                    y[row, p, u(lo + c)] = from_f32(total[c] * silu(to_f32(z[row, p, u(lo + c)])), y)
            else:
                for c in range(width):
                    y[row, p, u(lo + c)] = from_f32(total[c], y)
        for i in range(n):
            for c in range(width):
                h[row, u(lo + c), i] = state[i, c]
                for last in range(place, len(when)):
                    kept[row, last, u(lo + c), i] = state[i, c]


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
        rate, grad, slope = (
            np.zeros((m, LANES), np.float32), np.zeros((m, LANES), np.float32), np.zeros((m, LANES), np.float32)
        )  # fmt: skip
        states = np.zeros((SEGMENT + 1, m, LANES), np.float32)
        delta, total = np.zeros((SEGMENT, LANES), np.float32), np.zeros((SEGMENT, LANES), np.float32)
        inflow, dout, of_b, of_rate = (
            np.zeros(LANES, np.float32), np.zeros(LANES, np.float32),
            np.zeros(LANES, np.float32), np.zeros(LANES, np.float32),
        )  # fmt: skip
        products = np.zeros((2, LANES), np.float32)
        sums = np.zeros((2, LANES), np.float32)
        for i in range(n):
            for c in range(width):
                rate[i, c] = a[u(lo + c), i] * _LOG2_E
                grad[i, c] = dh[row, u(lo + c), i]
        for segment in range(marks.shape[1] - 1, -1, -1):
            first = segment * SEGMENT
            count = min(SEGMENT, t - first)
            for i in range(m):
                for c in range(width):
                    states[0, i, c] = marks[row, segment, i, u(lo + c)]
            for k in range(count):
                p = t - 1 - first - k if reverse else first + k
                for c in range(width):
                    value = to_f32(x[row, p, u(lo + c)])
                    delta[k, c] = softplus(to_f32(dt[row, p, u(lo + c)]) + bias[u(lo + c)])
                    inflow[c] = delta[k, c] * value
                    total[k, c] = skip[u(lo + c)] * value
                for i in range(m):
                    bi, ci = bc[row, p, i], bc[row, p, m + i]
                    for c in range(LANES):
                        after = _step(states[k, i, c], delta[k, c], rate[i, c], inflow[c] * bi)
                        states[k + 1, i, c] = after
                        total[k, c] = fma(ci, after, total[k, c])
            for back in range(count):
                k = count - 1 - back
                p = t - 1 - first - k if reverse else first + k
                for c in range(width):
                    value = to_f32(x[row, p, u(lo + c)])
                    g = to_f32(dy[row, p, u(lo + c)])
                    if gated:
                        gate, gate_slope = silu_and_slope(to_f32(z[row, p, u(lo + c)]))
                        dz[row, p, u(lo + c)] = from_f32(g * total[k, c] * gate_slope, dz)
                        g = g * gate
                    dout[c] = g
                    inflow[c] = delta[k, c] * value
                    of_b[c] = _ZERO
                    of_rate[c] = _ZERO
                    sums[0, c] = fma(g, value, sums[0, c])
                for i in range(m):
                    bi, ci = bc[row, p, i], bc[row, p, m + i]
                    for c in range(LANES):
                        factor, power = exp2_parts(delta[k, c] * rate[i, c])
                        before = states[k, i, c]
                        g = fma(ci, dout[c], grad[i, c])
                        products[0, c] = g * inflow[c]
                        products[1, c] = dout[c] * states[k + 1, i, c]
                        # Through the decay to its exponent, delta times the rate.
                        through = g * power * fma(factor, before, before)
                        slope[i, c] = fma(through, delta[k, c], slope[i, c])
                        of_rate[c] = fma(through, rate[i, c], of_rate[c])
                        of_b[c] = fma(g, bi, of_b[c])
                        grad[i, c] = power * fma(factor, g, g)
                    dbc[row, block, p, i] = lane_sum(products, 0, LANES)
                    dbc[row, block, p, m + i] = lane_sum(products, 1, LANES)
                for c in range(width):
                    value = to_f32(x[row, p, u(lo + c)])
                    inner = to_f32(dt[row, p, u(lo + c)]) + bias[u(lo + c)]
                    ddelta = fma(value, of_b[c], _LN_2 * of_rate[c]) * sigmoid(inner)
                    dx[row, p, u(lo + c)] = from_f32(fma(delta[k, c], of_b[c], skip[u(lo + c)] * dout[c]), dx)
                    ddt[row, p, u(lo + c)] = from_f32(ddelta, ddt)
                    sums[1, c] += ddelta
        for i in range(n):
            for c in range(width):
                dh[row, u(lo + c), i] = grad[i, c]
                da[row, u(lo + c), i] = slope[i, c]
        for c in range(width):
            dskip[row, u(lo + c)] = sums[0, c]
            dbias[row, u(lo + c)] = sums[1, c]


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
        marks = torch.empty(rows, -(-t // SEGMENT), bc.shape[2] // 2, e)
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
