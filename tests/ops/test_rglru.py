"""The RG-LRU: every implementation for a CPU against the definition, and the definition against a second one."""

from collections.abc import Callable
from functools import cache, partial

import numba
import numpy as np
import pytest
import torch
from helpers import (
    SHAPES,
    RgLruInputs,
    assert_all_close,
    assert_close,
    check_bounded_gradient_where_nothing_decays,
    chunks,
    one_thread,  # noqa: F401
    outputs_and_gradients,
    rglru_inputs,
    threads,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lrgenome.ops import backend
from lrgenome.ops.rglru import blocked, cpu, naive, rglru

BOTH = (False, True)
IMPLEMENTATIONS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "naive": naive.rglru,
    "cpu": cpu.rglru,
    "blocked": blocked.rglru,
}
FAST = ("cpu", "blocked")
Results = tuple[list[Tensor], list[Tensor]]


@cache
def exact(t: int, h: int, w: int, dtype: torch.dtype, reverse: bool, reset: bool) -> Results:
    """Outputs and gradients of the definition in float64, on inputs rounded to `dtype`."""
    function = partial(naive.rglru, reverse=reverse, reset=reset)
    return outputs_and_gradients(function, rglru_inputs(2, t, h, w, dtype), torch.float64)


def brute_force(inputs: RgLruInputs, *, reverse: bool, reset: bool) -> tuple[np.ndarray, np.ndarray]:
    """Equations 1-4 one number at a time, in numpy float64, with products looked up per head and channel."""
    x, gates, bias, decay, h0 = (t.double().numpy() for t in inputs)
    b, t, e = x.shape
    w = gates.shape[2] // 2
    y, end = np.zeros_like(x), np.zeros_like(h0)
    for row in range(b):
        for channel in range(e):
            head, lane = divmod(channel, w)
            state = h0[row, channel]
            for step, position in enumerate(range(t - 1, -1, -1) if reverse else range(t)):
                product = gates[head, row * t + position]
                i = 1.0 / (1.0 + np.exp(-(product[lane] + bias[0, channel])))
                r = 1.0 / (1.0 + np.exp(-(product[w + lane] + bias[1, channel])))
                a = np.exp(-r * decay[channel])
                factor = np.sqrt(-np.expm1(-2.0 * r * decay[channel]))
                if reset and step == 0:
                    a, factor = 0.0, 1.0
                state = a * state + factor * i * x[row, position, channel]
                y[row, position, channel] = state
            end[row, channel] = state
    return y, end


