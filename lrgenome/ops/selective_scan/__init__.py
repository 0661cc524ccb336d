"""The selective scan of Mamba; `naive.selective_scan` is the definition."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from lrgenome.ops import backend
from lrgenome.ops.record import Record


def selective_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, dt_bias: Tensor, h0: Tensor, *,
    reverse: bool, z: Tensor | None = None, out: Tensor | None = None, record: Record | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the recurrence over one chunk by the backend for `x`; see `naive.selective_scan`.

    `out` is a (b, t, e) buffer that y may be written to; where autograd is at work it is ignored. `record` receives
    states at boundaries inside the chunk; it is for inference.
    """
    function: Callable[..., tuple[Tensor, Tensor]]
    name = backend.select(x)
    if name == "cpu":
        from lrgenome.ops.selective_scan import cpu

        if not backend.wants_grad(x, dt, a, b, c, skip, dt_bias, h0, z):
            return cpu.run(x, dt, a, b, c, skip, dt_bias, h0, reverse=reverse, z=z, out=out, record=record)
        function = cpu.selective_scan
    elif name == "cuda":
        from lrgenome.ops.selective_scan import cuda

        function = cuda.selective_scan
    elif name == "blocked":
        from lrgenome.ops.selective_scan import blocked

        function = blocked.selective_scan
    else:
        from lrgenome.ops.selective_scan import naive

        function = naive.selective_scan
    if record is None:
        return function(x, dt, a, b, c, skip, dt_bias, h0, reverse=reverse, z=z)
    return _in_pieces(function, x, dt, a, b, c, skip, dt_bias, h0, reverse=reverse, z=z, record=record)


def _in_pieces(
    function: Callable[..., tuple[Tensor, Tensor]], x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor,
    skip: Tensor, dt_bias: Tensor, h: Tensor, *, reverse: bool, z: Tensor | None, record: Record,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run from boundary to boundary, since these implementations do not hand out states in between."""
    edges = sorted({0, x.shape[1], *record.at.tolist()})
    pieces = list(itertools.pairwise(edges))
    found = {x.shape[1] if reverse else 0: h}
    outputs = []
    for low, high in reversed(pieces) if reverse else pieces:
        at = slice(low, high)
        gate = None if z is None else z[:, at]
        y, h = function(x[:, at], dt[:, at], a, b[:, at], c[:, at], skip, dt_bias, h, reverse=reverse, z=gate)
        found[low if reverse else high] = h
        outputs.append(y)
    for index, edge in enumerate(record.at.tolist()):
        record.h[:, index] = found[edge]
    return torch.cat(outputs[::-1] if reverse else outputs, 1) if outputs else torch.empty_like(x), h
