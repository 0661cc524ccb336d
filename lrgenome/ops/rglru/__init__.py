"""The real-gated linear recurrent unit of Hawk; `naive.rglru` is the definition."""

from torch import Tensor

from lrgenome.ops import backend
from lrgenome.ops.record import Record


def rglru(
    x: Tensor,
    gates: Tensor,
    gate_bias: Tensor,
    decay: Tensor,
    h0: Tensor,
    *,
    reverse: bool,
    reset: bool,
    out: Tensor | None = None,
    record: Record | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over one chunk by the backend for `x`; see `naive.rglru`.

    `out` is a (b, t, e) buffer that y may be written to; where autograd is at work it is ignored. `record` receives
    states at boundaries inside the chunk; it is for inference.
    """
    name = backend.select(x)
    if name == "cpu":
        from lrgenome.ops.rglru import cpu

        if (out is not None or record is not None) and not backend.wants_grad(x, gates, gate_bias, decay, h0):
            return cpu.run(x, gates, gate_bias, decay, h0, reverse=reverse, reset=reset, out=out, record=record)
        return cpu.rglru(x, gates, gate_bias, decay, h0, reverse=reverse, reset=reset)
    if name == "cuda":
        from lrgenome.ops.rglru import cuda

        return cuda.rglru(x, gates, gate_bias, decay, h0, reverse=reverse, reset=reset, out=out, record=record)
    if name == "blocked":
        from lrgenome.ops.rglru import blocked

        return blocked.rglru(x, gates, gate_bias, decay, h0, reverse=reverse, reset=reset, record=record)
    from lrgenome.ops.rglru import naive

    return naive.rglru(x, gates, gate_bias, decay, h0, reverse=reverse, reset=reset, record=record)
