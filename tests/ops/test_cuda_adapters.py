"""The adapter to a kernel that others keep, trusted after a self-check; and all kernels for a GPU, on one."""

import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from types import ModuleType

import pytest
import torch
from helpers import (
    ConvInputs,
    RgLruInputs,
    assert_all_close,
    assert_close,
    conv_inputs,
    norm_inputs,
    one_thread,  # noqa: F401
    outputs_and_gradients,
    rglru_inputs,
)
from scan_inputs import NAMES, WRONG_SELECTIVE_SCANS, positional, scan_inputs, selective_scan_stand_in
from torch import Tensor

from lrgenome.config import HawkConfig
from lrgenome.engine.sweep import hidden_states
from lrgenome.glossary import FORWARD, REVERSE
from lrgenome.models.hawk import Hawk, build
from lrgenome.ops import backend
from lrgenome.ops.conv import conv
from lrgenome.ops.conv import naive as conv_naive
from lrgenome.ops.gating import (
    gate_sum,
    geglu,
    naive_gate_sum,
    naive_geglu,
    naive_silu_gate_sum,
    silu_gate_sum,
)
from lrgenome.ops.norm import add_rms_norm, naive_rms_norm, rms_norm
from lrgenome.ops.record import Record
from lrgenome.ops.rglru import naive as rglru_naive
from lrgenome.ops.rglru import rglru
from lrgenome.ops.selective_scan import blocked as selective_blocked
from lrgenome.ops.selective_scan import cuda as selective_cuda
from lrgenome.ops.selective_scan import mamba, selective_scan
from lrgenome.ops.selective_scan import naive as selective_naive
from lrgenome.ops.trusted import TOLERANCE, TRITON_ROWS, trusted


@pytest.fixture(autouse=True)
def unchecked() -> Iterator[None]:
    """Forget what an earlier test found out about the kernels, and let no later one know."""
    trusted.cache_clear()
    yield
    trusted.cache_clear()


def test_a_right_kernel_passes_its_self_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mamba, "_import_kernel", lambda: selective_scan_stand_in)
    assert mamba.worst_error("cpu") < 0.1 * TOLERANCE


