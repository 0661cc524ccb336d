"""What the tests of the ops share: inputs, losses over every output, comparisons."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numba
import pytest
import torch
from torch import Tensor

from lrgenome.ops.jit import set_threads

LENGTHS = (0, 1, 2, 3, 4, 5, 63, 64, 65, 200)
SHAPES = (*((t, 3, 24) for t in LENGTHS), (1, 1, 64), (65, 1, 64), (65, 2, 128), (5, 2, 7), (65, 2, 7))
"""(positions, heads, head width); 24 and 7 are no multiples of the kernels' 64 lanes, 128 is two of them."""
ROUNDING = 2.0**-8
"""Of a number to bfloat16, relative, to the nearest."""

interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="on a machine with a GPU, Triton kernels run there"
)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with `count` threads, then with as many as before."""
    before = torch.get_num_threads(), numba.get_num_threads()
    set_threads(count)
    try:
        yield
    finally:
        numba.set_num_threads(before[1])
        torch.set_num_threads(before[0])


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread in a module that imports this: tensors are tiny, idle threads of a busy machine spin."""
    with threads(1):
        yield


class RgLruInputs(NamedTuple):
    """Arguments of `rglru`, in order."""

    x: Tensor
    gates: Tensor
    gate_bias: Tensor
    decay: Tensor
    h0: Tensor


class ConvInputs(NamedTuple):
    """Arguments of `conv`, in order."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    halo: Tensor


def rglru_inputs(
    b: int,
    t: int,
    h: int,
    w: int,
    dtype: torch.dtype,
    *,
    seed: int = 0,
    low: float = 1e-6,
    high: float = 20.0,
) -> RgLruInputs:
    """Draw inputs in `dtype` (the rest at least float32), decays log-uniform from `low` to `high`."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    e = h * w
    decay = low * (high / low) ** torch.linspace(0.0, 1.0, e)[torch.randperm(e, generator=generator)]
    return RgLruInputs(
        draw(b, t, e).to(dtype),
        draw(h, b * t, 2 * w).to(dtype),
        (0.5 * draw(2, e)).to(wide),
        decay.to(wide),
        draw(b, e).to(wide),
    )


def conv_inputs(b: int, t: int, e: int, dtype: torch.dtype, *, k: int = 4, seed: int = 0) -> ConvInputs:
    """Draw inputs in `dtype`, weight and bias at least float32."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, weight, bias, halo = (
        torch.randn(*shape, generator=generator) for shape in ((b, t, e), (k, e), (e,), (b, k - 1, e))
    )
    return ConvInputs(x.to(dtype), weight.to(wide), bias.to(wide), halo.to(dtype))


def norm_inputs(n: int, d: int, wide: torch.dtype, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows, what is added to them, and a scale; sums are exact in bfloat16, so that none is rounded."""
    generator = torch.Generator().manual_seed(0)
    x, delta = (torch.randint(-63, 64, (n, d), generator=generator) / 16.0 for _ in range(2))
    return x.to(wide), delta.to(dtype), 0.3 * torch.randn(d, generator=generator)


