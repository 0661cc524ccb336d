"""What the selective scan computes with: powers of two, softplus, SiLU, sums over lanes."""

from typing import Any

import numba
import numpy as np

from lrgenome.ops import intrinsics


@numba.njit(error_model="numpy")
def arithmetic(x: Any, y: Any) -> None:
    for i in range(x.size):
        p, s = intrinsics.exp2_parts(-abs(x[i]))
        y[0, i] = intrinsics.fma(s, p, s)
        y[1, i] = p
        y[2, i] = intrinsics.softplus(x[i])
        y[3, i] = intrinsics.silu(x[i])
        y[4, i] = intrinsics.silu_and_slope(x[i])[1]


def test_arithmetic_is_accurate() -> None:
    tiny = np.linspace(np.float32(1e-37).view(np.int32), np.float32(1.0).view(np.int32), 200_000).astype(np.int32)
    x = np.concatenate([np.linspace(-126.0, 126.0, 1_000_001), tiny.view(np.float32), -tiny.view(np.float32), [0.0]])
    x = x.astype(np.float32)
    power, factor, step, gate, slope = got = np.empty((5, x.size), np.float32)
    arithmetic(x, got)
    exponent, wide = -np.abs(x.astype(np.float64)), x.astype(np.float64)
    want = np.exp2(exponent)
    assert (np.abs(power - want) / np.spacing(want.astype(np.float32))).max() <= 2.5 and power[-1] == 1.0
    # What is near 1 is exact as a difference from it.
    near = (exponent > -0.5) & (exponent < 0.0)
    want = np.expm1(exponent[near] * np.log(2.0))
    assert np.abs(factor[near] / want - 1.0).max() <= 8e-7
    want = np.logaddexp(0.0, wide)
    assert (np.abs(step - want) / want)[x > -87.0].max() <= 5e-7 and step[x < -87.0].max() < 1e-37
    sigmoid = 1.0 / (1.0 + np.exp(-wide))
    assert (np.abs(gate - wide * sigmoid) <= 4e-7 * np.abs(wide * sigmoid) + 1e-35).all()
    assert np.abs(slope - sigmoid * (1.0 + wide * (1.0 - sigmoid))).max() <= 3e-6


def test_arithmetic_beyond_its_range() -> None:
    x = np.array([-np.inf, -1e30, -127.0, np.nan, 127.0, 1e30, np.inf], np.float32)
    power, _, step, gate, slope = got = np.empty((5, x.size), np.float32)
    arithmetic(x, got)
    bad = np.isnan(x)
    assert np.isnan(got[:, bad]).all() and (power[~bad] == np.float32(2.0**-126)).all()
    assert step[:3].max() < 1e-37 and np.array_equal(step[4:], x[4:]) and np.array_equal(gate[4:], x[4:])
    assert (slope[1:3] <= 0.0).all() and (slope[4:6] == 1.0).all()


@numba.njit(error_model="numpy")
def sum_rows(x: Any, y: Any) -> None:
    for i in range(y.size):
        y[i] = intrinsics.lane_sum(x, i, 64)


def test_lane_sum() -> None:
    x = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    y = np.empty(5, np.float32)
    sum_rows(x, y)
    # By halves, every addition rounded: the same bits wherever it runs.
    while x.shape[1] > 1:
        half = x.shape[1] // 2
        x = x[:, :half] + x[:, half:]
    assert np.array_equal(y, x[:, 0])
