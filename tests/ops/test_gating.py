"""GELU gates: the fused passes against the definitions, and the definitions against a second one."""

import math

import numba
import numpy as np
import pytest
import torch
from helpers import (
    assert_all_close,
    check_extreme_gates,
    check_nan_stays_in_place,
    one_thread,  # noqa: F401
    outputs_and_gradients,
    threads,
)
from torch import Tensor

from lrgenome.ops import backend
from lrgenome.ops.gating import (
    gate_sum,
    geglu,
    naive_gate_sum,
    naive_geglu,
    naive_silu_gate_sum,
    silu_gate_sum,
)

SHAPES = [(0, 24), (1, 24), (31, 8), (33, 24), (100, 65)]
DTYPES = [torch.float32, torch.bfloat16]
BRANCH_GATES = {"gelu": (gate_sum, naive_gate_sum), "silu": (silu_gate_sum, naive_silu_gate_sum)}


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3.0 * torch.randn(*shape, generator=generator)).to(dtype)


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def test_definitions_agree_with_numpy() -> None:
    m, y1, y2 = (draw(7, 12, dtype=torch.float64, seed=seed) for seed in range(3))
    products = m.numpy()
    want = gelu(products[:, :6]) * products[:, 6:]
    np.testing.assert_allclose(naive_geglu(m).numpy(), want, rtol=1e-12, atol=1e-14)
    want = gelu(products) * (y1 + y2).numpy()
    np.testing.assert_allclose(naive_gate_sum(m, y1, y2).numpy(), want, rtol=1e-12, atol=1e-14)
    want = products / (1.0 + np.exp(-products)) * (y1 + y2).numpy()
    np.testing.assert_allclose(naive_silu_gate_sum(m, y1, y2).numpy(), want, rtol=1e-12, atol=1e-14)
    assert torch.equal(geglu(m), naive_geglu(m))
    for fast, naive in BRANCH_GATES.values():
        assert torch.equal(fast(m, y1, y2), naive(m, y1, y2))
    with backend.use("naive"):
        assert torch.equal(geglu(m.float()), naive_geglu(m.float()))


def test_gradcheck() -> None:
    m, y1, y2 = (draw(3, 6, dtype=torch.float64, seed=seed).requires_grad_() for seed in range(3))
    torch.autograd.gradcheck(naive_geglu, (m,))
    torch.autograd.gradcheck(naive_gate_sum, (m, y1, y2))
    torch.autograd.gradcheck(naive_silu_gate_sum, (m, y1, y2))


@pytest.mark.parametrize(("n", "f"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_fast_mlp_gate_agrees_with_definition(dtype: torch.dtype, n: int, f: int) -> None:
    inputs = (draw(n, 2 * f, dtype=dtype),)
    got = outputs_and_gradients(geglu, inputs)
    want = outputs_and_gradients(naive_geglu, inputs, torch.float64)
    assert got[0][0].dtype == got[1][0].dtype == dtype
    assert_all_close(got, want, 1e-6, ("m",))
    with torch.no_grad():
        assert torch.equal(geglu(*inputs), got[0][0])


@pytest.mark.parametrize(("n", "e"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BRANCH_GATES)
def test_fast_branch_gate_agrees_with_definition(name: str, dtype: torch.dtype, n: int, e: int) -> None:
    fast, naive = BRANCH_GATES[name]
    inputs = [draw(n, e, dtype=dtype, seed=seed) for seed in range(3)]
    got = outputs_and_gradients(fast, inputs)
    want = outputs_and_gradients(naive, inputs, torch.float64)
    assert {t.dtype for t in got[0] + got[1]} == {dtype}
    assert_all_close(got, want, 1e-6, ("gate", "y1", "y2"))
    with torch.no_grad():
        assert torch.equal(fast(*inputs), got[0][0])


def test_gradients_of_both_directions_are_two_tensors() -> None:
    gate, y1, y2 = (draw(4, 8, seed=seed).requires_grad_() for seed in range(3))
    gate_sum(gate, y1, y2).sum().backward()
    before = y2.grad.clone()
    y1.grad.zero_()
    assert torch.equal(y2.grad, before) and before.any()
    # The same tensor twice gets both gradients.
    gate_sum(gate, y1, y1).sum().backward()
    torch.testing.assert_close(y1.grad, 2.0 * before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("name", BRANCH_GATES)
def test_out_may_be_an_input(name: str, place: int, dtype: torch.dtype) -> None:
    fast, _ = BRANCH_GATES[name]
    inputs = [draw(33, 24, dtype=dtype, seed=seed) for seed in range(3)]
    want = fast(*inputs)
    y = fast(*inputs, out=inputs[place])
    assert y.data_ptr() == inputs[place].data_ptr() and torch.equal(y, want)


def test_out_receives_the_result_unless_autograd_is_at_work() -> None:
    m, y1, y2 = (draw(9, 8, seed=seed) for seed in range(3))
    out = torch.zeros(9, 4)
    y = geglu(m, out=out)
    assert y.data_ptr() == out.data_ptr() and torch.equal(out, geglu(m))
    out = torch.zeros(9, 4)
    y = geglu(m.clone().requires_grad_(), out=out)
    assert y.requires_grad and not out.any() and torch.equal(y.detach(), geglu(m))
    for fast, _ in BRANCH_GATES.values():
        out = torch.zeros(9, 8)
        y = fast(m, y1, y2.clone().requires_grad_(), out=out)
        assert y.requires_grad and not out.any() and torch.equal(y.detach(), fast(m, y1, y2))


@pytest.mark.parametrize("name", BRANCH_GATES)
def test_extreme_gates_stay_finite(name: str) -> None:
    gate, y, slope = check_extreme_gates(*BRANCH_GATES[name], 1e-6)
    torch.testing.assert_close(y, gate.clamp(min=0.0), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(slope, torch.tensor([[0.0] * 4 + [0.5] + [1.0] * 4]), rtol=1e-6, atol=1e-7)


def test_not_a_number_stays_in_its_place() -> None:
    for fast, _ in BRANCH_GATES.values():
        check_nan_stays_in_place(fast, 3)
    check_nan_stays_in_place(geglu, 1)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_threads_give_equal_bytes(dtype: torch.dtype, count: int) -> None:
    if count > numba.config.NUMBA_NUM_THREADS:
        pytest.skip(f"needs {count} threads; numba was started with {numba.config.NUMBA_NUM_THREADS}")
    inputs = [draw(200, 40, dtype=dtype, seed=seed) for seed in range(3)]
    with threads(count):
        runs = [outputs_and_gradients(gate_sum, inputs) for _ in range(2)]
        runs_silu = [outputs_and_gradients(silu_gate_sum, inputs) for _ in range(2)]
        runs_mlp = [outputs_and_gradients(geglu, inputs[:1]) for _ in range(2)]
    for first, second in (runs, runs_silu, runs_mlp):
        for one, two in zip(first[0] + first[1], second[0] + second[1], strict=True):
            assert one.view(torch.uint8).equal(two.view(torch.uint8))