def outputs_and_gradients(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    dtype: torch.dtype | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Run `function` on copies of `inputs` and differentiate a random linear loss of all its outputs.

    With `dtype` the copies are converted first: float64 gives the exact answer for the same rounded numbers.
    """
    leaves = [t.detach().to(t.dtype if dtype is None else dtype).clone().requires_grad_() for t in inputs]
    result = function(*leaves)
    outputs = list(result) if isinstance(result, tuple) else [result]
    generator = torch.Generator().manual_seed(1)
    loss = torch.zeros((), dtype=torch.float64)
    for output in outputs:
        # Exact in bfloat16, so that no dtype rounds the gradient that comes in.
        weight = torch.randn(output.shape, generator=generator).bfloat16()
        loss = loss + (output * weight.to(output)).double().cpu().sum()
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [o.detach() for o in outputs], [
        torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, gradients, strict=True)
    ]


def assert_close(got: Tensor, want: Tensor, tolerance: float, what: str = "", *, rounding: float = ROUNDING) -> None:
    """Compare with the exact `want`: within `tolerance` of its largest value; bfloat16 may be rounded besides."""
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    if not want.numel():
        return
    rounding = rounding if got.dtype == torch.bfloat16 else 0.0
    want = want.double().cpu()
    error = (got.double().cpu() - want).abs()
    allowed = 1.01 * rounding * want.abs() + tolerance * want.abs().max() + 1e-30
    excess = (error - allowed).max().item()
    assert excess <= 0.0, f"{what}: {excess:.3g} more than allowed; largest error {error.max():.3g}"


def assert_all_close(
    got: tuple[list[Tensor], list[Tensor]],
    want: tuple[list[Tensor], list[Tensor]],
    tolerance: float,
    names: Sequence[str],
    *,
    rounding: float = ROUNDING,
) -> None:
    """Compare the results of `outputs_and_gradients`; `names` are those of the inputs."""
    for index, (a, b) in enumerate(zip(got[0], want[0], strict=True)):
        assert_close(a, b, tolerance, f"output {index}", rounding=rounding)
    for name, a, b in zip(names, got[1], want[1], strict=True):
        assert_close(a, b, tolerance, f"gradient of {name}", rounding=rounding)


def chunks(t: int, size: int, *, reverse: bool) -> list[tuple[int, int]]:
    """Half-open pieces of [0, t) in the order in which a direction meets them; the last may be ragged."""
    if reverse:
        return [(max(0, hi - size), hi) for hi in range(t, 0, -size)]
    return [(lo, min(t, lo + size)) for lo in range(0, t, size)]


def check_extreme_gates(fast: Callable[..., Tensor], naive: Callable[..., Tensor], rtol: float) -> tuple[Tensor, ...]:
    """Compare a gated sum of two branches with its definition at gates of up to 1e9; return (gate, y, its slope)."""
    gate = torch.tensor([[-1e9, -1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4, 1e9]]).requires_grad_()
    one, zero = torch.ones_like(gate.detach()), torch.zeros_like(gate.detach())
    y = fast(gate, one, zero)
    (slope,) = torch.autograd.grad(y.sum(), gate)
    ramp = gate.detach().double().requires_grad_()
    want = naive(ramp, one.double(), zero.double())
    (want_slope,) = torch.autograd.grad(want.sum(), ramp)
    torch.testing.assert_close(y.detach().double(), want.detach(), rtol=rtol, atol=1e-20)
    torch.testing.assert_close(slope.double(), want_slope, rtol=rtol, atol=1e-11)
    return gate.detach(), y.detach(), slope


def check_nan_stays_in_place(function: Callable[..., Tensor], count: int) -> None:
    """Put NaN at one place of each of `count` inputs of 3 rows of 8: only the result's same place is to be NaN."""
    for place in range(count):
        inputs = [torch.randn(3, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]
        inputs[place][1, 5] = torch.nan
        result = function(*inputs)
        bad = torch.isnan(result)
        assert bad[1, 5 % result.shape[1]] and bad.sum() == 1


def check_nan_stays_in_row(norm: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    x[1, 5] = torch.nan
    bad = torch.isnan(norm(x))
    assert bad[1].all() and not bad[0].any() and not bad[2].any()


def check_norm_of_zeros_and_large_numbers(norm: Callable[[Tensor], Tensor]) -> None:
    x = torch.stack([torch.zeros(24), torch.full((24,), 1e15), torch.full((24,), 1e-15)]).requires_grad_()
    y = norm(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.isfinite(gradient).all()
    torch.testing.assert_close(y[:, 0], torch.tensor([0.0, 1.0, 1e-12]), rtol=1e-5, atol=0.0)


def check_bounded_gradient_where_nothing_decays(rglru: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """One position from a zero state: y = x i m, so d y / d decay = x i (slope of m) 2 a^2 r by hand."""
    decay = torch.tensor([0.0, 1e-30, 1e-14, 1e-9, 1e-7, 1e-6, 1e-4, 1e-2])
    e = decay.numel()
    x = torch.full((1, 1, e), 3.0)
    inputs = RgLruInputs(x, torch.zeros(1, 1, 2 * e), torch.zeros(2, e), decay, torch.zeros(1, e))
    leaves = [t.clone().requires_grad_() for t in inputs]
    y, _ = rglru(*leaves, reverse=False, reset=False)
    gradients = torch.autograd.grad(y.sum(), leaves)
    assert all(torch.isfinite(g).all() for g in gradients)
    a_squared = torch.exp(-decay.double())
    slope = (0.5 / torch.sqrt(-torch.expm1(-decay.double()))).clamp(max=1000.0)
    assert slope[:4].tolist() == [1000.0] * 4 and slope[5] < 1000.0
    torch.testing.assert_close(gradients[3].double(), 3.0 * 0.5 * slope * 2.0 * a_squared * 0.5, rtol=1e-5, atol=0.0)
