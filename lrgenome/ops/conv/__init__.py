"""The short depthwise convolution; `naive.conv` is the definition."""

from torch import Tensor

from lrgenome.ops import backend
from lrgenome.ops.conv.naive import next_halo


def conv(
    x: Tensor, weight: Tensor, bias: Tensor, halo: Tensor, *,
    reverse: bool, silu: bool = False, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Convolve one chunk by the backend for `x`; see `naive.conv`. `out` is ignored where autograd is at work."""
    name = backend.select(x)
    if name == "cpu" and weight.shape[0] == 4:
        from lrgenome.ops.conv import cpu

        if out is not None and not backend.wants_grad(x, weight, bias, halo):
            return cpu.run(x, weight, bias, halo, reverse=reverse, silu=silu, out=out)
        return cpu.conv(x, weight, bias, halo, reverse=reverse, silu=silu)
    if name == "cuda":
        from lrgenome.ops.conv import cuda

        return cuda.conv(x, weight, bias, halo, reverse=reverse, silu=silu, out=out)
    if name in ("blocked", "cpu"):
        from lrgenome.ops.conv import blocked

        return blocked.conv(x, weight, bias, halo, reverse=reverse, silu=silu)
    from lrgenome.ops.conv import naive

    return naive.conv(x, weight, bias, halo, reverse=reverse, silu=silu)


__all__ = ["conv", "next_halo"]
