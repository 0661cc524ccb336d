"""The adapters to kernels that others keep: trusted after a self-check, else replaced by plain torch."""

import logging
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType

import pytest
import torch
from helpers import (
    ConvInputs,
    RgLruInputs,
    assert_all_close,
    conv_inputs,
    hgrn_stand_in,
    one_thread,  # noqa: F401
    outputs_and_gradients,
    rglru_inputs,
)
from scan_inputs import NAMES, WRONG_SELECTIVE_SCANS, positional, scan_inputs, selective_scan_stand_in
from scan_inputs import causal_conv1d_and_silu_stand_in as causal_conv1d_stand_in
from torch import Tensor

from lrgenome.config import HawkConfig
from lrgenome.models.hawk import build
from lrgenome.ops import backend
from lrgenome.ops.conv import blocked as conv_blocked
from lrgenome.ops.conv import conv
from lrgenome.ops.conv import cuda as conv_cuda
from lrgenome.ops.conv import naive as conv_naive
from lrgenome.ops.rglru import blocked as rglru_blocked
from lrgenome.ops.rglru import cuda as rglru_cuda
from lrgenome.ops.rglru import naive as rglru_naive
from lrgenome.ops.rglru import rglru
from lrgenome.ops.selective_scan import blocked as selective_blocked
from lrgenome.ops.selective_scan import cuda as selective_cuda
from lrgenome.ops.selective_scan import naive as selective_naive
from lrgenome.ops.selective_scan import selective_scan
from lrgenome.ops.workspace import Workspace


@pytest.fixture(autouse=True)
def unchecked() -> Iterator[None]:
    """Forget what an earlier test found out about the kernels, and let no later one know."""
    for adapter in (rglru_cuda, conv_cuda, selective_cuda):
        adapter._checked_kernel.cache_clear()
    yield
    for adapter in (rglru_cuda, conv_cuda, selective_cuda):
        adapter._checked_kernel.cache_clear()


def wrong_final_state(**arguments: Tensor) -> tuple[Tensor, Tensor | None]:
    y, _ = hgrn_stand_in(**arguments)
    return y, y[:, -2]


def final_state_not_a_number(**arguments: Tensor) -> tuple[Tensor, Tensor | None]:
    y, end = hgrn_stand_in(**arguments)
    return y, torch.full_like(end, torch.nan)


def no_final_state(**arguments: Tensor) -> tuple[Tensor, Tensor | None]:
    return hgrn_stand_in(**arguments)[0], None


def scan_slightly_off(**arguments: Tensor) -> tuple[Tensor, Tensor | None]:
    y, end = hgrn_stand_in(**arguments)
    return y + 1e-3, end


def scan_without_initial_state(**arguments: Tensor) -> tuple[Tensor, Tensor | None]:
    return hgrn_stand_in(**{**arguments, "initial_state": None})


def scan_that_crashes(**arguments: Tensor) -> tuple[Tensor, Tensor | None]:
    raise RuntimeError("no kernel image is available")


def conv_slightly_off(*arguments: Tensor, **named: Tensor) -> Tensor:
    return causal_conv1d_stand_in(*arguments, **named) + 1e-3


def conv_without_initial_states(*arguments: Tensor, **named: Tensor) -> Tensor:
    states = torch.zeros_like(named["initial_states"])
    return causal_conv1d_stand_in(*arguments, **{**named, "initial_states": states})


def conv_of_flipped_taps(x: Tensor, weight: Tensor, bias: Tensor, **named: Tensor) -> Tensor:
    return causal_conv1d_stand_in(x, weight.flip(1), bias, **named)


def conv_not_a_number(*arguments: Tensor, **named: Tensor) -> Tensor:
    y = causal_conv1d_stand_in(*arguments, **named)
    y[0, 0, 0] = torch.nan
    return y


def conv_without_activation(*arguments: Tensor, **named: Tensor) -> Tensor:
    return causal_conv1d_stand_in(*arguments, **{**named, "activation": None})


def conv_that_crashes(*arguments: Tensor, **named: Tensor) -> Tensor:
    raise RuntimeError("no kernel image is available")


