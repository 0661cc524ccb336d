"""The real-gated linear recurrent unit (RG-LRU): its definition, a loop over positions.

Equations 1-4 of De et al. 2024 (Griffin, arXiv:2402.19427), with c = 8:

    i_t   = sigmoid(W_x v_t + b_x)          input gate
    r_t   = sigmoid(W_a v_t + b_a)          recurrence gate
    log a_t = -r_t * decay                  decay = 8 softplus(Lambda) > 0
    h_t   = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t * v_t)

The products ``W v`` are made outside. ``sqrt(1 - a^2)`` is computed as ``sqrt(-expm1(2 log a))``; its slope is
bounded by 1000, as in RecurrentGemma. At a reset position (the true first base of a direction) the factor is 1
and the previous state is ignored.
"""

from typing import Any

import torch
from torch import Tensor

from lrgenome.ops.record import Record

MAX_SQRT_SLOPE = 1000.0


class BoundedSqrt(torch.autograd.Function):
    """Square root whose derivative is bounded by `MAX_SQRT_SLOPE`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return sqrt(x)."""
        ctx.save_for_backward(x)
        return torch.sqrt(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Return grad * min(1 / (2 sqrt(x)), MAX_SQRT_SLOPE)."""
        (x,) = ctx.saved_tensors
        return grad / torch.sqrt(torch.clamp(4.0 * x, min=MAX_SQRT_SLOPE**-2))


def split_gates(gates: Tensor, gate_bias: Tensor, b: int, t: int) -> tuple[Tensor, Tensor]:
    """Unpack gate products (h, b*t, 2w) and add their bias; returns input and recurrence gate, each (b, t, e)."""
    h, _, w2 = gates.shape
    w = w2 // 2
    both = gates.view(h, b, t, 2, w).permute(3, 1, 2, 0, 4).reshape(2, b, t, h * w)
    both = both.to(gate_bias.dtype) + gate_bias[:, None, None]
    return both[0], both[1]


def elementwise(
    x: Tensor, gates: Tensor, gate_bias: Tensor, decay: Tensor, *, reverse: bool, reset: bool
) -> tuple[Tensor, Tensor]:
    """Compute log a_t and the recurrence's input, each (b, t, e), in float32 (float64 stays float64)."""
    b, t, _ = x.shape
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    gate_bias, decay = gate_bias.to(wide), decay.to(wide)
    gate_x, gate_a = split_gates(gates, gate_bias, b, t)
    log_a = -torch.sigmoid(gate_a) * decay
    factor = BoundedSqrt.apply(-torch.expm1(2.0 * log_a))
    if reset and t:
        first = torch.zeros(t, 1, dtype=torch.bool, device=x.device)
        first[-1 if reverse else 0] = True
        factor = torch.where(first, torch.ones_like(factor), factor)
        log_a = torch.where(first, torch.full_like(log_a, -torch.inf), log_a)
    return log_a, x.to(wide) * torch.sigmoid(gate_x) * factor


def rglru(
    x: Tensor, gates: Tensor, gate_bias: Tensor, decay: Tensor, h0: Tensor, *,
    reverse: bool, reset: bool, record: Record | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the recurrence over one chunk, position by position.

    Parameters
    ----------
    x
        (b, t, e) input (the convolution's output), any float dtype.
    gates
        (h, b*t, 2w) gate products per head, input gate first, without bias; same dtype as x.
    gate_bias
        (2, e) float32 biases of the input gate and the recurrence gate.
    decay
        (e,) float32, 8 softplus(Lambda).
    h0
        (b, e) float32 (float64 for float64 x) state that enters the chunk from the side it starts at.
    reverse
        Run from the last position to the first.
    reset
        The first position run is the true first base of this direction.
    record
        Receives the states at boundaries inside the chunk.

    Returns
    -------
    y
        (b, t, e) states, dtype of x.
    h_end
        (b, e) state after the last position run, dtype of h0.
    """
    log_a, u = elementwise(x, gates, gate_bias, decay, reverse=reverse, reset=reset)
    a = torch.exp(log_a)
    h = h0
    states: list[Tensor] = [h0] * x.shape[1]
    order = range(x.shape[1])
    for position in reversed(order) if reverse else order:
        h = a[:, position] * h + u[:, position]
        states[position] = h
    y = torch.stack(states, dim=1) if states else u
    if record is not None:
        record.pick(y, h0, reverse=reverse)
    return y.to(x.dtype), h
