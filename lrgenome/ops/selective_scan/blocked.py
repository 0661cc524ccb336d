"""The selective scan as a blocked parallel scan in plain torch, for any device, differentiable by autograd.

All states of a segment are held at once, n times the memory of the input: long chunks go segment by segment,
and autograd keeps what enters a segment and runs it again.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import softplus
from torch.utils.checkpoint import checkpoint

from lrgenome.ops import backend
from lrgenome.ops.rglru.blocked import scan
from lrgenome.ops.selective_scan.naive import finish

SEGMENT = 1024


def segments(t: int, size: int, *, reverse: bool) -> Iterator[slice]:
    """Pieces of [0, t) of at most `size` positions, in the order in which a direction meets them."""
    starts = range(0, t, size)
    for start in reversed(starts) if reverse else starts:
        yield slice(start, min(t, start + size))


def _segment(
    x: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, h0: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Return the states' output (b, t, e) and the last state; x, b and c wide."""
    states = scan(
        (delta[..., None] * a).flatten(2),
        ((delta * x)[..., None] * b[:, :, None]).flatten(2),
        h0.flatten(1),
        reverse=reverse,
    ).unflatten(2, a.shape)
    y = torch.einsum("bten,btn->bte", states, c)
    return y, states[:, 0 if reverse else -1]


def selective_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, dt_bias: Tensor, h0: Tensor, *,
    reverse: bool, z: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the recurrence over one chunk; shapes and meaning as in `naive.selective_scan`."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    a, wide_x, b, c = a.to(wide), x.to(wide), b.to(wide), c.to(wide)
    delta = softplus(dt.to(wide) + dt_bias.to(wide))
    again = backend.wants_grad(x, dt, a, b, c, dt_bias, h0)
    h, pieces = h0, []
    for at in segments(x.shape[1], SEGMENT, reverse=reverse):
        inputs = (wide_x[:, at], delta[:, at], a, b[:, at], c[:, at], h, reverse)
        if again:
            y, h = checkpoint(_segment, *inputs, use_reentrant=False, preserve_rng_state=False)
        else:
            y, h = _segment(*inputs)
        pieces.append(y)
    y = torch.cat(pieces[::-1] if reverse else pieces, 1) if pieces else wide_x
    return finish(y, wide_x, skip, z).to(x.dtype), h
