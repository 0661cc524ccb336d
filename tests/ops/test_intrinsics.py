"""Arithmetic inside kernels: exp and its kin, fused multiply-add, bfloat16."""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
import torch

from lrgenome.ops import intrinsics


def over_array(function: Callable[..., Any]) -> Callable[[Any], np.ndarray]:
    """Compile a loop that applies `function` to every float32."""

    @numba.njit(error_model="numpy")
    def loop(x: Any, y: Any) -> None:
        for i in range(x.size):
            y[i] = function(x[i])

    def run(x: Any) -> np.ndarray:
        x = np.ascontiguousarray(x, np.float32)
        y = np.empty_like(x)
        loop(x, y)
        return y

    return run


@numba.njit(error_model="numpy")
def slope(x: Any) -> Any:
    return intrinsics.gelu_and_slope(x)[1]


@numba.njit(error_model="numpy")
def value_beside_slope(x: Any) -> Any:
    return intrinsics.gelu_and_slope(x)[0]


exp, expm1, sigmoid, gelu = (
    over_array(f) for f in (intrinsics.exp, intrinsics.expm1, intrinsics.sigmoid, intrinsics.gelu)
)


def floats_between(low: float, high: float, count: int = 2_000_000) -> np.ndarray:
    """Float32 numbers, some evenly spaced, some evenly spaced in their bits towards zero."""
    even = np.linspace(low, high, count)
    parts = [even]
    for bound in (low, high):
        if bound:
            tiny, top = np.array([1e-38, abs(bound)], np.float32).view(np.int32)
            bits = np.linspace(tiny, top, count // 2).astype(np.int32)
            parts.append(np.sign(bound) * bits.view(np.float32).astype(np.float64))
    return np.concatenate(parts).astype(np.float32)


def test_exp_is_within_two_units_in_the_last_place() -> None:
    x = floats_between(-87.0, 88.0)
    want = np.exp(x.astype(np.float64))
    units = np.abs(exp(x) - want) / np.spacing(want.astype(np.float32)).astype(np.float64)
    assert units.max() <= 2.0
    assert exp([0.0, -0.0]).tolist() == [1.0, 1.0]


def test_exp_is_clamped_to_normal_numbers() -> None:
    low, high = exp([-87.0, 88.0])
    assert np.finfo(np.float32).tiny < low and np.isfinite(high)
    assert exp([-87.5, -200.0, -np.inf]).tolist() == [low] * 3
    assert exp([88.5, 200.0, np.inf]).tolist() == [high] * 3


def test_expm1_does_not_cancel() -> None:
    x = floats_between(-87.0, 88.0)
    x = x[x != 0.0]
    want = np.expm1(x.astype(np.float64))
    error = np.abs(expm1(x) - want) / np.abs(want)
    assert error[np.abs(x) < 1e-3].max() <= 2.0**-23
    assert error.max() <= 2.0**-22
    assert expm1([0.0, -np.inf, -200.0]).tolist() == [0.0, -1.0, -1.0]
    # 1 - a^2 is made of it, and must not become negative: its square root would be no number.
    assert expm1(-np.abs(x)).min() >= -1.0 and expm1(-np.abs(x)).max() <= 0.0


def test_sigmoid() -> None:
    x = floats_between(-87.0, 87.0)
    want = 1.0 / (1.0 + np.exp(-x.astype(np.float64)))
    got = sigmoid(x)
    assert (np.abs(got - want) / want).max() <= 3e-7
    assert got.min() > 0.0 and got.max() == 1.0
    extreme = sigmoid([-np.inf, -1e30, 1e30, np.inf])
    assert (extreme[:2] >= 0.0).all() and extreme[:2].max() < 1e-37 and extreme[2:].tolist() == [1.0, 1.0]


def test_gelu_and_its_slope() -> None:
    x = np.concatenate([floats_between(-12.0, 12.0, 500_000), np.linspace(-1e4, 1e4, 100_001, dtype=np.float32)])
    leaf = torch.from_numpy(x.astype(np.float64)).requires_grad_()
    y = torch.nn.functional.gelu(leaf, approximate="tanh")
    (want_slope,) = torch.autograd.grad(y.sum(), leaf)
    want = y.detach().numpy()
    allowed = 2e-7 * np.abs(x) + 1e-30
    assert (np.abs(gelu(x) - want) <= allowed).all()
    assert (np.abs(over_array(value_beside_slope)(x) - want) <= allowed).all()
    assert np.abs(over_array(slope)(x) - want_slope.numpy()).max() <= 3e-6


@pytest.mark.parametrize("function", [exp, expm1, sigmoid, gelu])
def test_not_a_number_stays_one(function: Callable[[Any], np.ndarray]) -> None:
    # More than a vector of them, and one alone.
    assert np.isnan(function([np.nan] * 37)).all() and np.isnan(function([np.nan])).all()
    assert np.isnan(function([1.0, np.nan, -np.nan, 2.0])).tolist() == [False, True, True, False]


@numba.njit(error_model="numpy")
def round_all(x: Any, y: Any) -> None:
    for i in range(x.size):
        y[i] = intrinsics.from_f32(x[i], y)


@numba.njit(error_model="numpy")
def widen_all(x: Any, y: Any) -> None:
    for i in range(x.size):
        y[i] = intrinsics.to_f32(x[i])


def test_rounding_to_bfloat16_is_that_of_torch() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 1_000_000, dtype=np.uint32)
    halves = (np.arange(2**16, dtype=np.uint32) << 16) | 0x8000
    edges = np.array([0, 1 << 31, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x7F7F8000, 0x7F7F7FFF], np.uint32)
    subnormal = rng.integers(0, 2**23, 100_000, dtype=np.uint32) | (rng.integers(0, 2, 100_000, dtype=np.uint32) << 31)
    x = np.concatenate([bits, halves, halves - 1, halves + 1, edges, subnormal]).astype(np.uint32).view(np.float32)
    got = np.empty(x.size, np.uint16)
    round_all(x, got)
    want = torch.from_numpy(x).to(torch.bfloat16).view(torch.uint16).numpy()
    numbers = ~np.isnan(x)
    assert np.isinf(x).sum() >= 2 and (~numbers).sum() > 1000
    np.testing.assert_array_equal(got[numbers], want[numbers])
    # A NaN whose payload is all in the lower half must not become an infinity.
    widened = torch.from_numpy(got.view(np.int16)).view(torch.bfloat16).float().numpy()
    assert np.isnan(widened[~numbers]).all()