@pytest.mark.parametrize("reset", BOTH)
@pytest.mark.parametrize("reverse", BOTH)
def test_definition_agrees_with_brute_force(reverse: bool, reset: bool) -> None:
    inputs = rglru_inputs(2, 9, 3, 4, torch.float64)
    y, end = brute_force(inputs, reverse=reverse, reset=reset)
    got_y, got_end = naive.rglru(*inputs, reverse=reverse, reset=reset)
    np.testing.assert_allclose(got_y.numpy(), y, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(got_end.numpy(), end, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("reset", BOTH)
@pytest.mark.parametrize("reverse", BOTH)
@pytest.mark.parametrize("name", ["naive", "blocked"])
def test_gradcheck(name: str, reverse: bool, reset: bool) -> None:
    inputs = rglru_inputs(2, 7, 2, 2, torch.float64, low=1e-2, high=5.0)
    function = partial(IMPLEMENTATIONS[name], reverse=reverse, reset=reset)
    torch.autograd.gradcheck(function, [t.requires_grad_() for t in inputs])


@pytest.mark.parametrize("reset", BOTH)
@pytest.mark.parametrize("reverse", BOTH)
@pytest.mark.parametrize(("t", "h", "w"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", FAST)
def test_fast_agrees_with_definition(
    name: str, dtype: torch.dtype, t: int, h: int, w: int, reverse: bool, reset: bool
) -> None:
    inputs = rglru_inputs(2, t, h, w, dtype)
    function = partial(IMPLEMENTATIONS[name], reverse=reverse, reset=reset)
    got = outputs_and_gradients(function, inputs)
    assert [o.dtype for o in got[0]] == [dtype, torch.float32]
    assert [g.dtype for g in got[1]] == [i.dtype for i in inputs]
    assert_all_close(got, exact(t, h, w, dtype, reverse, reset), 1e-5, RgLruInputs._fields)


@pytest.mark.parametrize(("low", "high"), [(1e-6, 1.1e-6), (1e-3, 1e-2), (5.0, 40.0)])
@pytest.mark.parametrize("reverse", BOTH)
@pytest.mark.parametrize("name", FAST)
def test_slow_and_fast_decays(name: str, reverse: bool, low: float, high: float) -> None:
    inputs = rglru_inputs(2, 200, 3, 24, torch.float32, low=low, high=high)
    flags = {"reverse": reverse, "reset": True}
    got = outputs_and_gradients(partial(IMPLEMENTATIONS[name], **flags), inputs)
    want = outputs_and_gradients(partial(naive.rglru, **flags), inputs, torch.float64)
    assert_all_close(got, want, 1e-5, RgLruInputs._fields)


@pytest.mark.parametrize("reset", BOTH)
@pytest.mark.parametrize("reverse", BOTH)
def test_blocked_is_exact_in_float64(reverse: bool, reset: bool) -> None:
    inputs = rglru_inputs(2, 67, 3, 8, torch.float64)
    flags = {"reverse": reverse, "reset": reset}
    got = outputs_and_gradients(partial(blocked.rglru, **flags), inputs)
    want = outputs_and_gradients(partial(naive.rglru, **flags), inputs)
    assert_all_close(got, want, 1e-12, RgLruInputs._fields)


def run_in_chunks(
    function: Callable[..., tuple[Tensor, Tensor]], size: int, reverse: bool, reset: bool, *inputs: Tensor
) -> tuple[Tensor, Tensor]:
    """Run `function` chunk by chunk with the state carried, and put y together again."""
    x, gates, gate_bias, decay, state = inputs
    b, t, _ = x.shape
    h, _, w2 = gates.shape
    per_position = gates.view(h, b, t, w2)
    pieces = []
    for index, (lo, hi) in enumerate(chunks(t, size, reverse=reverse)):
        piece = per_position[:, :, lo:hi].reshape(h, b * (hi - lo), w2)
        y, state = function(x[:, lo:hi], piece, gate_bias, decay, state, reverse=reverse, reset=reset and index == 0)
        pieces.append(y)
    return torch.cat(pieces[::-1] if reverse else pieces, 1), state


@pytest.mark.parametrize("reset", BOTH)
@pytest.mark.parametrize("reverse", BOTH)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 65])
@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [("naive", torch.float64, 1e-13), ("cpu", torch.float32, 1e-5), ("blocked", torch.float32, 1e-5)],
)
def test_chunks_equal_whole(
    name: str, dtype: torch.dtype, tolerance: float, size: int, reverse: bool, reset: bool
) -> None:
    inputs = rglru_inputs(2, 65, 3, 8, dtype)
    function = IMPLEMENTATIONS[name]
    whole = outputs_and_gradients(partial(function, reverse=reverse, reset=reset), inputs)
    pieces = outputs_and_gradients(partial(run_in_chunks, function, size, reverse, reset), inputs)
    assert_all_close(pieces, whole, tolerance, RgLruInputs._fields)


@settings(max_examples=30, deadline=None)
@given(
    t=st.integers(0, 40),
    size=st.integers(1, 41),
    w=st.integers(1, 20),
    reverse=st.booleans(),
    reset=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_chunks_of_the_kernel_equal_the_definition(
    t: int, size: int, w: int, reverse: bool, reset: bool, seed: int
) -> None:
    inputs = rglru_inputs(1, t, 2, w, torch.float32, seed=seed)
    want = outputs_and_gradients(partial(naive.rglru, reverse=reverse, reset=reset), inputs, torch.float64)
    if t:
        got = outputs_and_gradients(partial(run_in_chunks, cpu.rglru, size, reverse, reset), inputs)
    else:
        got = outputs_and_gradients(partial(cpu.rglru, reverse=reverse, reset=reset), inputs)
    assert_all_close(got, want, 2e-5, RgLruInputs._fields)


@pytest.mark.parametrize("name", ["naive", *FAST])
def test_reset_ignores_the_state_and_takes_the_first_input_whole(name: str) -> None:
    inputs = rglru_inputs(2, 5, 3, 8, torch.float32)
    function = IMPLEMENTATIONS[name]
    for reverse in BOTH:
        first = 4 if reverse else 0
        y, end = function(*inputs, reverse=reverse, reset=True)
        other_y, other_end = function(*inputs._replace(h0=inputs.h0 + 100.0), reverse=reverse, reset=True)
        assert torch.equal(y, other_y) and torch.equal(end, other_end)
        gate, _ = naive.split_gates(inputs.gates, inputs.gate_bias, 2, 5)
        torch.testing.assert_close(y[:, first], (inputs.x * torch.sigmoid(gate))[:, first])


@pytest.mark.parametrize("name", ["naive", *FAST])
def test_arguments_are_left_as_they_were(name: str) -> None:
    inputs = rglru_inputs(2, 6, 3, 8, torch.float32)
    before = [t.clone() for t in inputs]
    IMPLEMENTATIONS[name](*inputs, reverse=False, reset=False)
    outputs_and_gradients(partial(IMPLEMENTATIONS[name], reverse=True, reset=False), inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


def test_square_root_has_a_bounded_slope() -> None:
    x = torch.tensor([0.0, 1e-14, 1e-8, 2.5e-7, 3e-7, 1e-4, 0.25, 1.0], dtype=torch.float64, requires_grad=True)
    y = naive.BoundedSqrt.apply(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(y, torch.sqrt(x))
    plain = 0.5 / torch.sqrt(x.detach())
    torch.testing.assert_close(slope, plain.clamp(max=naive.MAX_SQRT_SLOPE), rtol=1e-12, atol=0.0)
    assert slope[:4].tolist() == pytest.approx([1000.0] * 4) and slope.max() <= 1000.0 * (1 + 1e-12)


@pytest.mark.parametrize("name", ["naive", *FAST])
def test_gradient_is_bounded_where_nothing_decays(name: str) -> None:
    check_bounded_gradient_where_nothing_decays(IMPLEMENTATIONS[name])


@pytest.mark.parametrize("name", ["naive", *FAST])
def test_input_factor_is_exact_for_long_half_lives(name: str) -> None:
    half_life = np.logspace(0.0, 9.0, 64)
    log_a = -np.log(2.0) / half_life
    # Recurrence gates are 1/2, so log a = -decay / 2; input gates are 1, and y is the factor itself.
    e = half_life.size
    decay = torch.from_numpy(-2.0 * log_a).float()
    gates = torch.cat([torch.full((1, 1, e), 60.0), torch.zeros(1, 1, e)], -1)
    y, _ = IMPLEMENTATIONS[name](
        torch.ones(1, 1, e), gates, torch.zeros(2, e), decay, torch.zeros(1, e), reverse=False, reset=False
    )
    want = np.sqrt(-np.expm1(-decay.double().numpy()))
    np.testing.assert_allclose(y[0, 0].numpy(), want, rtol=3e-7)
    # The plain formula in float32 has lost every digit of the longest ones.
    plain = torch.sqrt(1.0 - torch.exp(-0.5 * decay) ** 2).numpy()
    assert np.abs(plain / want - 1.0).max() > 0.5


def test_kernel_keeps_a_slow_state() -> None:
    # A half-life of 10^5 over 10^5 positions: exp(log a) rounded to float32 would be off by 0.2 % on its own.
    t = 100_000
    decay = torch.full((1,), 2.0 * np.log(2.0) / t)
    inputs = RgLruInputs(torch.zeros(1, t, 1), torch.zeros(1, t, 2), torch.zeros(2, 1), decay.float(), torch.ones(1, 1))
    _, end = cpu.rglru(*inputs, reverse=False, reset=False)
    assert end.item() == pytest.approx(0.5, rel=1e-4)


def test_not_a_number_reaches_the_output() -> None:
    for place in ("x", "gates", "h0"):
        inputs = rglru_inputs(1, 8, 1, 8, torch.float32)
        getattr(inputs, place).view(-1)[3] = torch.nan
        for name in IMPLEMENTATIONS:
            y, _ = IMPLEMENTATIONS[name](*inputs, reverse=False, reset=False)
            assert torch.isnan(y).any(), (name, place)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_threads_give_equal_bytes(dtype: torch.dtype, count: int) -> None:
    if count > numba.config.NUMBA_NUM_THREADS:
        pytest.skip(f"needs {count} threads; numba was started with {numba.config.NUMBA_NUM_THREADS}")
    inputs = rglru_inputs(3, 50, 3, 24, dtype)
    with threads(count):
        runs = [outputs_and_gradients(partial(cpu.rglru, reverse=True, reset=True), inputs) for _ in range(2)]
    for one, two in zip(runs[0][0] + runs[0][1], runs[1][0] + runs[1][1], strict=True):
        assert one.view(torch.uint8).equal(two.view(torch.uint8))


def test_layouts_and_dtypes_of_callers() -> None:
    inputs = rglru_inputs(2, 6, 3, 8, torch.float32)
    y, end = cpu.rglru(*inputs, reverse=False, reset=False)
    wide = RgLruInputs(
        inputs.x.transpose(1, 2).contiguous().transpose(1, 2),
        inputs.gates.transpose(1, 2).contiguous().transpose(1, 2),
        inputs.gate_bias.double(),
        inputs.decay.double(),
        inputs.h0.t().contiguous().t(),
    )
    other_y, other_end = cpu.rglru(*wide, reverse=False, reset=False)
    assert torch.equal(y, other_y) and torch.equal(end, other_end)


def test_gradient_of_the_state_alone_and_of_expanded_gradients() -> None:
    inputs = rglru_inputs(2, 6, 3, 8, torch.float32)
    for loss in (lambda y, h: h.sum(), lambda y, h: y.sum(), lambda y, h: y[:, 2].sum() + h[0, 0]):
        results = []
        for function, dtype in ((naive.rglru, torch.float64), (cpu.rglru, torch.float32)):
            leaves = [t.to(dtype).clone().requires_grad_() for t in inputs]
            results.append(torch.autograd.grad(loss(*function(*leaves, reverse=False, reset=False)), leaves))
        for name, want, got in zip(RgLruInputs._fields, *results, strict=True):
            assert_close(got, want, 1e-5, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_out_receives_y_unless_autograd_is_at_work(dtype: torch.dtype) -> None:
    inputs = rglru_inputs(2, 6, 3, 8, dtype)
    want, _ = rglru(*inputs, reverse=False, reset=True)
    out = torch.full_like(inputs.x, -7.0)
    y, _ = rglru(*inputs, reverse=False, reset=True, out=out)
    assert y.data_ptr() == out.data_ptr() and torch.equal(out, want)
    out = torch.full_like(inputs.x, -7.0)
    y, _ = rglru(*inputs._replace(decay=inputs.decay.clone().requires_grad_()), reverse=False, reset=True, out=out)
    assert y.requires_grad and (out == -7.0).all() and torch.equal(y.detach(), want)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_backend_decides(name: str) -> None:
    inputs = rglru_inputs(2, 20, 3, 8, torch.float32)
    with backend.use(name):
        y, end = rglru(*inputs, reverse=True, reset=False)
    want_y, want_end = IMPLEMENTATIONS[name](*inputs, reverse=True, reset=False)
    assert torch.equal(y, want_y) and torch.equal(end, want_end)


def test_float64_runs_the_definition() -> None:
    inputs = rglru_inputs(2, 20, 3, 8, torch.float64)
    y, end = rglru(*inputs, reverse=True, reset=False)
    assert y.dtype == end.dtype == torch.float64
    assert torch.equal(y, naive.rglru(*inputs, reverse=True, reset=False)[0])
