"""The selective scan of Mamba; `naive.selective_scan` is the definition."""

from torch import Tensor

from lrgenome.ops import backend


def selective_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, dt_bias: Tensor, h0: Tensor, *,
    reverse: bool, z: Tensor | None = None, out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the recurrence over one chunk by the backend for `x`; see `naive.selective_scan`.

    `out` is a (b, t, e) buffer that y may be written to; where autograd is at work it is ignored.
    """
    name = backend.select(x)
    if name == "cpu":
        from lrgenome.ops.selective_scan import cpu

        if not backend.wants_grad(x, dt, a, b, c, skip, dt_bias, h0, z):
            return cpu.run(x, dt, a, b, c, skip, dt_bias, h0, reverse=reverse, z=z, out=out)
        return cpu.selective_scan(x, dt, a, b, c, skip, dt_bias, h0, reverse=reverse, z=z)
    if name == "cuda":
        from lrgenome.ops.selective_scan import cuda

        return cuda.selective_scan(x, dt, a, b, c, skip, dt_bias, h0, reverse=reverse, z=z)
    if name == "blocked":
        from lrgenome.ops.selective_scan import blocked

        return blocked.selective_scan(x, dt, a, b, c, skip, dt_bias, h0, reverse=reverse, z=z)
    from lrgenome.ops.selective_scan import naive

    return naive.selective_scan(x, dt, a, b, c, skip, dt_bias, h0, reverse=reverse, z=z)