def test_bfloat16_is_read_exactly() -> None:
    every = np.arange(2**16, dtype=np.uint16)
    got = np.empty(every.size, np.float32)
    widen_all(every, got)
    np.testing.assert_array_equal(got.view(np.uint32), every.astype(np.uint32) << 16)


def test_float32_passes_unchanged() -> None:
    x = np.random.default_rng(0).integers(0, 2**32, 10_000, dtype=np.uint32)
    one, two = np.empty(x.size, np.float32), np.empty(x.size, np.float32)
    round_all(x.view(np.float32), one)
    widen_all(x.view(np.float32), two)
    numbers = ~np.isnan(x.view(np.float32))
    for got in (one, two):
        np.testing.assert_array_equal(got.view(np.uint32)[numbers], x[numbers])
        assert np.isnan(got[~numbers]).all()


def test_outside_a_kernel_the_stubs_say_so() -> None:
    with pytest.raises(NotImplementedError):
        intrinsics.to_f32(1.0)
    with pytest.raises(NotImplementedError):
        intrinsics.from_f32(1.0, np.zeros(1))


@numba.njit(error_model="numpy")
def fuse_all(a: Any, b: Any, c: Any, y: Any) -> None:
    for i in range(a.size):
        y[i] = intrinsics.fma(a[i], b[i], c[i])


def test_fma_rounds_once() -> None:
    a, b, c = np.random.default_rng(3).standard_normal((3, 100_000)).astype(np.float32)
    c = np.where(np.arange(c.size) % 2, c, -a * b)
    got = np.empty_like(a)
    fuse_all(a, b, c, got)
    exact = a.astype(np.float64) * b + c  # the product is exact in float64, the sum almost always
    twice = a * b + c
    np.testing.assert_allclose(got, exact, rtol=2**-23, atol=0 if intrinsics.FUSES else 1e-6)
    assert (got != twice).mean() > 0.4 or not intrinsics.FUSES
