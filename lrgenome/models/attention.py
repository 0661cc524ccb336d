"""Attention to a whole window, in blocks of queries so that no (n, n) matrix is ever made."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lrgenome.ops.rope import Groups, Places, rotate

QUERY_BLOCK = 2048
"""Queries at a time."""
_SCORES = 1 << 26
"""Scores at a time where they are written out, as ``self-extend`` must."""


def score_block(batch: int, heads: int, count: int, block: int) -> int:
    """Return the queries at a time where scores are written out: `block`, or fewer of very many tokens."""
    return max(1, min(block, _SCORES // max(1, batch * heads * count)))


def by_rows(function: Callable[..., Tensor], size: int, *inputs: Tensor) -> Tensor:
    """Apply a function of rows to `inputs` (m, i), `size` rows at a time; the result (m, o) is in one piece."""
    count = inputs[0].shape[0]
    if count <= size:
        return function(*inputs)
    parts = (function(*(x[low : low + size] for x in inputs)) for low in range(0, count, size))
    if torch.is_grad_enabled():
        return torch.cat(list(parts))
    first = next(parts)
    out = first.new_empty(count, *first.shape[1:])
    out[:size] = first
    for number, part in enumerate(parts, 1):
        out[number * size : number * size + len(part)] = part
    return out


def attend(q: Tensor, k: Tensor, v: Tensor, places: Places, *, block: int = QUERY_BLOCK) -> Tensor:
    """Softmax attention of every token to every token that is no padding.

    Parameters
    ----------
    q, k, v
        (b, h, n, w) queries, keys and values, not yet rotated; scores are divided by the root of w.
    places
        Rotations and padding, see `ops.rope.places`.
    block
        Queries at a time: a matter of memory only.

    Returns
    -------
    (b, n, h*w) in the dtype of `v`
        What is computed for padding is undefined (but finite).
    """
    b, h, n, w = q.shape
    one: _Plain | _Grouped
    if places.groups is None:
        one = _Plain(q, k, v, places)
    else:
        one = _Grouped(q, k, v, places, places.groups)
        block = score_block(b, h, n, block)
    parts = (one(low, min(n, low + block)).transpose(1, 2).flatten(2) for low in range(0, n, block))
    if n <= block:
        return next(parts)
    if torch.is_grad_enabled():
        return torch.cat(list(parts), 1)
    out = v.new_empty(b, n, h * w)
    for number, part in enumerate(parts):
        out[:, number * block : number * block + part.shape[1]] = part
    return out


class _Plain:
    """Attention of a block of queries to all keys, by torch's fused kernels."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, places: Places) -> None:
        self.q, self.k, self.v, self.places = q, rotate(k, places.exact), v, places

    def __call__(self, low: int, high: int) -> Tensor:
        q = rotate(self.q[:, :, low:high], self.places.exact.rows(low, high))
        return scaled_dot_product_attention(q, self.k, self.v, attn_mask=self.places.mask)


class _Grouped:
    """Attention with two kinds of distance in one softmax; scores are at least float32."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, places: Places, groups: Groups) -> None:
        self.wide = places.exact.cos.dtype
        self.q, self.v, self.places, self.groups = q, v, places, groups
        self.near, self.far = (rotate(k.to(self.wide), r) for r in (places.exact, groups.keys))

    def __call__(self, low: int, high: int) -> Tensor:
        n, w = self.q.shape[2:]
        q = self.q[:, :, low:high].to(self.wide) * w**-0.5
        exact, left, right = (
            rotate(q, r.rows(low, high)) for r in (self.places.exact, self.groups.left, self.groups.right)
        )
        position = torch.arange(n, device=q.device)
        query = position[low:high, None]
        # Two products cover all keys once, but for those of the block itself, of which each query takes one side.
        before = left @ self.far[:, :, :high].transpose(2, 3)
        behind = right @ self.far[:, :, low:].transpose(2, 3)
        among = torch.where(position[low:high] < query, before[..., low:], behind[..., : high - low])
        scores = torch.cat((before[..., :low], among, behind[..., high - low :]), -1)
        start, end = max(0, low - self.groups.neighbours), min(n, high + self.groups.neighbours)
        close = (position[start:end] - query).abs() <= self.groups.neighbours
        kept = exact @ self.near[:, :, start:end].transpose(2, 3)
        scores[..., start:end] = torch.where(close, kept, scores[..., start:end])
        if self.places.mask is not None:
            scores = scores.masked_fill(~self.places.mask, -torch.inf)
        return scores.softmax(-1).to(self.v.dtype) @ self.v