@pytest.mark.parametrize("kernel", WRONG_SELECTIVE_SCANS)
def test_wrong_selective_scan_falls_back(
    kernel: Callable[..., tuple[Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mamba, "_import_kernel", lambda: kernel)
    inputs = scan_inputs(2, 30, 16, 4, torch.float32)
    want = positional(selective_blocked.selective_scan, reverse=True)(*inputs)
    with backend.use("cuda"):
        for _ in range(2):
            got = positional(selective_scan, reverse=True)(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert mamba.__name__ in record.message and "on cpu" in record.message and "plain torch" in record.message


def test_selective_scan_under_autograd_runs_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*arguments: Tensor, **named: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(arguments[0].shape[2])
        return selective_scan_stand_in(*arguments, **named)

    monkeypatch.setattr(mamba, "_import_kernel", lambda: counted)
    run = positional(selective_cuda.selective_scan, reverse=True)
    inputs = scan_inputs(2, 30, 16, 4, torch.float32)
    got = outputs_and_gradients(run, inputs)
    assert not calls
    want = outputs_and_gradients(positional(selective_blocked.selective_scan, reverse=True), inputs)
    assert all(torch.equal(a, b) for a, b in zip(got[0] + got[1], want[0] + want[1], strict=True))
    for _ in range(2):
        run(*inputs)
    assert calls == [mamba.CHECK_POSITIONS] * 2 + [30] * 2


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("state", ["zero", "fades", "lasts"])
def test_what_the_entering_state_adds(state: str, reverse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Made piece by piece, and no further than there is anything left of it.
    monkeypatch.setattr(mamba, "PIECE", 16)
    inputs = scan_inputs(2, 80, 8, 4, torch.float32, low=1e-3 if state == "lasts" else 1e3, high=2e3)
    inputs = inputs._replace(h0=torch.zeros_like(inputs.h0)) if state == "zero" else inputs
    passes = []
    cumsum = torch.cumsum

    def counted(*arguments: Tensor) -> Tensor:
        passes.append(arguments)
        return cumsum(*arguments)

    monkeypatch.setattr(torch, "cumsum", counted)
    arguments, z = inputs[:8], inputs.z
    monkeypatch.setattr(mamba, "_import_kernel", lambda: selective_scan_stand_in)
    y, end = mamba.selective_scan(*arguments, reverse=reverse, z=z)
    assert len(passes) == {"zero": 0, "fades": 1, "lasts": 5}[state]
    want = selective_naive.selective_scan(*(v.double() for v in arguments), reverse=reverse, z=z.double())
    torch.testing.assert_close(y.double(), want[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(end.double(), want[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("error", [ImportError("no module"), OSError("undefined symbol"), RuntimeError("no driver")])
def test_a_kernel_that_does_not_import_falls_back(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise error

    monkeypatch.setattr(mamba, "_import_kernel", broken)
    inputs = scan_inputs(2, 9, 16, 4, torch.float32)
    with backend.use("cuda"):
        for _ in range(2):
            y, _ = positional(selective_scan, reverse=False)(*inputs)
    assert torch.equal(y, positional(selective_blocked.selective_scan, reverse=False)(*inputs)[0])
    (record,) = caplog.records
    assert str(error) in record.message and "not usable on cpu" in record.message


def test_the_kernel_is_imported_from_where_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    interface = ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = selective_scan_stand_in  # type: ignore[attr-defined]
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    assert mamba._import_kernel() is selective_scan_stand_in


def small_hawk() -> Hawk:
    """Return two blocks, no weight of which is 0."""
    config = HawkConfig(layers=2, width=48, recurrent_width=72, heads=3, mlp_width=40, half_life_max=200.0)
    model, generator = build(config, seed=1), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def run_model(model: Hawk, ids: Tensor, chunk: int | None, strand: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return hidden states, and the gradients by the weights of a random linear loss over them."""
    hidden = hidden_states(model, ids, chunk=chunk, strand=strand)
    weight = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(4)).to(ids.device)
    named = dict(model.named_parameters())
    gradients = torch.autograd.grad((hidden * weight).sum(), named.values(), allow_unused=True, materialize_grads=True)
    return hidden.detach(), dict(zip(named, gradients, strict=True))


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SCAN, CONV = "lrgenome.ops.rglru.triton_scan", "lrgenome.ops.conv.triton_conv"
KERNELS = (SCAN, CONV, TRITON_ROWS)


def allow_tf32(matmul: bool, cudnn: bool) -> tuple[bool, bool]:
    """Set whether float32 products may use TF32, which has ten bits; returns what was set before."""
    with warnings.catch_warnings():
        # Some releases of torch have newer names for it, and say so.
        warnings.simplefilter("ignore")
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn
    return before


@pytest.fixture
def full_precision() -> Iterator[None]:
    before = allow_tf32(False, False)
    yield
    allow_tf32(*before)


@contextmanager
def running(name: str, module: str) -> Iterator[None]:
    """Run with backend `name`; on a device "cuda" is to be the kernels of `module`, not what stands in for them."""
    if name == "cuda":
        if module == mamba.__name__:
            pytest.importorskip("mamba_ssm")
        assert trusted(module, "cuda:0") is not None
    with backend.use(name):
        yield


def on_device(inputs: Iterable[Tensor]) -> list[Tensor]:
    return [i.to("cuda") for i in inputs]


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_are_trusted_on_a_device(
    name: str, mode: Callable[[], AbstractContextManager[None]], caplog: pytest.LogCaptureFixture
) -> None:
    trusted.cache_clear()
    with mode():
        assert trusted(name, "cuda:0") is not None, caplog.text
    assert not caplog.records


@cache
def exact_scan(t: int, dtype: torch.dtype, reverse: bool, reset: bool) -> tuple[list[Tensor], list[Tensor]]:
    inputs = rglru_inputs(2, t, 3, 24, dtype)
    return outputs_and_gradients(partial(rglru_naive.rglru, reverse=reverse, reset=reset), inputs, torch.float64)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("name", ["cuda", "blocked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("t", [1, 3, 65, 1000])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("reset", [False, True])
def test_scan_on_a_device(name: str, dtype: torch.dtype, t: int, reverse: bool, reset: bool) -> None:
    inputs = rglru_inputs(2, t, 3, 24, dtype)
    with running(name, SCAN):
        got = outputs_and_gradients(partial(rglru, reverse=reverse, reset=reset), on_device(inputs))
    assert all(o.is_cuda for o in got[0] + got[1])
    assert_all_close(got, exact_scan(t, dtype, reverse, reset), 2e-5, RgLruInputs._fields)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("name", ["cuda", "blocked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("t", [1, 3, 65, 1000])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.usefixtures("full_precision")
def test_convolution_on_a_device(name: str, dtype: torch.dtype, t: int, reverse: bool, silu: bool) -> None:
    inputs = conv_inputs(2, t, 72, dtype)
    there = on_device(inputs)
    want = outputs_and_gradients(partial(conv_naive.conv, reverse=reverse, silu=silu), inputs, torch.float64)
    with running(name, CONV):
        got = outputs_and_gradients(partial(conv, reverse=reverse, silu=silu), there)
        untraced = conv(*there, reverse=reverse, silu=silu, out=torch.empty_like(there[0]))
    assert all(o.is_cuda for o in (*got[0], *got[1], untraced))
    assert_all_close(got, want, 2e-5, ConvInputs._fields)
    assert_close(untraced, want[0][0], 2e-5)


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("name", ["cuda", "blocked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("t", [1, 3, 65, 1500])
@pytest.mark.parametrize("reverse", [False, True])
def test_selective_scan_on_a_device(name: str, dtype: torch.dtype, t: int, reverse: bool) -> None:
    inputs = scan_inputs(2, t, 72, 16, dtype)
    want = outputs_and_gradients(positional(selective_naive.selective_scan, reverse=reverse), inputs, torch.float64)
    there = on_device(inputs)
    with running(name, mamba.__name__):
        got = outputs_and_gradients(positional(selective_scan, reverse=reverse), there)
        untraced = positional(selective_scan, reverse=reverse)(*there)
    assert all(o.is_cuda for o in (*got[0], *got[1], *untraced))
    assert_all_close(got, want, 2e-5, NAMES)
    assert_all_close((list(untraced), []), (want[0], []), 2e-5, ())


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("name", ["cuda", "blocked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reverse", [False, True])
def test_states_at_boundaries_on_a_device(name: str, dtype: torch.dtype, reverse: bool) -> None:
    inputs, at = rglru_inputs(2, 200, 3, 24, dtype), torch.tensor([0, 1, 64, 65, 199, 200])
    want = Record(at, torch.empty(2, len(at), 72, dtype=torch.float64))
    y, end = rglru_naive.rglru(*(i.double() for i in inputs), reverse=reverse, reset=True, record=want)
    got = Record(at, torch.empty(2, len(at), 72, device="cuda"))
    there = on_device(inputs)
    out = torch.empty_like(there[0])
    with running(name, SCAN):
        results = rglru(*there, reverse=reverse, reset=True, out=out, record=got)
    assert name == "blocked" or results[0].data_ptr() == out.data_ptr()
    for one, other in zip((*results, got.h), (y, end, want.h), strict=True):
        assert_close(one, other, 2e-5)


GATES = {
    "geglu": (geglu, naive_geglu, 1),
    "gelu": (gate_sum, naive_gate_sum, 3),
    "silu": (silu_gate_sum, naive_silu_gate_sum, 3),
}


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("name", ["cuda", "blocked"])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 3, 65, 1000])
def test_gates_on_a_device(name: str, gate: str, dtype: torch.dtype, n: int) -> None:
    fast, naive, count = GATES[gate]
    generator = torch.Generator().manual_seed(0)
    inputs = [(3.0 * torch.randn(n, 72, generator=generator)).to(dtype) for _ in range(count)]
    want = outputs_and_gradients(naive, inputs, torch.float64)
    with running(name, TRITON_ROWS):
        got = outputs_and_gradients(fast, on_device(inputs))
        untraced = fast(*on_device(inputs))
    assert all(o.is_cuda for o in (*got[0], *got[1], untraced))
    assert_all_close(got, want, 1e-5, [f"input {index}" for index in range(count)])
    assert torch.equal(untraced, got[0][0])


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("name", ["cuda", "blocked"])
@pytest.mark.parametrize(
    ("wide", "dtype"), [(torch.float32,) * 2, (torch.float32, torch.bfloat16), (torch.bfloat16,) * 2]
)
@pytest.mark.parametrize("n", [1, 3, 65, 1000])
@pytest.mark.parametrize("d", [72, 128])
def test_norm_on_a_device(name: str, wide: torch.dtype, dtype: torch.dtype, n: int, d: int) -> None:
    x, delta, scale = norm_inputs(n, d, wide, dtype)
    want = outputs_and_gradients(lambda x, s: naive_rms_norm(x, s, torch.float64), (x, scale), torch.float64)
    with running(name, TRITON_ROWS):
        got = outputs_and_gradients(lambda x, s: rms_norm(x, s, dtype), on_device((x, scale)))
    assert got[0][0].is_cuda and got[0][0].dtype == dtype
    assert_all_close(got, want, 2e-5, ("x", "scale"))

    inputs = (x, delta, scale)
    want = outputs_and_gradients(
        lambda x, u, s: (x + u, naive_rms_norm(x + u, s, torch.float64)), inputs, torch.float64
    )
    with running(name, TRITON_ROWS):
        got = outputs_and_gradients(lambda x, u, s: add_rms_norm(x, u, s, dtype), on_device(inputs))
        untraced = add_rms_norm(*on_device(inputs), dtype)
    # In plain torch two gradients, each rounded, meet in x and delta.
    assert_all_close(got, want, 2e-5 if name == "cuda" or wide == torch.float32 else 1e-2, ("x", "delta", "scale"))
    assert_all_close((list(untraced), []), (want[0], []), 2e-5, ())


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("strand", [FORWARD, REVERSE])
@pytest.mark.parametrize("chunk", [None, 70])
@pytest.mark.usefixtures("full_precision")
def test_a_model_on_a_device_computes_what_it_does_on_the_cpu(chunk: int | None, strand: int) -> None:
    ids = torch.randint(7, 12, (2, 300), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    hidden, gradients = run_model(small_hawk(), ids, None, strand)
    got, got_gradients = run_model(small_hawk().to("cuda"), ids.to("cuda"), chunk, strand)
    assert got.is_cuda and gradients.keys() == got_gradients.keys()
    assert_close(got, hidden, 1e-4, "hidden states")
    for name, gradient in gradients.items():
        assert gradient.any(), name
        assert_close(got_gradients[name], gradient, 1e-4, f"gradient of {name}")
    # Without autograd memory is used again, and the residual stream is updated in place.
    model = small_hawk().to("cuda")
    with torch.no_grad():
        untraced = hidden_states(model, ids.to("cuda"), chunk=chunk, strand=strand)
    assert_close(untraced, hidden, 1e-4, "hidden states without autograd")
