"""The Triton kernels of norm, gated MLP and gated sum against their definitions, in Triton's interpreter."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from helpers import (
    assert_all_close,
    assert_close,
    check_extreme_gates,
    check_nan_stays_in_place,
    check_nan_stays_in_row,
    check_norm_of_zeros_and_large_numbers,
    interpreted,
    norm_inputs,
    one_thread,  # noqa: F401
    outputs_and_gradients,
)
from torch import Tensor

from lrgenome.ops import gating, triton_rows
from lrgenome.ops.norm import EPS, naive_rms_norm

pytestmark = interpreted

DTYPES = (torch.float32, torch.bfloat16)
WIDE_AND_RESULT = [(torch.float32,) * 2, (torch.float32, torch.bfloat16), (torch.bfloat16,) * 2]
# The interpreter cuts float32 off where a GPU rounds it to the nearest bfloat16.
ROUNDING = 2.0**-7
close = partial(assert_close, rounding=ROUNDING)
all_close = partial(assert_all_close, rounding=ROUNDING)
GATES = {
    "geglu": (triton_rows.geglu, gating.naive_geglu, 1),
    "gelu": (partial(triton_rows.gate_sum, kind=triton_rows.GELU), gating.naive_gate_sum, 3),
    "silu": (partial(triton_rows.gate_sum, kind=triton_rows.SILU), gating.naive_silu_gate_sum, 3),
}


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let values take several programs, and programs several tiles of rows."""
    monkeypatch.setattr(triton_rows, "BLOCK", 64)
    monkeypatch.setattr(triton_rows, "PROGRAMS", 2)


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return (3.0 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def normed(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return triton_rows.rms_norm(x, scale, dtype, EPS)[1]


def added_and_normed(x: Tensor, delta: Tensor, scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return triton_rows.rms_norm(x, scale, dtype, EPS, delta)


def by_definition(x: Tensor, delta: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return x + delta, naive_rms_norm(x + delta, scale, torch.float64)


@pytest.mark.parametrize(("n", "width"), [(1, 24), (3, 2), (33, 26), (20, 64)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GATES)
def test_gates_agree_with_definition(name: str, dtype: torch.dtype, n: int, width: int) -> None:
    fast, naive, count = GATES[name]
    inputs = [draw(n, width, dtype=dtype, seed=seed) for seed in range(count)]
    got = outputs_and_gradients(fast, inputs)
    want = outputs_and_gradients(naive, inputs, torch.float64)
    assert {t.dtype for t in got[0] + got[1]} == {dtype}
    # 1 minus a gate that is nearly open has few digits.
    all_close(got, want, 5e-6, [f"input {index}" for index in range(count)])
    assert torch.equal(fast(*inputs), got[0][0])


@pytest.mark.parametrize("name", GATES)
def test_out_receives_the_result_unless_autograd_is_at_work(name: str) -> None:
    fast, _, count = GATES[name]
    inputs = [draw(9, 24, seed=seed) for seed in range(count)]
    want = fast(*inputs)
    out = torch.zeros_like(want)
    assert fast(*inputs, out=out) is out and torch.equal(out, want)
    out.zero_()
    y = fast(*(i.clone().requires_grad_() for i in inputs), out=out)
    assert y.requires_grad and not out.any() and torch.equal(y.detach(), want)


def test_norm_is_written_to_out() -> None:
    x, delta, scale = draw(9, 24), draw(9, 24, seed=1), 0.3 * draw(24, seed=2)
    for extra in (None, delta):
        want = triton_rows.rms_norm(x.clone(), scale, torch.bfloat16, EPS, extra)
        out = torch.zeros(9, 24, dtype=torch.bfloat16)
        total, y = triton_rows.rms_norm(x.clone(), scale, torch.bfloat16, EPS, extra, out)
        assert y is out and torch.equal(out, want[1]) and torch.equal(total, want[0])


@pytest.mark.parametrize("name", GATES)
def test_gates_of_no_rows(name: str) -> None:
    fast, _, count = GATES[name]
    got = outputs_and_gradients(fast, [draw(0, 24)] * count)
    assert got[0][0].shape == (0, 12 if name == "geglu" else 24) and got[1][0].shape == (0, 24)


# numpy says so of the exponential's overflow; a GPU does not.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("name", ["gelu", "silu"])
def test_extreme_gates_stay_finite(name: str) -> None:
    check_extreme_gates(*GATES[name][:2], 1e-5)


def test_gates_take_layouts_of_callers_and_the_same_tensor_twice() -> None:
    m, y = draw(24, 6).t(), draw(6, 1, seed=1).expand(6, 24)
    for fast, naive in ((GATES[name][:2]) for name in ("gelu", "silu")):
        leaves = m.clone().requires_grad_(), y.detach().requires_grad_()
        want = [t.detach().double().requires_grad_() for t in leaves]
        # The sum's gradient is an expanded one.
        got = torch.autograd.grad(fast(leaves[0], leaves[1], leaves[1]).sum(), leaves)
        expected = torch.autograd.grad(naive(want[0], want[1], want[1]).sum(), want)
        all_close(([], list(got)), ([], list(expected)), 5e-6, ("gate", "y"))
    close(triton_rows.geglu(m), gating.naive_geglu(m.double()), 1e-6)


def test_not_a_number_stays_in_its_place() -> None:
    for fast, _, count in GATES.values():
        check_nan_stays_in_place(fast, count)
    check_nan_stays_in_row(partial(normed, scale=torch.zeros(24), dtype=torch.bfloat16))


# Rows are taken 4096 // (width's next power of two) at a time, by at most two programs.
@pytest.mark.parametrize(("n", "d"), [(1, 24), (3, 5), (33, 24), (300, 72), (5, 3000)])
@pytest.mark.parametrize(("dtype", "result"), WIDE_AND_RESULT)
def test_norm_agrees_with_definition(dtype: torch.dtype, result: torch.dtype, n: int, d: int) -> None:
    inputs = draw(n, d, dtype=dtype), 0.3 * draw(d, seed=1)
    function = partial(normed, dtype=result)
    got = outputs_and_gradients(function, inputs)
    want = outputs_and_gradients(lambda x, scale: naive_rms_norm(x, scale, torch.float64), inputs, torch.float64)
    assert got[0][0].dtype == result and [g.dtype for g in got[1]] == [dtype, torch.float32]
    all_close(got, want, 1e-5, ("x", "scale"))
    kept = inputs[0].clone()
    assert torch.equal(function(*inputs), got[0][0]) and torch.equal(inputs[0], kept)


@pytest.mark.parametrize(("n", "d"), [(1, 24), (33, 5), (300, 72)])
@pytest.mark.parametrize(("dtype", "result"), WIDE_AND_RESULT)
def test_residual_sum_and_its_norm(dtype: torch.dtype, result: torch.dtype, n: int, d: int) -> None:
    inputs = norm_inputs(n, d, dtype, result)
    want = outputs_and_gradients(by_definition, inputs, torch.float64)
    kept = [i.clone() for i in inputs]
    got = outputs_and_gradients(partial(added_and_normed, dtype=result), inputs)
    assert [o.dtype for o in got[0]] == [dtype, result]
    assert [g.dtype for g in got[1]] == [dtype, result, torch.float32]
    all_close(got, want, 1e-5, ("x", "delta", "scale"))
    assert all(torch.equal(a, b) for a, b in zip(inputs, kept, strict=True))
    # Where nothing is differentiated the residual stream is updated in place.
    stream, delta, scale = (i.clone() for i in inputs)
    total, y = added_and_normed(stream, delta, scale, result)
    assert total.data_ptr() == stream.data_ptr() and torch.equal(total, got[0][0]) and torch.equal(y, got[0][1])
    assert torch.equal(delta, inputs[1])


def test_a_rounded_sum_is_what_is_normalised() -> None:
    x, delta, scale = draw(33, 24, dtype=torch.bfloat16), draw(33, 24, dtype=torch.bfloat16, seed=1), draw(24, seed=2)
    total, y = added_and_normed(x.clone(), delta, scale, torch.float32)
    close(total, x.double() + delta.double(), 1e-6)
    assert_close(y, naive_rms_norm(total.double(), scale.double(), torch.float64), 1e-6)


@pytest.mark.parametrize(
    "loss",
    [lambda total, y: total.sum(), lambda total, y: y.sum(), lambda total, y: total[:, 1].sum() + y[3].sum()],
    ids=["total", "y", "both"],
)
def test_gradients_through_either_output(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    inputs, results = norm_inputs(9, 20, torch.float32, torch.float32), []
    for function, dtype in (
        (partial(added_and_normed, dtype=torch.float32), torch.float32),
        (by_definition, torch.float64),
    ):
        leaves = [i.to(dtype).clone().requires_grad_() for i in inputs]
        gradients = torch.autograd.grad(loss(*function(*leaves)), leaves, allow_unused=True, materialize_grads=True)
        results.append(([], list(gradients)))
    assert_all_close(*results, 1e-5, ("x", "delta", "scale"))


def test_norm_takes_layouts_and_dtypes_of_callers() -> None:
    x, delta, scale = draw(20, 9).t(), draw(1, 20, seed=1).expand(9, 20), draw(20, seed=2).double()
    want = outputs_and_gradients(by_definition, (x, delta, scale), torch.float64)
    leaves = [i.detach().requires_grad_() for i in (x, delta, scale)]
    total, y = added_and_normed(*leaves, torch.float32)
    close(total, want[0][0], 1e-6)
    close(y, want[0][1], 1e-6)
    got = outputs_and_gradients(partial(added_and_normed, dtype=torch.float32), (x, delta, scale))
    assert got[1][2].dtype == torch.float64
    all_close(got, want, 1e-5, ("x", "delta", "scale"))


def test_rows_of_zeros_and_of_large_numbers_stay_finite() -> None:
    check_norm_of_zeros_and_large_numbers(partial(normed, scale=torch.zeros(24), dtype=torch.float32))
