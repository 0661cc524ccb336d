"""The depthwise convolution: fast ones against the definition, and the definition against a second one."""

from collections.abc import Callable
from functools import partial

import numba
import numpy as np
import pytest
import torch
from helpers import (
    LENGTHS,
    ConvInputs,
    assert_all_close,
    chunks,
    conv_inputs,
    one_thread,  # noqa: F401
    outputs_and_gradients,
    threads,
)
from torch import Tensor

from lrgenome.ops import backend
from lrgenome.ops.conv import blocked, conv, cpu, naive, next_halo

BOTH = (False, True)
IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "naive": naive.conv,
    "cpu": cpu.conv,
    "blocked": blocked.conv,
}
FAST = ("cpu", "blocked")


def brute_force(inputs: ConvInputs, *, reverse: bool) -> np.ndarray:
    """Every product one at a time in numpy float64, positions counted from the chunk's first."""
    x, weight, bias, halo = (t.double().numpy() for t in inputs)
    b, t, e = x.shape
    k = weight.shape[0]
    y = np.zeros_like(x)
    for row in range(b):
        for position in range(t):
            for channel in range(e):
                total = bias[channel]
                for back in range(k):
                    # The last tap reads the position itself, the one before it the base that was met before.
                    place = position + back if reverse else position - back
                    if place < 0:
                        value = halo[row, k - 1 + place, channel]
                    elif place >= t:
                        value = halo[row, place - t, channel]
                    else:
                        value = x[row, place, channel]
                    total += weight[k - 1 - back, channel] * value
                y[row, position, channel] = total
    return y


