"""The Triton kernels of the RG-LRU and the convolution against their definitions, in Triton's interpreter."""

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import pytest
import torch
from helpers import (
    ConvInputs,
    RgLruInputs,
    assert_all_close,
    assert_close,
    check_bounded_gradient_where_nothing_decays,
    chunks,
    conv_inputs,
    interpreted,
    one_thread,  # noqa: F401
    outputs_and_gradients,
    rglru_inputs,
)
from torch import Tensor

from lrgenome.config import HawkConfig
from lrgenome.models.hawk import build
from lrgenome.ops import backend, gating, norm, triton_rows
from lrgenome.ops.conv import conv, next_halo, triton_conv
from lrgenome.ops.conv import cuda as conv_cuda
from lrgenome.ops.conv import naive as naive_conv
from lrgenome.ops.record import Record
from lrgenome.ops.rglru import cuda as rglru_cuda
from lrgenome.ops.rglru import naive, rglru, triton_scan
from lrgenome.ops.workspace import Workspace

pytestmark = interpreted

BOTH = (False, True)
DTYPES = (torch.float32, torch.bfloat16)
# The interpreter cuts float32 off where a GPU rounds it to the nearest bfloat16.
ROUNDING = 2.0**-7
close = partial(assert_close, rounding=ROUNDING)
all_close = partial(assert_all_close, rounding=ROUNDING)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut few positions and channels into several tiles, since the interpreter takes long for each of them."""
    for module, tile in ((triton_scan, 8), (triton_conv, 16)):
        monkeypatch.setattr(module, "TILE", tile)
        monkeypatch.setattr(module, "CHANNELS", 4)


@cache
def exact(t: int, h: int, w: int, dtype: torch.dtype, reverse: bool, reset: bool) -> tuple[list[Tensor], list[Tensor]]:
    inputs = rglru_inputs(2, t, h, w, dtype)
    return outputs_and_gradients(partial(naive.rglru, reverse=reverse, reset=reset), inputs, torch.float64)


@pytest.mark.parametrize(
    ("dtype", "tile", "t", "h", "w", "reset"),
    [
        *(
            (torch.float32, 8, *shape, reset)
            for shape in ((1, 1, 3), (3, 1, 3), (8, 2, 3), (20, 1, 5))
            for reset in BOTH
        ),
        # More tiles than the states between them are made of at once.
        *((torch.float32, 2, 9, 1, 3, reset) for reset in BOTH),
        (torch.bfloat16, 8, 3, 2, 3, True),
        (torch.bfloat16, 8, 20, 1, 5, False),
    ],
)
@pytest.mark.parametrize("reverse", BOTH)
def test_scan_agrees_with_definition(
    dtype: torch.dtype, tile: int, t: int, h: int, w: int, reset: bool, reverse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_scan, "TILE", tile)
    inputs = rglru_inputs(2, t, h, w, dtype)
    got = outputs_and_gradients(partial(triton_scan.rglru, reverse=reverse, reset=reset), inputs)
    assert [o.dtype for o in got[0]] == [dtype, torch.float32]
    assert [g.dtype for g in got[1]] == [i.dtype for i in inputs]
    all_close(got, exact(t, h, w, dtype, reverse, reset), 1e-5, RgLruInputs._fields)


@pytest.mark.parametrize(("low", "high"), [(1e-6, 1.1e-6), (1e-3, 1e-2), (5.0, 40.0)])
@pytest.mark.parametrize("reverse", BOTH)
def test_slow_and_fast_decays(reverse: bool, low: float, high: float) -> None:
    inputs = rglru_inputs(1, 20, 1, 4, torch.float32, low=low, high=high)
    flags = {"reverse": reverse, "reset": True}
    got = outputs_and_gradients(partial(triton_scan.rglru, **flags), inputs)
    want = outputs_and_gradients(partial(naive.rglru, **flags), inputs, torch.float64)
    all_close(got, want, 1e-5, RgLruInputs._fields)


def test_input_factor_is_exact_for_long_half_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_scan, "TILE", 1)
    monkeypatch.setattr(triton_scan, "CHANNELS", 64)
    half_life = np.logspace(0.0, 9.0, 64)
    # Recurrence gates are 1/2, so log a = -decay / 2; input gates are 1, and y is the factor itself.
    e = half_life.size
    decay = torch.from_numpy(2.0 * np.log(2.0) / half_life).float()
    gates = torch.cat([torch.full((1, 1, e), 60.0), torch.zeros(1, 1, e)], -1)
    y, _ = triton_scan.rglru(
        torch.ones(1, 1, e), gates, torch.zeros(2, e), decay, torch.zeros(1, e), reverse=False, reset=False
    )
    want = np.sqrt(-np.expm1(-decay.double().numpy()))
    np.testing.assert_allclose(y[0, 0].numpy(), want, rtol=3e-7)


def test_gradient_is_bounded_where_nothing_decays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_scan, "CHANNELS", 8)
    check_bounded_gradient_where_nothing_decays(triton_scan.rglru)


@pytest.mark.parametrize("reverse", BOTH)
@pytest.mark.parametrize(
    "loss", [lambda y, h: h.sum(), lambda y, h: y.sum(), lambda y, h: y[:, 2].sum() + h[0, 0]], ids=["h", "y", "some"]
)
def test_gradient_of_the_state_alone_and_of_expanded_gradients(
    loss: Callable[[Tensor, Tensor], Tensor], reverse: bool
) -> None:
    inputs, results = rglru_inputs(2, 10, 1, 3, torch.float32), []
    for function, dtype in ((naive.rglru, torch.float64), (triton_scan.rglru, torch.float32)):
        leaves = [t.to(dtype).clone().requires_grad_() for t in inputs]
        results.append(torch.autograd.grad(loss(*function(*leaves, reverse=reverse, reset=False)), leaves))
    for name, want, got in zip(RgLruInputs._fields, *results, strict=True):
        close(got, want, 1e-5, name)


def scan_in_chunks(size: int, reverse: bool, reset: bool, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Run the scan chunk by chunk with the state carried, and put y together again."""
    x, gates, gate_bias, decay, state = inputs
    b, t, _ = x.shape
    h, _, w2 = gates.shape
    per_position, pieces = gates.view(h, b, t, w2), []
    for index, (lo, hi) in enumerate(chunks(t, size, reverse=reverse)):
        piece = per_position[:, :, lo:hi].reshape(h, b * (hi - lo), w2)
        y, state = triton_scan.rglru(
            x[:, lo:hi], piece, gate_bias, decay, state, reverse=reverse, reset=reset and index == 0
        )
        pieces.append(y)
    return torch.cat(pieces[::-1] if reverse else pieces, 1), state