WRONG_SCANS = [
    wrong_final_state,
    final_state_not_a_number,
    no_final_state,
    scan_slightly_off,
    scan_without_initial_state,
    scan_that_crashes,
]
WRONG_CONVS = [
    conv_slightly_off,
    conv_without_initial_states,
    conv_of_flipped_taps,
    conv_not_a_number,
    conv_without_activation,
    conv_that_crashes,
]


def test_right_kernels_pass_their_self_check(caplog: pytest.LogCaptureFixture) -> None:
    assert rglru_cuda.self_check(hgrn_stand_in, "cpu")
    assert conv_cuda.self_check(causal_conv1d_stand_in, "cpu")
    assert selective_cuda.self_check(selective_scan_stand_in, "cpu")
    assert not caplog.records


@pytest.mark.parametrize("kernel", WRONG_SCANS)
def test_wrong_scan_falls_back(
    kernel: Callable[..., tuple[Tensor, Tensor | None]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(rglru_cuda, "_import_kernel", lambda: kernel)
    inputs = rglru_inputs(2, 30, 2, 8, torch.float32)
    want = outputs_and_gradients(partial(rglru_blocked.rglru, reverse=True, reset=True), inputs)
    with backend.use("cuda"):
        for _ in range(2):
            got = outputs_and_gradients(partial(rglru, reverse=True, reset=True), inputs)
    assert all(torch.equal(a, b) for a, b in zip(got[0] + got[1], want[0] + want[1], strict=True))
    # Said once for a device, not at every call.
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "fla" in record.message and "on cpu" in record.message and "plain torch" in record.message


@pytest.mark.parametrize("kernel", WRONG_CONVS)
def test_wrong_convolution_falls_back(
    kernel: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(conv_cuda, "_import_kernel", lambda: kernel)
    inputs = conv_inputs(2, 30, 16, torch.float32)
    want = outputs_and_gradients(partial(conv_blocked.conv, reverse=True), inputs)
    with backend.use("cuda"):
        for _ in range(2):
            got = outputs_and_gradients(partial(conv, reverse=True), inputs)
    assert all(torch.equal(a, b) for a, b in zip(got[0] + got[1], want[0] + want[1], strict=True))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "causal_conv1d" in record.message and "on cpu" in record.message and "plain torch" in record.message


@pytest.mark.parametrize("kernel", WRONG_SELECTIVE_SCANS)
def test_wrong_selective_scan_falls_back(
    kernel: Callable[..., tuple[Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(selective_cuda, "_import_kernel", lambda: kernel)
    inputs = scan_inputs(2, 30, 16, 4, torch.float32)
    want = positional(selective_blocked.selective_scan, reverse=True)(*inputs)
    with backend.use("cuda"):
        for _ in range(2):
            got = positional(selective_scan, reverse=True)(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "mamba_ssm" in record.message and "on cpu" in record.message and "plain torch" in record.message


def test_selective_scan_under_autograd_runs_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*arguments: Tensor, **named: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(arguments[0].shape[2])
        return selective_scan_stand_in(*arguments, **named)

    monkeypatch.setattr(selective_cuda, "_import_kernel", lambda: counted)
    run = positional(selective_cuda.selective_scan, reverse=True)
    inputs = scan_inputs(2, 30, 16, 4, torch.float32)
    got = outputs_and_gradients(run, inputs)
    assert not calls
    want = outputs_and_gradients(positional(selective_blocked.selective_scan, reverse=True), inputs)
    assert all(torch.equal(a, b) for a, b in zip(got[0] + got[1], want[0] + want[1], strict=True))
    for _ in range(2):
        run(*inputs)
    assert calls == [selective_cuda.CHECK_POSITIONS] * 2 + [30] * 2


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("state", ["zero", "fades", "lasts"])
def test_what_the_entering_state_adds(state: str, reverse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Made piece by piece, and no further than there is anything left of it.
    monkeypatch.setattr(selective_cuda, "PIECE", 16)
    inputs = scan_inputs(2, 80, 8, 4, torch.float32, low=1e-3 if state == "lasts" else 1e3, high=2e3)
    inputs = inputs._replace(h0=torch.zeros_like(inputs.h0)) if state == "zero" else inputs
    passes = []
    cumsum = torch.cumsum

    def counted(*arguments: Tensor) -> Tensor:
        passes.append(arguments)
        return cumsum(*arguments)

    monkeypatch.setattr(torch, "cumsum", counted)
    arguments, z = inputs[:8], inputs.z
    y, end = selective_cuda.scan_with(selective_scan_stand_in, *arguments, reverse=reverse, z=z)
    assert len(passes) == {"zero": 0, "fades": 1, "lasts": 5}[state]
    want = selective_naive.selective_scan(*(v.double() for v in arguments), reverse=reverse, z=z.double())
    torch.testing.assert_close(y.double(), want[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(end.double(), want[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("error", [ImportError("no module"), OSError("undefined symbol"), RuntimeError("no driver")])
def test_kernels_that_do_not_import_fall_back(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise error

    monkeypatch.setattr(rglru_cuda, "_import_kernel", broken)
    monkeypatch.setattr(conv_cuda, "_import_kernel", broken)
    monkeypatch.setattr(selective_cuda, "_import_kernel", broken)
    hawk_inputs, short_inputs = rglru_inputs(2, 9, 2, 8, torch.float32), conv_inputs(2, 9, 16, torch.float32)
    mamba_inputs = scan_inputs(2, 9, 16, 4, torch.float32)
    with backend.use("cuda"):
        for _ in range(2):
            y, end = rglru(*hawk_inputs, reverse=False, reset=True)
            v = conv(*short_inputs, reverse=False)
            s, _ = positional(selective_scan, reverse=False)(*mamba_inputs)
    want_y, want_end = rglru_blocked.rglru(*hawk_inputs, reverse=False, reset=True)
    assert torch.equal(y, want_y) and torch.equal(end, want_end)
    assert torch.equal(v, conv_blocked.conv(*short_inputs, reverse=False))
    assert torch.equal(s, positional(selective_blocked.selective_scan, reverse=False)(*mamba_inputs)[0])
    assert len(caplog.records) == 3
    assert all(str(error) in record.message and "not usable on cpu" in record.message for record in caplog.records)


def test_kernels_are_imported_from_where_they_live(monkeypatch: pytest.MonkeyPatch) -> None:
    hgrn, causal = ModuleType("fla.ops.hgrn"), ModuleType("causal_conv1d")
    mamba = ModuleType("mamba_ssm.ops.selective_scan_interface")
    hgrn.fused_recurrent_hgrn = hgrn_stand_in  # type: ignore[attr-defined]
    causal.causal_conv1d_fn = causal_conv1d_stand_in  # type: ignore[attr-defined]
    mamba.selective_scan_fn = selective_scan_stand_in  # type: ignore[attr-defined]
    for name, module in {
        "mamba_ssm": ModuleType("mamba_ssm"),
        "mamba_ssm.ops": ModuleType("mamba_ssm.ops"),
        "mamba_ssm.ops.selective_scan_interface": mamba,
        "fla": ModuleType("fla"),
        "fla.ops": ModuleType("fla.ops"),
        "fla.ops.hgrn": hgrn,
        "causal_conv1d": causal,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    assert rglru_cuda._import_kernel() is hgrn_stand_in
    assert conv_cuda._import_kernel() is causal_conv1d_stand_in
    assert selective_cuda._import_kernel() is selective_scan_stand_in


def test_a_kernel_is_checked_once_for_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(**arguments: Tensor) -> tuple[Tensor, Tensor | None]:
        calls.append(arguments["x"].shape[1])
        return hgrn_stand_in(**arguments)

    monkeypatch.setattr(rglru_cuda, "_import_kernel", lambda: counted)
    inputs = rglru_inputs(1, 5, 2, 8, torch.float32)
    with backend.use("cuda"):
        for _ in range(3):
            rglru(*inputs, reverse=False, reset=False)
    assert calls == [rglru_cuda.CHECK_POSITIONS] * 2 + [5] * 3


def test_final_state_is_float32_though_the_kernel_gives_the_dtype_of_its_input(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def watching(**arguments: Tensor) -> tuple[Tensor, Tensor | None]:
        seen.extend(arguments[name].dtype for name in ("x", "g", "initial_state"))
        return hgrn_stand_in(**arguments)

    monkeypatch.setattr(rglru_cuda, "_import_kernel", lambda: watching)
    y, end = rglru_cuda.rglru(*rglru_inputs(1, 5, 2, 8, torch.bfloat16), reverse=False, reset=True)
    assert y.dtype == torch.bfloat16 and end.dtype == torch.float32 and set(seen) == {torch.float32}


@pytest.mark.parametrize(("t", "e", "k"), [(0, 16, 4), (9, 12, 4), (9, 16, 5)])
def test_what_the_convolution_kernel_cannot_take_goes_to_plain_torch(
    t: int, e: int, k: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(conv_cuda, "_import_kernel", lambda: causal_conv1d_stand_in)
    inputs = conv_inputs(2, t, e, torch.float32, k=k)
    y = conv_cuda.conv(*inputs, reverse=False)
    assert torch.equal(y, conv_blocked.conv(*inputs, reverse=False)) and not caplog.records


@pytest.mark.parametrize("reverse", [False, True])
def test_a_block_runs_on_the_adapters(reverse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rglru_cuda, "_import_kernel", lambda: hgrn_stand_in)
    monkeypatch.setattr(conv_cuda, "_import_kernel", lambda: causal_conv1d_stand_in)
    block = build(HawkConfig(layers=1, width=16, recurrent_width=24, heads=3, mlp_width=32), seed=1).blocks[0]
    x = torch.randn(2, 11, 16, generator=torch.Generator().manual_seed(2))
    results = {}
    for name in ("cuda", "naive"):
        with backend.use(name):
            ws = Workspace(enabled=False)
            u = block.prepare(x, ws)
            y, state = block.scan(u, block.initial_state(2, x.device), weights=0, reverse=reverse, reset=True, ws=ws)
            results[name] = (block.combine(x, u, y, y, ws), *state)
    for got, want in zip(results["cuda"], results["naive"], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("name", ["cuda", "blocked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("t", [1, 3, 65, 1000])
@pytest.mark.parametrize("reverse", [False, True])
def test_scan_on_a_device(name: str, dtype: torch.dtype, t: int, reverse: bool) -> None:
    inputs = rglru_inputs(2, t, 3, 24, dtype)
    want = outputs_and_gradients(partial(rglru_naive.rglru, reverse=reverse, reset=True), inputs, torch.float64)
    with backend.use(name):
        got = outputs_and_gradients(partial(rglru, reverse=reverse, reset=True), [i.to("cuda") for i in inputs])
    assert all(o.is_cuda for o in got[0] + got[1])
    assert_all_close(got, want, 2e-5, RgLruInputs._fields)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("name", ["cuda", "blocked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("t", [1, 3, 65, 1000])
@pytest.mark.parametrize("reverse", [False, True])
def test_convolution_on_a_device(
    name: str, dtype: torch.dtype, t: int, reverse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Float32 convolutions of cuDNN may otherwise use TF32, which has ten bits.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    inputs = conv_inputs(2, t, 72, dtype)
    want = outputs_and_gradients(partial(conv_naive.conv, reverse=reverse), inputs, torch.float64)
    with backend.use(name):
        got = outputs_and_gradients(partial(conv, reverse=reverse), [i.to("cuda") for i in inputs])
    assert all(o.is_cuda for o in got[0] + got[1])
    assert_all_close(got, want, 2e-5, ConvInputs._fields)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("name", ["cuda", "blocked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("t", [1, 3, 65, 1500])
@pytest.mark.parametrize("reverse", [False, True])
def test_selective_scan_on_a_device(name: str, dtype: torch.dtype, t: int, reverse: bool) -> None:
    inputs = scan_inputs(2, t, 72, 16, dtype)
    want = outputs_and_gradients(positional(selective_naive.selective_scan, reverse=reverse), inputs, torch.float64)
    there = [i.to("cuda") for i in inputs]
    with backend.use(name):
        got = outputs_and_gradients(positional(selective_scan, reverse=reverse), there)
        untraced = positional(selective_scan, reverse=reverse)(*there)
    assert all(o.is_cuda for o in (*got[0], *got[1], *untraced))
    assert_all_close(got, want, 2e-5, NAMES)
    assert_all_close((list(untraced), []), (want[0], []), 2e-5, ())
