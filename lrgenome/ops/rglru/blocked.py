"""The RG-LRU as a blocked parallel scan in plain torch, for any device, differentiable by autograd."""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from lrgenome.ops.record import Record
from lrgenome.ops.rglru.naive import elementwise


def scan(log_a: Tensor, u: Tensor, h0: Tensor, *, reverse: bool) -> Tensor:
    """Compute h_t = exp(log_a_t) h_{t-1} + u_t, all (b, t, e) and h0 (b, e), in about 2 sqrt(t) steps.

    Positions are cut into blocks; all blocks run side by side from a zero state, then the carries between
    blocks are made, then each block is corrected with its carry times the decay since its edge.
    """
    b, t, e = u.shape
    if t == 0:
        return u
    if reverse:
        log_a, u = log_a.flip(1), u.flip(1)
    size = max(1, math.isqrt(t))
    count = -(-t // size)
    short = count * size - t
    # Padding with a = 1, u = 0 leaves the state as it was.
    a = pad(torch.exp(log_a), (0, 0, 0, short), value=1.0).view(b, count, size, e)
    u = pad(u, (0, 0, 0, short)).view(b, count, size, e)
    h, decay = u[:, :, 0], a[:, :, 0]
    local, decays = [h], [decay]
    for step in range(1, size):
        h = a[:, :, step] * h + u[:, :, step]
        decay = decay * a[:, :, step]
        local.append(h)
        decays.append(decay)
    carry, carries = h0, []
    for block in range(count):
        carries.append(carry)
        carry = decay[:, block] * carry + h[:, block]
    y = torch.stack(local, 2) + torch.stack(decays, 2) * torch.stack(carries, 1)[:, :, None]
    y = y.view(b, count * size, e)[:, :t]
    return y.flip(1) if reverse else y


def rglru(
    x: Tensor, gates: Tensor, gate_bias: Tensor, decay: Tensor, h0: Tensor, *,
    reverse: bool, reset: bool, record: Record | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the recurrence over one chunk; shapes and meaning as in `naive.rglru`."""
    log_a, u = elementwise(x, gates, gate_bias, decay, reverse=reverse, reset=reset)
    states = scan(log_a, u, h0, reverse=reverse)
    if record is not None:
        record.pick(states, h0, reverse=reverse)
    if x.shape[1] == 0:
        return x, h0
    return states.to(x.dtype), states[:, 0 if reverse else -1]
