"""The selective scan: every fast implementation against the definition, and the definition against a second one."""

from collections.abc import Callable, Iterator
from functools import cache, partial

import numba
import numpy as np
import pytest
import torch
from helpers import (
    assert_all_close,
    assert_close,
    chunks,
    one_thread,  # noqa: F401
    outputs_and_gradients,
    threads,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_inputs import NAMES, ScanInputs, positional, scan_inputs, selective_scan_stand_in
from torch import Tensor

from lrgenome.ops import backend
from lrgenome.ops.record import Record
from lrgenome.ops.selective_scan import blocked, cpu, cuda, mamba, naive, selective_scan
from lrgenome.ops.trusted import trusted

BOTH = (False, True)
IMPLEMENTATIONS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "naive": naive.selective_scan,
    "cpu": cpu.selective_scan,
    "blocked": blocked.selective_scan,
    "cuda": cuda.selective_scan,
}
FAST = ("cpu", "blocked", "cuda")
DTYPES = (torch.float32, torch.bfloat16)
SHAPES = (
    *((t, 24, 16) for t in (0, 1, 2, 63, 64, 65, 200)),
    (65, 7, 4),
    (65, 130, 16),
    (129, 130, 1),
    (5, 64, 4),
    (130, 7, 5),
)
"""(positions, channels, state entries); segments of the kernel are 64 positions, its tasks 64 channels."""
Results = tuple[list[Tensor], list[Tensor]]


