"""The selective scan on a CUDA device: the kernel of ``mamba_ssm`` where it is trusted, else `blocked`.

That kernel gives no gradient of its last state, so where autograd is at work `blocked` runs.
"""

from torch import Tensor

from lrgenome.ops import backend
from lrgenome.ops.selective_scan import blocked
from lrgenome.ops.trusted import trusted


def selective_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, dt_bias: Tensor, h0: Tensor, *,
    reverse: bool, z: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the recurrence over one chunk; shapes and meaning as in `naive.selective_scan`."""
    inputs = (x, dt, a, b, c, skip, dt_bias, h0)
    fits = x.shape[1] and not backend.wants_grad(*inputs, z)
    kernel = trusted("lrgenome.ops.selective_scan.mamba", str(x.device)) if fits else None
    if kernel is None:
        return blocked.selective_scan(*inputs, reverse=reverse, z=z)
    result: tuple[Tensor, Tensor] = kernel.selective_scan(*inputs, reverse=reverse, z=z)
    return result
