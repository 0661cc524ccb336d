"""The depthwise convolution on a CUDA device: our Triton kernels where they are trusted, else `blocked`."""

from torch import Tensor

from lrgenome.ops.conv import blocked
from lrgenome.ops.trusted import trusted


def conv(
    x: Tensor, weight: Tensor, bias: Tensor, halo: Tensor, *,
    reverse: bool, silu: bool = False, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Convolve one chunk; shapes and meaning as in `naive.conv`."""
    fits = x.shape[1] and weight.shape[0] > 1
    kernels = trusted("lrgenome.ops.conv.triton_conv", str(x.device)) if fits else None
    if kernels is None:
        return blocked.conv(x, weight, bias, halo, reverse=reverse, silu=silu)
    result: Tensor = kernels.conv(x, weight, bias, halo, reverse=reverse, silu=silu, out=out)
    return result