@pytest.fixture(autouse=True, scope="module")
def stand_in_for_mamba() -> Iterator[None]:
    """Let the CUDA adapter run on the CPU with a kernel in plain torch, and cut its pieces and segments short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mamba, "_import_kernel", lambda: selective_scan_stand_in)
        patch.setattr(mamba, "PIECE", 48)
        patch.setattr(blocked, "SEGMENT", 48)
        trusted.cache_clear()
        yield
    trusted.cache_clear()


def some(inputs: ScanInputs, gated: bool) -> tuple[Tensor, ...]:
    return inputs if gated else inputs[:8]


@cache
def exact(t: int, e: int, n: int, dtype: torch.dtype, reverse: bool, gated: bool) -> Results:
    """Outputs and gradients of the definition in float64, on inputs rounded to `dtype`."""
    inputs = some(scan_inputs(2, t, e, n, dtype), gated)
    return outputs_and_gradients(positional(naive.selective_scan, reverse=reverse), inputs, torch.float64)


def brute_force(inputs: ScanInputs, *, reverse: bool, gated: bool) -> tuple[np.ndarray, np.ndarray]:
    """Algorithm 2 one number at a time, in numpy float64."""
    x, dt, a, b, c, skip, dt_bias, h0, z = (t.double().numpy() for t in inputs)
    rows, t, e = x.shape
    y, end = np.zeros_like(x), h0.copy()
    for row in range(rows):
        for channel in range(e):
            for position in range(t - 1, -1, -1) if reverse else range(t):
                at = row, position, channel
                delta = np.log1p(np.exp(dt[at] + dt_bias[channel]))
                total = skip[channel] * x[at]
                for entry in range(a.shape[1]):
                    state = np.exp(delta * a[channel, entry]) * end[row, channel, entry]
                    state += delta * b[row, position, entry] * x[at]
                    end[row, channel, entry] = state
                    total += c[row, position, entry] * state
                y[at] = total * (z[at] / (1.0 + np.exp(-z[at])) if gated else 1.0)
    return y, end


@pytest.mark.parametrize("gated", BOTH)
@pytest.mark.parametrize("reverse", BOTH)
def test_definition_agrees_with_brute_force(reverse: bool, gated: bool) -> None:
    inputs = scan_inputs(2, 9, 5, 3, torch.float64)
    y, end = brute_force(inputs, reverse=reverse, gated=gated)
    got_y, got_end = positional(naive.selective_scan, reverse=reverse)(*some(inputs, gated))
    np.testing.assert_allclose(got_y.numpy(), y, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(got_end.numpy(), end, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("reverse", BOTH)
@pytest.mark.parametrize("name", ["naive", "blocked"])
def test_gradcheck(name: str, reverse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocked, "SEGMENT", 3)
    inputs = [t.clone().requires_grad_() for t in scan_inputs(2, 7, 3, 2, torch.float64, low=0.1, high=5.0)]
    torch.autograd.gradcheck(positional(IMPLEMENTATIONS[name], reverse=reverse), inputs)


@pytest.mark.parametrize("gated", BOTH)
@pytest.mark.parametrize("reverse", BOTH)
@pytest.mark.parametrize(("t", "e", "n"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["cpu", "blocked"])
def test_fast_agrees_with_definition(
    name: str, dtype: torch.dtype, t: int, e: int, n: int, reverse: bool, gated: bool
) -> None:
    inputs = some(scan_inputs(2, t, e, n, dtype), gated)
    got = outputs_and_gradients(positional(IMPLEMENTATIONS[name], reverse=reverse), inputs)
    assert [o.dtype for o in got[0]] == [dtype, torch.float32]
    assert [g.dtype for g in got[1]] == [i.dtype for i in inputs]
    assert_all_close(got, exact(t, e, n, dtype, reverse, gated), 1e-5, NAMES[: len(inputs)])


@pytest.mark.parametrize("gated", BOTH)
@pytest.mark.parametrize("reverse", BOTH)
@pytest.mark.parametrize(("t", "e", "n"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_without_autograd(
    name: str, dtype: torch.dtype, t: int, e: int, n: int, reverse: bool, gated: bool
) -> None:
    # The kernel keeps no states then; the adapter runs its kernel only then.
    inputs = some(scan_inputs(2, t, e, n, dtype), gated)
    with backend.use(name):
        y, end = positional(selective_scan, reverse=reverse)(*inputs)
    assert (y.dtype, end.dtype) == (dtype, torch.float32)
    want = exact(t, e, n, dtype, reverse, gated)[0]
    assert_close(y, want[0], 1e-5, "y")
    assert_close(end, want[1], 1e-5, "h_end")
    if name == "cpu":
        traced, traced_end = positional(cpu.selective_scan, reverse=reverse)(*inputs)
        assert torch.equal(y, traced) and torch.equal(end, traced_end)


@pytest.mark.parametrize(("low", "high"), [(1e-6, 1.1e-6), (1e-3, 1e-2), (20.0, 40.0)])
@pytest.mark.parametrize("reverse", BOTH)
@pytest.mark.parametrize("name", FAST)
def test_slow_and_fast_decays(name: str, reverse: bool, low: float, high: float) -> None:
    # Steps are near 1 here, so that exponents are the rates; the skip hides nothing.
    inputs = scan_inputs(2, 200, 24, 4, torch.float32, low=low, high=high)
    inputs = inputs._replace(skip=torch.zeros(24), dt_bias=torch.full((24,), 0.5), dt=0.1 * inputs.dt)
    run = partial(positional, reverse=reverse)
    want = outputs_and_gradients(run(naive.selective_scan), inputs, torch.float64)
    assert_all_close(outputs_and_gradients(run(IMPLEMENTATIONS[name]), inputs), want, 1e-5, NAMES)
    y, end = run(IMPLEMENTATIONS[name])(*inputs)
    assert_close(y, want[0][0], 1e-5, "y")
    assert_close(end, want[0][1], 1e-5, "h_end")


def test_kernel_keeps_a_slow_state() -> None:
    # A half-life of 10^5 over 10^5 positions: a factor rounded to float32 would be off by 0.2 % on its own.
    t = 100_000
    zeros = torch.zeros(1, t, 1)
    one = torch.ones(1)
    step = torch.log(torch.expm1(torch.ones((), dtype=torch.float64)))
    rate = torch.full((1, 1), -np.log(2.0) / t)
    inputs = (zeros, zeros, rate, zeros, zeros, one, step.float().view(1), torch.ones(1, 1, 1))
    _, end = cpu.selective_scan(*inputs, reverse=False)
    assert end.item() == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("reverse", BOTH)
@pytest.mark.parametrize("name", [*FAST, "naive"])
def test_extreme_steps(name: str, reverse: bool) -> None:
    # softplus is the exponential far to the left, and the identity far to the right; nothing may overflow between.
    steps = torch.tensor([-1e4, -200.0, -80.0, -30.0, -10.0, 0.0, 10.0, 19.9, 20.1, 80.0, 1e4])
    e = steps.numel()
    ones = torch.ones(1, 1, e)
    leaves = [
        ones, steps.view(1, 1, e), torch.full((e, 1), -1.0), torch.ones(1, 1, 1), torch.ones(1, 1, 1),
        torch.zeros(e), torch.zeros(e), torch.zeros(1, e, 1),
    ]  # fmt: skip
    leaves = [t.clone().requires_grad_() for t in leaves]
    y, _ = IMPLEMENTATIONS[name](*leaves, reverse=reverse)
    want = torch.nn.functional.softplus(steps.double())
    torch.testing.assert_close(y.view(e).double(), want, rtol=1e-6, atol=1e-37)
    gradients = torch.autograd.grad(y.sum(), leaves)
    assert all(torch.isfinite(g).all() for g in gradients)
    torch.testing.assert_close(gradients[1].view(e).double(), torch.sigmoid(steps.double()), rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("reverse", BOTH)
def test_blocked_is_exact_in_float64(reverse: bool) -> None:
    inputs = scan_inputs(2, 101, 8, 3, torch.float64)
    got = outputs_and_gradients(positional(blocked.selective_scan, reverse=reverse), inputs)
    want = outputs_and_gradients(positional(naive.selective_scan, reverse=reverse), inputs)
    assert_all_close(got, want, 1e-12, NAMES)


def run_in_chunks(
    function: Callable[..., tuple[Tensor, Tensor]], size: int, reverse: bool, *inputs: Tensor
) -> tuple[Tensor, Tensor]:
    """Run `function` chunk by chunk with the state carried, and put y together again."""
    x, dt, a, b, c, skip, dt_bias, state, *z = inputs
    pieces = []
    for lo, hi in chunks(x.shape[1], size, reverse=reverse):
        at = slice(lo, hi)
        gate = z[0][:, at] if z else None
        y, state = function(
            x[:, at], dt[:, at], a, b[:, at], c[:, at], skip, dt_bias, state, reverse=reverse, z=gate
        )
        pieces.append(y)
    return torch.cat(pieces[::-1] if reverse else pieces, 1), state


@pytest.mark.parametrize("reverse", BOTH)
@pytest.mark.parametrize("size", [1, 3, 7, 64, 70])
@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [("naive", torch.float64, 1e-13), ("cpu", torch.float32, 1e-5), ("blocked", torch.float32, 1e-5)],
)
def test_chunks_equal_whole(name: str, dtype: torch.dtype, tolerance: float, size: int, reverse: bool) -> None:
    inputs = scan_inputs(2, 70, 24, 4, dtype)
    function = IMPLEMENTATIONS[name]
    whole = outputs_and_gradients(positional(function, reverse=reverse), inputs)
    pieces = outputs_and_gradients(partial(run_in_chunks, function, size, reverse), inputs)
    assert_all_close(pieces, whole, tolerance, NAMES)


@pytest.mark.parametrize("reverse", BOTH)
@pytest.mark.parametrize("size", [1, 3, 7, 70])
@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks_of_the_kernel_are_the_same_bytes(dtype: torch.dtype, size: int, reverse: bool) -> None:
    inputs = scan_inputs(2, 70, 70, 16, dtype)
    y, end = run_in_chunks(cpu.run, size, reverse, *inputs)
    whole, whole_end = positional(cpu.run, reverse=reverse)(*inputs)
    assert torch.equal(y, whole) and torch.equal(end, whole_end)


@settings(max_examples=25, deadline=None)
@given(
    t=st.integers(0, 90),
    size=st.integers(1, 91),
    e=st.integers(1, 70),
    n=st.integers(1, 9),
    reverse=st.booleans(),
    gated=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_chunks_of_the_kernel_equal_the_definition(
    t: int, size: int, e: int, n: int, reverse: bool, gated: bool, seed: int
) -> None:
    inputs = some(scan_inputs(2, max(t, 1), e, n, torch.float32, seed=seed), gated)
    got = run_in_chunks(cpu.selective_scan, size, reverse, *inputs)
    want = positional(naive.selective_scan, reverse=reverse)(*(i.double() for i in inputs))
    for one, two in zip(got, want, strict=True):
        assert_close(one, two, 1e-5)


@pytest.mark.parametrize("edges", [(), (0,), (90,), (0, 1, 30, 64, 65, 90)])
@pytest.mark.parametrize("reverse", BOTH)
@pytest.mark.parametrize("name", ["naive", *FAST])
def test_states_at_boundaries_are_those_of_shorter_chunks(name: str, reverse: bool, edges: tuple[int, ...]) -> None:
    t = 90
    inputs = scan_inputs(2, t, 70, 5, torch.float32)
    record = Record(torch.tensor(edges, dtype=torch.int64), torch.full((2, len(edges), 70, 5), -7.0))
    with backend.use(name):
        want = positional(selective_scan, reverse=reverse)(*inputs)
        got = selective_scan(*inputs[:8], reverse=reverse, z=inputs.z, record=record)
        for index, edge in enumerate(edges):
            at = slice(edge, t) if reverse else slice(0, edge)
            x, dt, a, b, c, *rest = inputs[:8]
            _, end = selective_scan(x[:, at], dt[:, at], a, b[:, at], c[:, at], *rest, reverse=reverse)
            assert_close(record.h[:, index], end, 1e-6, f"state at {edge}")
    for one, two in zip(got, want, strict=True):
        assert_close(one, two, 1e-6)


@pytest.mark.parametrize("name", ["naive", *FAST])
def test_arguments_are_left_as_they_were(name: str) -> None:
    inputs = scan_inputs(2, 6, 8, 4, torch.float32)
    before = [t.clone() for t in inputs]
    with backend.use(name):
        positional(selective_scan, reverse=False)(*inputs)
    outputs_and_gradients(positional(IMPLEMENTATIONS[name], reverse=True), inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


@pytest.mark.parametrize("place", ["x", "dt", "a", "b", "c", "skip", "dt_bias", "h0", "z"])
@pytest.mark.parametrize("name", ["naive", *FAST])
def test_not_a_number_reaches_the_output(name: str, place: str) -> None:
    inputs = scan_inputs(1, 8, 8, 4, torch.float32)
    inputs = inputs._replace(**{place: getattr(inputs, place).clone()})
    getattr(inputs, place).view(-1)[-3] = torch.nan
    y, _ = positional(IMPLEMENTATIONS[name], reverse=False)(*inputs)
    assert torch.isnan(y).any() and not torch.isnan(y).all()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_threads_give_equal_bytes(dtype: torch.dtype, count: int) -> None:
    if count > numba.config.NUMBA_NUM_THREADS:
        pytest.skip(f"needs {count} threads; numba was started with {numba.config.NUMBA_NUM_THREADS}")
    inputs = scan_inputs(3, 70, 130, 4, dtype)
    with threads(count):
        runs = [outputs_and_gradients(positional(cpu.selective_scan, reverse=True), inputs) for _ in range(2)]
    for one, two in zip(runs[0][0] + runs[0][1], runs[1][0] + runs[1][1], strict=True):
        assert one.view(torch.uint8).equal(two.view(torch.uint8))


def test_layouts_and_dtypes_of_callers() -> None:
    inputs = scan_inputs(2, 6, 24, 4, torch.float32)
    y, end = positional(cpu.selective_scan, reverse=False)(*inputs)
    wide = ScanInputs(
        *(t.transpose(1, 2).contiguous().transpose(1, 2) for t in inputs[:2]),
        inputs.a.t().contiguous().t().double(),
        *(t.contiguous() for t in inputs[3:5]),
        *(t.double() for t in inputs[5:7]),
        *(t.transpose(1, 2).contiguous().transpose(1, 2) for t in inputs[7:]),
    )
    for function in (cpu.selective_scan, cpu.run):
        other_y, other_end = positional(function, reverse=False)(*wide)
        assert torch.equal(y, other_y) and torch.equal(end, other_end)


def test_gradient_of_the_state_alone_and_of_expanded_gradients() -> None:
    inputs = scan_inputs(2, 70, 8, 4, torch.float32)
    for loss in (lambda y, h: h.sum(), lambda y, h: y.sum(), lambda y, h: y[:, 2].sum() + h[0, 0, 0]):
        results = []
        for function, dtype in ((naive.selective_scan, torch.float64), (cpu.selective_scan, torch.float32)):
            leaves = [t.to(dtype).clone().requires_grad_() for t in inputs]
            value = loss(*positional(function, reverse=False)(*leaves))
            gradients = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
            results.append(gradients)
        for name, want, got in zip(NAMES, *results, strict=True):
            assert_close(got, want, 1e-5, name)


@pytest.mark.parametrize("gated", BOTH)
@pytest.mark.parametrize("dtype", DTYPES)
def test_out_receives_y_unless_autograd_is_at_work(dtype: torch.dtype, gated: bool) -> None:
    inputs = scan_inputs(2, 6, 24, 4, dtype)
    z = inputs.z if gated else None
    want, _ = selective_scan(*inputs[:8], reverse=False, z=z)
    out = torch.full_like(inputs.x, -7.0)
    y, _ = selective_scan(*inputs[:8], reverse=False, z=z, out=out)
    assert y.data_ptr() == out.data_ptr() and torch.equal(out, want)
    out = torch.full_like(inputs.x, -7.0)
    inputs = inputs._replace(a=inputs.a.clone().requires_grad_())
    y, _ = selective_scan(*inputs[:8], reverse=False, z=z, out=out)
    assert y.requires_grad and (out == -7.0).all() and torch.equal(y.detach(), want)


@pytest.mark.parametrize("name", backend.BACKENDS)
def test_backend_decides(name: str) -> None:
    inputs = scan_inputs(2, 20, 8, 4, torch.float32)
    with backend.use(name):
        y, end = positional(selective_scan, reverse=True)(*inputs)
    want_y, want_end = positional(IMPLEMENTATIONS[name], reverse=True)(*inputs)
    assert torch.equal(y, want_y) and torch.equal(end, want_end)


def test_float64_runs_the_definition() -> None:
    inputs = scan_inputs(2, 20, 8, 4, torch.float64)
    y, end = positional(selective_scan, reverse=True)(*inputs)
    assert y.dtype == end.dtype == torch.float64
    assert torch.equal(y, positional(naive.selective_scan, reverse=True)(*inputs)[0])