@pytest.mark.parametrize("reset", BOTH)
@pytest.mark.parametrize("reverse", BOTH)
@pytest.mark.parametrize("size", [1, 3])
def test_chunks_of_the_scan_equal_the_whole(
    size: int, reverse: bool, reset: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_scan, "TILE", 2)
    inputs = rglru_inputs(2, 5, 1, 3, torch.float32)
    got = outputs_and_gradients(partial(scan_in_chunks, size, reverse, reset), inputs)
    all_close(got, exact(5, 1, 3, torch.float32, reverse, reset), 1e-5, RgLruInputs._fields)


@pytest.mark.parametrize("given", BOTH)
@pytest.mark.parametrize("reverse", BOTH)
@pytest.mark.parametrize("dtype", DTYPES)
def test_states_at_boundaries_are_float32(dtype: torch.dtype, reverse: bool, given: bool) -> None:
    inputs, at = rglru_inputs(2, 20, 2, 3, dtype), torch.tensor([0, 1, 8, 9, 19, 20])
    want = Record(at, torch.empty(2, len(at), 6, dtype=torch.float64))
    y, end = naive.rglru(*(i.double() for i in inputs), reverse=reverse, reset=False, record=want)
    got = Record(at, torch.full((2, len(at), 6), -7.0))
    out = torch.full_like(inputs.x, -7.0) if given else None
    got_y, got_end = triton_scan.rglru(*inputs, reverse=reverse, reset=False, out=out, record=got)
    assert got_y.dtype == dtype and (out is None or got_y.data_ptr() == out.data_ptr())
    close(got_y, y, 1e-5, "y")
    close(got_end, end, 1e-5, "h_end")
    close(got.h, want.h, 1e-5, "states at boundaries")


@pytest.mark.parametrize("dtype", DTYPES)
def test_out_receives_states_unless_autograd_is_at_work(dtype: torch.dtype) -> None:
    inputs = rglru_inputs(2, 6, 1, 3, dtype)
    want, want_end = triton_scan.rglru(*inputs, reverse=False, reset=True)
    out = torch.full_like(inputs.x, -7.0)
    y, end = triton_scan.rglru(*inputs, reverse=False, reset=True, out=out)
    assert y.data_ptr() == out.data_ptr() and torch.equal(out, want) and torch.equal(end, want_end)
    out = torch.full_like(inputs.x, -7.0)
    inputs = inputs._replace(decay=inputs.decay.clone().requires_grad_())
    y, _ = triton_scan.rglru(*inputs, reverse=False, reset=True, out=out)
    assert y.requires_grad and (out == -7.0).all() and torch.equal(y.detach(), want)


