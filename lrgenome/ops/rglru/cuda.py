"""The RG-LRU on a CUDA device: our Triton kernels where they are trusted, else `blocked`."""

from torch import Tensor

from lrgenome.ops.record import Record
from lrgenome.ops.rglru import blocked
from lrgenome.ops.trusted import trusted


def rglru(
    x: Tensor, gates: Tensor, gate_bias: Tensor, decay: Tensor, h0: Tensor, *,
    reverse: bool, reset: bool, out: Tensor | None = None, record: Record | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the recurrence over one chunk; shapes and meaning as in `naive.rglru`."""
    kernels = trusted("lrgenome.ops.rglru.triton_scan", str(x.device)) if x.shape[1] else None
    inputs = (x, gates, gate_bias, decay, h0)
    if kernels is None:
        return blocked.rglru(*inputs, reverse=reverse, reset=reset, record=record)
    result: tuple[Tensor, Tensor] = kernels.rglru(*inputs, reverse=reverse, reset=reset, out=out, record=record)
    return result