@pytest.mark.parametrize("reverse", BOTH)
@pytest.mark.parametrize("k", [2, 3, 4, 5])
@pytest.mark.parametrize("t", [0, 1, 2, 9])
def test_definition_agrees_with_brute_force(t: int, k: int, reverse: bool) -> None:
    inputs = conv_inputs(2, t, 3, torch.float64, k=k)
    got = naive.conv(*inputs, reverse=reverse)
    np.testing.assert_allclose(got.numpy(), brute_force(inputs, reverse=reverse), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("reverse", BOTH)
@pytest.mark.parametrize("name", ["naive", "blocked"])
def test_gradcheck(name: str, reverse: bool) -> None:
    inputs = conv_inputs(2, 6, 3, torch.float64)
    torch.autograd.gradcheck(partial(IMPLEMENTATIONS[name], reverse=reverse), [t.requires_grad_() for t in inputs])


@pytest.mark.parametrize("reverse", BOTH)
@pytest.mark.parametrize(("t", "e"), [*((t, 72) for t in LENGTHS), (200, 64), (129, 128), (257, 8), (6, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", FAST)
def test_fast_agrees_with_definition(name: str, dtype: torch.dtype, t: int, e: int, reverse: bool) -> None:
    inputs = conv_inputs(2, t, e, dtype)
    got = outputs_and_gradients(partial(IMPLEMENTATIONS[name], reverse=reverse), inputs)
    assert [g.dtype for g in got[1]] == [i.dtype for i in inputs]
    want = outputs_and_gradients(partial(naive.conv, reverse=reverse), inputs, torch.float64)
    assert_all_close(got, want, 1e-5, ConvInputs._fields)


@pytest.mark.parametrize("reverse", BOTH)
@pytest.mark.parametrize(("t", "e"), [*((t, 24) for t in (0, 1, 3, 4, 65)), (257, 8), (129, 128), (6, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", FAST)
def test_silu_is_taken_of_the_sums(name: str, dtype: torch.dtype, t: int, e: int, reverse: bool) -> None:
    inputs = conv_inputs(2, t, e, dtype)

    def by_hand(*leaves: Tensor) -> Tensor:
        y = naive.conv(*leaves, reverse=reverse)
        return y / (1.0 + torch.exp(-y))

    want = outputs_and_gradients(by_hand, inputs, torch.float64)
    with backend.use(name):
        got = outputs_and_gradients(partial(conv, reverse=reverse, silu=True), inputs)
        out = torch.full_like(inputs.x, -7.0)
        y = conv(*inputs, reverse=reverse, silu=True, out=out)
    assert [g.dtype for g in got[1]] == [i.dtype for i in inputs]
    assert_all_close(got, want, 1e-5, ConvInputs._fields)
    assert torch.equal(y, got[0][0]) and (name != "cpu" or torch.equal(out, y))
    exact = outputs_and_gradients(partial(naive.conv, reverse=reverse, silu=True), inputs, torch.float64)
    assert_all_close(exact, want, 1e-12, ConvInputs._fields)


@pytest.mark.parametrize("reverse", BOTH)
@pytest.mark.parametrize("k", [2, 3, 5])
def test_other_widths(k: int, reverse: bool) -> None:
    inputs = conv_inputs(2, 9, 8, torch.float32, k=k)
    want = outputs_and_gradients(partial(naive.conv, reverse=reverse), inputs, torch.float64)
    for name in ("cpu", "blocked", "naive"):
        with backend.use(name):
            got = outputs_and_gradients(partial(conv, reverse=reverse), inputs)
        assert_all_close(got, want, 1e-5, ConvInputs._fields)


def run_in_chunks(function: Callable[..., Tensor], size: int, reverse: bool, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Run `function` chunk by chunk with the halo carried, and put y together again."""
    x, weight, bias, halo = inputs
    pieces = []
    for lo, hi in chunks(x.shape[1], size, reverse=reverse):
        pieces.append(function(x[:, lo:hi], weight, bias, halo, reverse=reverse))
        halo = next_halo(x[:, lo:hi], halo, reverse=reverse)
    return torch.cat(pieces[::-1] if reverse else pieces, 1), halo


def run_whole(function: Callable[..., Tensor], reverse: bool, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Run `function` once; returns y and the halo after it."""
    x, _, _, halo = inputs
    return function(*inputs, reverse=reverse), next_halo(x, halo, reverse=reverse)


@pytest.mark.parametrize("reverse", BOTH)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 65])
@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [("naive", torch.float64, 1e-14), ("cpu", torch.float32, 2e-6), ("blocked", torch.float32, 2e-6)],
)
def test_chunks_equal_whole(name: str, dtype: torch.dtype, tolerance: float, size: int, reverse: bool) -> None:
    inputs = conv_inputs(2, 65, 24, dtype)
    whole = outputs_and_gradients(partial(run_whole, IMPLEMENTATIONS[name], reverse), inputs)
    pieces = outputs_and_gradients(partial(run_in_chunks, IMPLEMENTATIONS[name], size, reverse), inputs)
    assert torch.equal(pieces[0][1], whole[0][1])
    assert_all_close(pieces, whole, tolerance, ConvInputs._fields)


def test_halo_keeps_genomic_order() -> None:
    halo = torch.tensor([-3.0, -2.0, -1.0]).view(1, 3, 1)
    after = torch.tensor([10.0, 11.0, 12.0]).view(1, 3, 1)
    expected = {
        0: ([-3, -2, -1], [10, 11, 12]),
        1: ([-2, -1, 0], [0, 10, 11]),
        2: ([-1, 0, 1], [0, 1, 10]),
        3: ([0, 1, 2], [0, 1, 2]),
        7: ([4, 5, 6], [0, 1, 2]),
    }
    for t, (forward, backward) in expected.items():
        x = torch.arange(float(t)).view(1, t, 1)
        assert next_halo(x, halo, reverse=False).flatten().tolist() == forward
        assert next_halo(x, after, reverse=True).flatten().tolist() == backward


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_threads_give_equal_bytes(dtype: torch.dtype, count: int) -> None:
    if count > numba.config.NUMBA_NUM_THREADS:
        pytest.skip(f"needs {count} threads; numba was started with {numba.config.NUMBA_NUM_THREADS}")
    inputs = conv_inputs(3, 300, 72, dtype)
    with threads(count):
        runs = [outputs_and_gradients(partial(cpu.conv, reverse=True), inputs) for _ in range(2)]
    for one, two in zip(runs[0][0] + runs[0][1], runs[1][0] + runs[1][1], strict=True):
        assert one.view(torch.uint8).equal(two.view(torch.uint8))


@pytest.mark.parametrize("name", ["naive", *FAST])
def test_arguments_are_left_as_they_were(name: str) -> None:
    inputs = conv_inputs(2, 6, 8, torch.float32)
    before = [t.clone() for t in inputs]
    outputs_and_gradients(partial(IMPLEMENTATIONS[name], reverse=True), inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


def test_layouts_and_dtypes_of_callers() -> None:
    inputs = conv_inputs(2, 6, 8, torch.float32)
    other = ConvInputs(
        inputs.x.transpose(1, 2).contiguous().transpose(1, 2),
        inputs.weight.t().contiguous().t().double(),
        inputs.bias.double(),
        inputs.halo.transpose(1, 2).contiguous().transpose(1, 2),
    )
    assert torch.equal(cpu.conv(*inputs, reverse=False), cpu.conv(*other, reverse=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_out_receives_y_unless_autograd_is_at_work(dtype: torch.dtype) -> None:
    inputs = conv_inputs(2, 6, 8, dtype)
    want = conv(*inputs, reverse=False)
    out = torch.full_like(inputs.x, -7.0)
    y = conv(*inputs, reverse=False, out=out)
    assert y.data_ptr() == out.data_ptr() and torch.equal(out, want)
    out = torch.full_like(inputs.x, -7.0)
    y = conv(*inputs._replace(bias=inputs.bias.clone().requires_grad_()), reverse=False, out=out)
    assert y.requires_grad and (out == -7.0).all() and torch.equal(y.detach(), want)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_backend_decides(name: str) -> None:
    inputs = conv_inputs(2, 20, 8, torch.float32)
    with backend.use(name):
        y = conv(*inputs, reverse=True)
    assert y.is_contiguous() and torch.equal(y, IMPLEMENTATIONS[name](*inputs, reverse=True))


def test_float64_runs_the_definition() -> None:
    inputs = conv_inputs(2, 20, 8, torch.float64)
    y = conv(*inputs, reverse=True)
    assert y.dtype == torch.float64 and torch.equal(y, naive.conv(*inputs, reverse=True))
