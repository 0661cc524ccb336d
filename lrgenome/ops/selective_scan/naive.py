"""The selective scan of Mamba (S6): its definition, a loop over positions.

Algorithm 2 of Gu and Dao 2023 (Mamba, arXiv:2312.00752), for channel e and state entry n:

    delta_t = softplus(dt_t + dt_bias)                              step size
    h_t     = exp(delta_t a) h_{t-1} + delta_t x_t b_t              a < 0
    y_t     = (sum_n c_t h_t + skip x_t) silu(z_t)                  without z: no last factor

The products that make dt, b and c from the input are made outside.
"""

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus


def finish(y: Tensor, x: Tensor, skip: Tensor, z: Tensor | None) -> Tensor:
    """Add the skip of the input x to the states' output y, both wide (b, t, e), and gate the sum."""
    y = y + skip.to(y.dtype) * x
    return y if z is None else y * silu(z.to(y.dtype))


def selective_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, dt_bias: Tensor, h0: Tensor, *,
    reverse: bool, z: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the recurrence over one chunk, position by position.

    Parameters
    ----------
    x
        (b, t, e) input (after convolution and SiLU), any float dtype.
    dt
        (b, t, e) step sizes before bias and softplus; dtype of x.
    a
        (e, n) float32 rates, negative.
    b, c
        (b, t, n) what writes to and reads from the state at each position; dtype of x, any strides.
    skip, dt_bias
        (e,) float32.
    h0
        (b, e, n) float32 (float64 for float64 x) state that enters the chunk from the side it starts at.
    reverse
        Run from the last position to the first.
    z
        (b, t, e) gate of the output, or None; dtype of x.

    Returns
    -------
    y
        (b, t, e), dtype of x.
    h_end
        (b, e, n) state after the last position run, dtype of h0.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    wide_x, a, b, c = x.to(wide), a.to(wide), b.to(wide), c.to(wide)
    delta = softplus(dt.to(wide) + dt_bias.to(wide))
    inflow = delta * wide_x
    h = h0
    outputs: list[Tensor] = [inflow] * x.shape[1]
    order = range(x.shape[1])
    for position in reversed(order) if reverse else order:
        u = inflow[:, position, :, None] * b[:, position, None]
        h = torch.exp(delta[:, position, :, None] * a) * h + u
        outputs[position] = (h * c[:, position, None]).sum(-1)
    y = torch.stack(outputs, dim=1) if outputs else inflow
    return finish(y, wide_x, skip, z).to(x.dtype), h
