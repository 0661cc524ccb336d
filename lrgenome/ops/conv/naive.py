"""The short depthwise convolution before a recurrence: its definition, with its state (the halo).

Left to right, y_t = bias + sum_j weight_j x_{t-(k-1)+j}; right to left, y_t = bias + sum_j weight_j x_{t+(k-1)-j}.
The k-1 inputs before the chunk (after it, right to left) are the state, in genomic order.
"""

import torch
from torch import Tensor
from torch.nn import functional


def next_halo(x: Tensor, halo: Tensor, *, reverse: bool) -> Tensor:
    """Return the (b, k-1, e) inputs that the next chunk in this direction needs."""
    size = halo.shape[1]
    if reverse:
        return torch.cat([x[:, :size], halo], 1)[:, :size]
    return torch.cat([halo, x[:, x.shape[1] - min(size, x.shape[1]) :]], 1)[:, -size:]


def conv(x: Tensor, weight: Tensor, bias: Tensor, halo: Tensor, *, reverse: bool, silu: bool = False) -> Tensor:
    """Convolve one chunk.

    Parameters
    ----------
    x
        (b, t, e) input.
    weight, bias
        (k, e) and (e,) float32.
    halo
        (b, k-1, e) inputs on the side that the direction comes from, in genomic order; dtype of x.
    reverse
        Right to left.
    silu
        Return y * sigmoid(y), as Mamba does, instead of y.

    Returns
    -------
    y
        (b, t, e), dtype of x.
    """
    k, t = weight.shape[0], x.shape[1]
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    padded = torch.cat([x, halo] if reverse else [halo, x], 1).to(wide)
    taps = weight.to(wide).flip(0) if reverse else weight.to(wide)
    y = bias.to(wide) + sum(taps[j] * padded[:, j : j + t] for j in range(k))
    return (functional.silu(y) if silu else y).to(x.dtype)
