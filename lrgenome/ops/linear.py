"""Matrix products over rows, dense and block-diagonal.

On a CPU the products with frozen weights go through oneDNN with the weight laid out for it once: torch's default
for float32, MKL, is less than half as fast on some processors, and its bfloat16 path lays the weight out anew in
every call.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear as torch_linear
from torch.utils.weak import WeakTensorKeyDictionary

from lrgenome.ops import backend

_ROWS = 1024
"""Rows that oneDNN is told to expect; any number of them is right."""


class _Packed(NamedTuple):
    of: tuple[int, int]
    """Address and version of what was laid out."""
    weights: tuple[Tensor, ...]


_packed = WeakTensorKeyDictionary()


@cache
def onednn_multiplies(dtype: torch.dtype) -> bool:
    """Tell whether this build of torch and this CPU multiply packed weights of `dtype`, and rightly."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    x, weight = (torch.arange(size * 32).view(size, 32).sub(7).remainder(5).to(dtype) for size in (8, 16))
    bias = torch.arange(16).to(dtype)
    try:
        # Not torch's public interface: tried out before it is trusted.
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        got = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    except (AttributeError, RuntimeError):
        return False
    return bool((got.float() == torch_linear(x.float(), weight.float(), bias.float()).to(dtype).float()).all())


def _pack(weight: Tensor) -> tuple[Tensor, ...]:
    """Return the frozen `weight` (o, i), or each of (h, i, o), laid out for oneDNN; again only if it was written to."""
    of = (weight.data_ptr(), weight._version)
    found: _Packed | None = _packed.get(weight)
    if found is None or found.of != of:
        matrices = [weight.detach()] if weight.dim() == 2 else [head.t().contiguous() for head in weight.detach()]
        reorder = torch.ops.mkldnn._reorder_linear_weight
        found = _packed[weight] = _Packed(of, tuple(reorder(matrix, _ROWS) for matrix in matrices))
    return found.weights


def _packs(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Tell whether products of the rows `x` with `weight` go through oneDNN."""
    frozen = not (weight.requires_grad or weight.is_inference() or backend.wants_grad(x, bias))
    # A weight of another dtype would be copied, and packed, for each call; writes to an inference tensor go unseen.
    return frozen and x.device.type == "cpu" and weight.dtype == x.dtype and onednn_multiplies(x.dtype)


def _multiply(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return result


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, out: Tensor | None = None) -> Tensor:
    """Compute x @ weight.T + bias for rows `x` (n, i), weight (o, i), bias (o,), in the dtype of x.

    `out` (n, o) receives the result, for what is kept for long: kept results that were allocated one by one leave
    holes between them. It is ignored where autograd is at work.
    """
    if out is not None and not backend.wants_grad(x, weight, bias):
        if x.dtype == torch.float32:
            return out.copy_(linear(x, weight, bias))
        weight = weight.to(x.dtype).t()
        return torch.mm(x, weight, out=out) if bias is None else torch.addmm(bias.to(x.dtype), x, weight, out=out)
    if _packs(x, weight, bias):
        (packed,) = _pack(weight)
        return _multiply(x, packed, None if bias is None else bias.to(x.dtype))
    return torch_linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def per_head(x: Tensor, weight: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Multiply each head of the rows `x` (n, h*w) by its own matrix (h, w, o); returns (h, n, o).

    The result keeps heads outermost, so that no permuted copy is made of it.
    """
    h, w, o = weight.shape
    heads = x.view(x.shape[0], h, w).transpose(0, 1)
    # In bfloat16 torch's own batched product is as fast.
    if x.dtype == torch.float32 and _packs(x, weight):
        result = x.new_empty(h, x.shape[0], o) if out is None else out
        for rows, packed, to in zip(heads, _pack(weight), result, strict=True):
            to.copy_(_multiply(rows, packed, None))
        return result
    weight = weight.to(x.dtype)
    if out is None or backend.wants_grad(x, weight):
        return torch.bmm(heads, weight)
    return torch.bmm(heads, weight, out=out)
