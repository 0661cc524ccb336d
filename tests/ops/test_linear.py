"""Matrix products over rows, dense and a head at a time."""

import pytest
import torch
from helpers import assert_close
from torch import Tensor

from lrgenome.ops.linear import linear, per_head

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_product(dtype: torch.dtype, biased: bool) -> None:
    x, weight = draw(7, 6, dtype=dtype), draw(5, 6, seed=1)
    bias = draw(5, seed=2) if biased else None
    # Parameters are used in the dtype of the rows.
    want = x.double() @ weight.to(dtype).double().t() + (bias.to(dtype).double() if biased else 0.0)
    got = linear(x, weight, bias)
    assert got.dtype == dtype
    assert_close(got, want, 1e-6)
    out = torch.full((7, 5), 9.0, dtype=dtype)
    same = linear(x, weight, bias, out=out)
    assert same.data_ptr() == out.data_ptr()
    assert_close(out, want, 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_product_of_every_head(dtype: torch.dtype) -> None:
    n, h, w, o = 7, 3, 4, 8
    x, weight = draw(n, h * w, dtype=dtype), draw(h, w, o, seed=1)
    want = torch.stack([x[:, i * w : (i + 1) * w].double() @ weight[i].to(dtype).double() for i in range(h)])
    got = per_head(x, weight)
    assert got.shape == (h, n, o) and got.dtype == dtype and got.is_contiguous()
    assert_close(got, want, 1e-6)
    out = torch.full((h, n, o), 9.0, dtype=dtype)
    assert per_head(x, weight, out=out).data_ptr() == out.data_ptr()
    assert_close(out, want, 1e-6)


def test_no_rows() -> None:
    assert linear(draw(0, 6), draw(5, 6), draw(5), out=torch.empty(0, 5)).shape == (0, 5)
    assert per_head(draw(0, 12), draw(3, 4, 8), out=torch.empty(3, 0, 8)).shape == (3, 0, 8)


def test_gradcheck() -> None:
    x, weight, bias = (draw(*s, dtype=torch.float64).requires_grad_() for s in ((4, 6), (5, 6), (5,)))
    torch.autograd.gradcheck(linear, (x, weight, bias))
    heads = draw(3, 2, 4, dtype=torch.float64, seed=1).requires_grad_()
    torch.autograd.gradcheck(per_head, (x, heads))


@pytest.mark.parametrize("which", ["x", "weight", "bias"])
def test_out_is_ignored_where_autograd_is_at_work(which: str) -> None:
    named = {"x": draw(7, 6), "weight": draw(5, 6, seed=1), "bias": draw(5, seed=2)}
    want = linear(**named)
    named[which].requires_grad_()
    out = torch.zeros(7, 5)
    y = linear(**named, out=out)
    assert y.requires_grad and not out.any() and torch.equal(y.detach(), want)
    with torch.no_grad():
        y = linear(**named, out=out)
    assert y.data_ptr() == out.data_ptr()
    torch.testing.assert_close(out, want)


def test_out_of_heads_is_ignored_where_autograd_is_at_work() -> None:
    x, weight, out = draw(7, 12), draw(3, 4, 8, seed=1).requires_grad_(), torch.zeros(3, 7, 8)
    y = per_head(x, weight, out=out)
    assert y.requires_grad and not out.any()
    with torch.no_grad():
        assert per_head(x, weight, out=out).data_ptr() == out.data_ptr()
    torch.testing.assert_close(out, y.detach())


def test_parameters_keep_their_own_dtype_in_their_gradients() -> None:
    weight, bias, heads = (draw(*s).requires_grad_() for s in ((5, 6), (5,), (3, 2, 4)))
    x = draw(7, 6, dtype=torch.bfloat16)
    (linear(x, weight, bias).sum() + per_head(x, heads).sum()).backward()
    assert weight.grad.dtype == bias.grad.dtype == heads.grad.dtype == torch.float32
