"""Matrix products over rows, dense and a head at a time."""

import gc

import pytest
import torch
from helpers import assert_close
from torch import Tensor

from lrgenome.ops import linear as module
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


@pytest.mark.parametrize("n", [0, 1, 7, 2050])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_product_is_the_plain_one(dtype: torch.dtype, biased: bool, n: int) -> None:
    """Weights that need no gradient are laid out once; those that do go another way."""
    x, weight = draw(n, 96, dtype=dtype), draw(40, 96, dtype=dtype, seed=1)
    bias = draw(40, dtype=dtype, seed=2) if biased else None
    want = x.double() @ weight.double().t() + (0.0 if bias is None else bias.double())
    packed = linear(x, weight, bias)
    with torch.no_grad():
        plain = linear(x, weight.clone().requires_grad_(), bias)
    assert packed.shape == plain.shape == (n, 40) and packed.dtype == plain.dtype == dtype
    assert not packed.is_mkldnn and packed.is_contiguous()
    out = torch.full((n, 40), 9.0, dtype=dtype)
    assert linear(x, weight, bias, out=out).data_ptr() == out.data_ptr()
    for got in (packed, plain, out):
        assert_close(got, want, 1e-6)


@pytest.mark.parametrize("change", ["in place", "data", "another"])
def test_a_weight_that_changed_is_packed_again(change: str) -> None:
    weight, x = torch.nn.Parameter(draw(5, 6), requires_grad=False), draw(7, 6, seed=1)
    linear(x, weight, None)
    if change == "in place":
        weight.mul_(2.0)
    elif change == "data":
        weight.data = draw(5, 6, seed=3)
    else:
        weight = torch.nn.Parameter(draw(5, 6, seed=3), requires_grad=False)
    assert_close(linear(x, weight, None), x.double() @ weight.double().t(), 1e-6)


def test_weights_made_in_inference_mode_are_not_packed() -> None:
    with torch.inference_mode():
        weight, x = draw(5, 6), draw(7, 6, seed=1)
        for _ in range(2):
            assert_close(linear(x, weight, None), x.double() @ weight.double().t(), 1e-6)
            weight.mul_(2.0)


def test_packed_weights_go_with_their_weights() -> None:
    weight = torch.nn.Parameter(draw(5, 6), requires_grad=False)
    gc.collect()
    before = len(module._packed)
    linear(draw(7, 6), weight, None)
    assert len(module._packed) == before + module.onednn_multiplies(torch.float32)
    del weight
    gc.collect()
    assert len(module._packed) == before


def test_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other builds of torch lack it, and other processors fail on bfloat16."""

    def fail(*args: object) -> None:
        raise RuntimeError("could not create a primitive")

    x, weight = draw(7, 6), draw(5, 6, seed=1)
    module.onednn_multiplies.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(torch.ops.mkldnn, "_linear_pointwise", fail)
            assert not module.onednn_multiplies(torch.float32)
            assert_close(linear(x, weight, None), x.double() @ weight.double().t(), 1e-6)
    finally:
        module.onednn_multiplies.cache_clear()
    assert not module.onednn_multiplies(torch.float64)


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


@pytest.mark.parametrize("n", [1, 7, 2050])
def test_packed_heads_are_the_plain_ones(n: int) -> None:
    h, w, o = 3, 64, 128
    x, weight = draw(n, h * w), draw(h, w, o, seed=1)
    want = torch.stack([x[:, i * w : (i + 1) * w].double() @ weight[i].double() for i in range(h)])
    for _ in range(2):
        with torch.no_grad():
            plain = per_head(x, weight.clone().requires_grad_())
        for got in (per_head(x, weight), plain):
            assert got.shape == (h, n, o) and got.is_contiguous() and not got.is_mkldnn
            assert_close(got, want, 1e-6)
        weight.mul_(2.0)
        want *= 2.0


def test_no_rows() -> None:
    assert linear(draw(0, 6), draw(5, 6), draw(5)).shape == (0, 5)
    assert per_head(draw(0, 12), draw(3, 4, 8), out=torch.empty(3, 0, 8)).shape == (3, 0, 8)


def test_gradcheck() -> None:
    x, weight, bias = (draw(*s, dtype=torch.float64).requires_grad_() for s in ((4, 6), (5, 6), (5,)))
    torch.autograd.gradcheck(linear, (x, weight, bias))
    heads = draw(3, 2, 4, dtype=torch.float64, seed=1).requires_grad_()
    torch.autograd.gradcheck(per_head, (x, heads))


@pytest.mark.parametrize("which", ["x", "weight", "bias"])
def test_gradients_pass_through(which: str) -> None:
    named = {"x": draw(7, 6), "weight": draw(5, 6, seed=1), "bias": draw(5, seed=2)}
    want = linear(**named)
    named[which].requires_grad_()
    out = torch.zeros(7, 5)
    y = linear(**named, out=out)
    assert y.requires_grad and not out.any()
    torch.testing.assert_close(y.detach(), want)


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
