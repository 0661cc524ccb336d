"""Matrix products over rows, dense and block-diagonal, into a buffer where autograd is not at work."""

import torch
from torch import Tensor
from torch.nn.functional import linear as torch_linear

from lrgenome.ops import backend


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, out: Tensor | None = None) -> Tensor:
    """Compute x @ weight.T + bias for rows `x` (n, i), weight (o, i), bias (o,), in the dtype of x."""
    weight = weight.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    if out is None or backend.wants_grad(x, weight, bias):
        return torch_linear(x, weight, bias)
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)


def per_head(x: Tensor, weight: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Multiply each head of the rows `x` (n, h*w) by its own matrix (h, w, o); returns (h, n, o).

    The result keeps heads outermost, so that no permuted copy is made of it.
    """
    h, w, _ = weight.shape
    heads = x.view(x.shape[0], h, w).transpose(0, 1)
    weight = weight.to(x.dtype)
    if out is None or backend.wants_grad(x, weight):
        return torch.bmm(heads, weight)
    return torch.bmm(heads, weight, out=out)