def test_reset_ignores_the_state() -> None:
    inputs = rglru_inputs(2, 5, 1, 3, torch.float32)
    for reverse in BOTH:
        y, end = triton_scan.rglru(*inputs, reverse=reverse, reset=True)
        other = triton_scan.rglru(*inputs._replace(h0=inputs.h0 + 100.0), reverse=reverse, reset=True)
        assert torch.equal(y, other[0]) and torch.equal(end, other[1])


def test_scan_takes_layouts_and_dtypes_of_callers_and_leaves_them_as_they_were() -> None:
    inputs = rglru_inputs(2, 6, 2, 3, torch.float32)
    inputs = inputs._replace(h0=inputs.h0[:1].expand(2, -1))
    function = partial(triton_scan.rglru, reverse=False, reset=False)
    want = outputs_and_gradients(function, [i.contiguous() for i in inputs])
    other = RgLruInputs(
        inputs.x.transpose(1, 2).contiguous().transpose(1, 2),
        inputs.gates.transpose(1, 2).contiguous().transpose(1, 2),
        inputs.gate_bias.double(),
        inputs.decay.double(),
        inputs.h0,
    )
    before = [i.clone() for i in other]
    leaves = [i.detach().requires_grad_() for i in other]
    y, end = function(*leaves)
    assert torch.equal(y, want[0][0]) and torch.equal(end, want[0][1])
    # Gradients by the same loss as those wanted.
    got = outputs_and_gradients(lambda *_: function(*leaves), leaves)
    assert all(torch.equal(a, b) for a, b in zip(got[0], want[0], strict=True))
    got = outputs_and_gradients(function, other)
    assert [g.dtype for g in got[1]] == [i.dtype for i in other]
    assert all(torch.equal(a.float(), b) for a, b in zip(got[1], want[1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(other, before, strict=True))


@pytest.mark.parametrize("place", ["x", "gates", "h0"])
def test_not_a_number_reaches_the_states(place: str) -> None:
    inputs = rglru_inputs(1, 8, 1, 4, torch.float32)
    getattr(inputs, place).view(-1)[3] = torch.nan
    y, end = triton_scan.rglru(*inputs, reverse=False, reset=False)
    assert torch.isnan(y).any() and torch.isnan(end).any() and not torch.isnan(y).all()


@pytest.mark.parametrize("reverse", BOTH)
@pytest.mark.parametrize(
    ("dtype", "k", "t", "silu"),
    [
        *((torch.float32, k, t, False) for k in (2, 3) for t in (1, 3, 8)),
        *((torch.float32, 4, t, silu) for t in (1, 2, 3, 20) for silu in BOTH),
        *((torch.bfloat16, 4, t, silu) for t in (2, 20) for silu in BOTH),
    ],
)
def test_convolution_agrees_with_definition(dtype: torch.dtype, k: int, t: int, silu: bool, reverse: bool) -> None:
    inputs = conv_inputs(2, t, 6, dtype, k=k)
    got = outputs_and_gradients(partial(triton_conv.conv, reverse=reverse, silu=silu), inputs)
    want = outputs_and_gradients(partial(naive_conv.conv, reverse=reverse, silu=silu), inputs, torch.float64)
    assert got[0][0].dtype == dtype and [g.dtype for g in got[1]] == [i.dtype for i in inputs]
    all_close(got, want, 1e-5, ConvInputs._fields)
    out = torch.full_like(inputs.x, -7.0)
    y = triton_conv.conv(*inputs, reverse=reverse, silu=silu, out=out)
    assert y.data_ptr() == out.data_ptr()
    close(out, want[0][0], 1e-5, "without autograd")


def conv_in_chunks(size: int, reverse: bool, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Run the convolution chunk by chunk with the halo carried, and put y together again."""
    x, weight, bias, halo = inputs
    pieces = []
    for lo, hi in chunks(x.shape[1], size, reverse=reverse):
        pieces.append(triton_conv.conv(x[:, lo:hi], weight, bias, halo, reverse=reverse))
        halo = next_halo(x[:, lo:hi], halo, reverse=reverse)
    return torch.cat(pieces[::-1] if reverse else pieces, 1), halo


@pytest.mark.parametrize("reverse", BOTH)
@pytest.mark.parametrize("size", [1, 2, 7])
def test_chunks_of_the_convolution_equal_the_whole(size: int, reverse: bool) -> None:
    def whole(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        return naive_conv.conv(*leaves, reverse=reverse), next_halo(leaves[0], leaves[3], reverse=reverse)

    inputs = conv_inputs(2, 9, 3, torch.float32)
    want = outputs_and_gradients(whole, inputs, torch.float64)
    all_close(outputs_and_gradients(partial(conv_in_chunks, size, reverse), inputs), want, 1e-5, ConvInputs._fields)


def test_out_receives_the_convolution_unless_autograd_is_at_work() -> None:
    inputs = conv_inputs(2, 6, 6, torch.float32)
    out = torch.full_like(inputs.x, -7.0)
    leaf = inputs._replace(bias=inputs.bias.clone().requires_grad_())
    y = triton_conv.conv(*leaf, reverse=False, out=out)
    assert y.requires_grad and (out == -7.0).all()
    assert torch.equal(y.detach(), triton_conv.conv(*inputs, reverse=False))


def test_convolution_takes_layouts_and_dtypes_of_callers() -> None:
    inputs = conv_inputs(2, 6, 6, torch.float32)
    inputs = inputs._replace(halo=inputs.halo[:1].expand(2, -1, -1))
    other = ConvInputs(
        inputs.x.transpose(1, 2).contiguous().transpose(1, 2),
        inputs.weight.t().contiguous().t().double(),
        inputs.bias.double(),
        inputs.halo,
    )
    function = partial(triton_conv.conv, reverse=True)
    want = outputs_and_gradients(function, [i.contiguous() for i in inputs])
    # An expanded gradient comes in.
    leaves = [i.clone().requires_grad_() for i in inputs]
    by_sum = torch.autograd.grad(function(*leaves).sum(), leaves)
    exact_leaves = [i.double().requires_grad_() for i in inputs]
    exact_sum = torch.autograd.grad(naive_conv.conv(*exact_leaves, reverse=True).sum(), exact_leaves)
    assert torch.equal(function(*other), want[0][0])
    got = outputs_and_gradients(function, other)
    assert [g.dtype for g in got[1]] == [i.dtype for i in other]
    assert all(torch.equal(a.float(), b) for a, b in zip(got[1], want[1], strict=True))
    all_close(([], list(by_sum)), ([], list(exact_sum)), 1e-5, ConvInputs._fields)


def test_what_the_kernels_cannot_take_goes_to_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, device: str) -> None:
        raise AssertionError("asked for kernels")

    for adapter in (conv_cuda, rglru_cuda):
        monkeypatch.setattr(adapter, "trusted", refuse)
    with backend.use("cuda"):
        for t, k in ((0, 4), (5, 1)):
            inputs = conv_inputs(2, t, 6, torch.float32, k=k)
            got = conv(*inputs, reverse=False)
            close(got, naive_conv.conv(*(i.double() for i in inputs), reverse=False), 1e-6)
        empty = rglru_inputs(2, 0, 2, 3, torch.float32)
        y, end = rglru(*empty, reverse=False, reset=False)
        assert y.shape == (2, 0, 6) and torch.equal(end, empty.h0)


@pytest.mark.parametrize("reverse", BOTH)
def test_a_block_runs_on_the_kernels(reverse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {module.__name__: module for module in (triton_scan, triton_conv, triton_rows)}
    asked = set()

    def unchecked(name: str, device: str) -> object:
        asked.add(name)
        assert device == "cpu"
        return modules[name]

    for module in (conv_cuda, rglru_cuda, gating, norm):
        monkeypatch.setattr(module, "trusted", unchecked)
    block = build(HawkConfig(layers=1, width=6, recurrent_width=6, heads=2, mlp_width=10), seed=1).blocks[0]
    x = torch.randn(2, 11, 6, generator=torch.Generator().manual_seed(2))
    results = {}
    for name in ("cuda", "naive"):
        with backend.use(name):
            ws, rows = Workspace(enabled=False), x.clone().requires_grad_()
            u = block.prepare(rows, ws)
            y, state = block.scan(u, block.initial_state(2, x.device), weights=0, reverse=reverse, reset=True, ws=ws)
            result = block.combine(rows, u, y, y, ws)
            leaves = {"x": rows, **dict(block.named_parameters(prefix="", recurse=True))}
            gradients = torch.autograd.grad(result.sin().sum(), leaves.values(), allow_unused=True)
            results[name] = (result, *state, *(g for g in gradients if g is not None))
    assert asked == modules.keys() and len(results["cuda"]) > 10
    for got, want in zip(results["cuda"], results["naive"], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
