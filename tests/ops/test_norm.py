"""RMSNorm and the residual sum: the fused pass against the definition, that against a second one."""

from functools import partial

import numba
import numpy as np
import pytest
import torch
from helpers import (
    assert_all_close,
    assert_close,
    check_nan_stays_in_row,
    check_norm_of_zeros_and_large_numbers,
    one_thread,  # noqa: F401
    outputs_and_gradients,
    threads,
)
from torch import Tensor

from lrgenome.ops import backend
from lrgenome.ops.norm import EPS, add_rms_norm, naive_rms_norm, rms_norm

DTYPES = [
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
]


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


def test_definition_agrees_with_numpy() -> None:
    x, scale = draw(5, 12, dtype=torch.float64), draw(12, dtype=torch.float64, seed=1)
    rows = x.numpy()
    want = rows / np.sqrt((rows**2).mean(1, keepdims=True) + EPS) * (1.0 + scale.numpy())
    got = naive_rms_norm(x, scale, torch.float64)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-13)
    with backend.use("naive"):
        assert torch.equal(rms_norm(x, scale, torch.float64), got)


def test_gradcheck() -> None:
    x, y, scale = (draw(*shape, dtype=torch.float64).requires_grad_() for shape in ((3, 5), (3, 5), (5,)))
    torch.autograd.gradcheck(lambda x, scale: naive_rms_norm(x, scale, torch.float64), (x, scale))
    torch.autograd.gradcheck(lambda x, y, scale: add_rms_norm(x, y, scale, torch.float64), (x, y, scale))


@pytest.mark.parametrize(("n", "d"), [(0, 24), (1, 24), (31, 16), (33, 24), (65, 5), (100, 192), (7, 17)])
@pytest.mark.parametrize(("dtype", "result"), DTYPES)
def test_fast_agrees_with_definition(dtype: torch.dtype, result: torch.dtype, n: int, d: int) -> None:
    inputs = (3.0 * draw(n, d, dtype=dtype), 0.3 * draw(d, seed=1))
    got = outputs_and_gradients(lambda x, scale: rms_norm(x, scale, result), inputs)
    want = outputs_and_gradients(lambda x, scale: naive_rms_norm(x, scale, torch.float64), inputs, torch.float64)
    assert got[0][0].dtype == result and [g.dtype for g in got[1]] == [dtype, torch.float32]
    assert_all_close(got, want, 1e-5, ("x", "scale"))
    with torch.no_grad():
        assert torch.equal(rms_norm(*inputs, result), got[0][0])


@pytest.mark.parametrize(("dtype", "result"), DTYPES)
def test_residual_sum(dtype: torch.dtype, result: torch.dtype) -> None:
    x, delta, scale = draw(33, 24, dtype=dtype), draw(33, 24, dtype=result, seed=1), draw(24, seed=2)
    total = (x.double() + delta.double()).to(dtype)
    want = naive_rms_norm(total.double(), scale, torch.float64)
    stream = x.clone()
    added, normed = add_rms_norm(stream, delta, scale, result)
    # Where nothing is differentiated the residual stream is updated in place.
    assert added.data_ptr() == stream.data_ptr() and torch.equal(added, total)
    assert normed.dtype == result
    assert_close(normed, want, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_the_residual_sum(dtype: torch.dtype) -> None:
    inputs = (draw(33, 24, dtype=dtype), draw(33, 24, dtype=dtype, seed=1), draw(24, seed=2))
    # The definition normalises what the residual stream stores: a sum rounded to its dtype.
    rounded = (inputs[0] + inputs[1]).double() - inputs[1].double()
    want = outputs_and_gradients(
        lambda x, delta, scale: (x + delta, naive_rms_norm(x + delta, scale, torch.float64)),
        (rounded, *inputs[1:]),
        torch.float64,
    )
    kept = [t.clone() for t in inputs]
    got = outputs_and_gradients(lambda x, delta, scale: add_rms_norm(x, delta, scale, dtype), inputs)
    # Two gradients, each rounded, meet in x and delta.
    assert_all_close(got, want, 1e-5 if dtype == torch.float32 else 1e-2, ("x", "delta", "scale"))
    assert all(torch.equal(a, b) for a, b in zip(inputs, kept, strict=True))


def test_out_receives_the_result_unless_autograd_is_at_work() -> None:
    x, delta, scale = draw(9, 24), draw(9, 24, seed=1), draw(24, seed=2)
    want, total = rms_norm(x, scale, torch.bfloat16), x + delta
    out = torch.zeros(9, 24, dtype=torch.bfloat16)
    assert rms_norm(x, scale, torch.bfloat16, out=out).data_ptr() == out.data_ptr() and torch.equal(out, want)
    _, normed = add_rms_norm(x.clone(), delta, scale, torch.bfloat16, out=out)
    assert normed.data_ptr() == out.data_ptr() and torch.equal(out, rms_norm(total, scale, torch.bfloat16))
    out.zero_()
    y = rms_norm(x.clone().requires_grad_(), scale, torch.bfloat16, out=out)
    assert y.requires_grad and not out.any() and torch.equal(y.detach(), want)
    leaf = x.clone().requires_grad_()
    added, _ = add_rms_norm(leaf, delta, scale, torch.bfloat16, out=out)
    assert torch.equal(leaf, x) and added.requires_grad and not out.any()


def test_rows_of_zeros_and_of_large_numbers_stay_finite() -> None:
    check_norm_of_zeros_and_large_numbers(partial(rms_norm, scale=torch.zeros(24), dtype=torch.float32))


def test_not_a_number_stays_in_its_row() -> None:
    check_nan_stays_in_row(partial(rms_norm, scale=torch.zeros(24), dtype=torch.bfloat16))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_threads_give_equal_bytes(dtype: torch.dtype, count: int) -> None:
    if count > numba.config.NUMBA_NUM_THREADS:
        pytest.skip(f"needs {count} threads; numba was started with {numba.config.NUMBA_NUM_THREADS}")
    inputs = (draw(200, 40, dtype=dtype), draw(40, seed=1))
    with threads(count):
        runs = [outputs_and_gradients(partial(rms_norm, dtype=dtype), inputs) for _ in range(2)]
    for one, two in zip(runs[0][0] + runs[0][1], runs[1][0] + runs[1][1], strict=True):
        assert one.view(torch.uint8).equal(two.view(torch.uint8))
