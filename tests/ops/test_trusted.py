"""Kernels for a GPU run only where they agree with the definition; else one warning, and plain torch."""

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers import (
    conv_inputs,
    interpreted,
    one_thread,  # noqa: F401
    outputs_and_gradients,
    rglru_inputs,
)
from torch import Tensor

from lrgenome.ops import backend, gating, norm, triton_rows
from lrgenome.ops.conv import blocked as conv_blocked
from lrgenome.ops.conv import conv, triton_conv
from lrgenome.ops.rglru import blocked as rglru_blocked
from lrgenome.ops.rglru import rglru, triton_scan
from lrgenome.ops.trusted import TRITON_ROWS, largest_difference, trusted

SCAN, CONV = triton_scan.__name__, triton_conv.__name__
Outputs = tuple[Tensor, ...]


@pytest.fixture(autouse=True)
def unchecked() -> Iterator[None]:
    """Forget what an earlier test found out about the kernels, and let no later one know."""
    trusted.cache_clear()
    yield
    trusted.cache_clear()


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


@interpreted
@pytest.mark.parametrize("module", [triton_scan, triton_conv, triton_rows], ids=lambda module: module.__name__)
def test_right_kernels_are_trusted(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # As few programs as the interpreter is fastest with.
    monkeypatch.setattr(triton_scan, "TILE", 2)
    monkeypatch.setattr(triton_scan, "CHANNELS", 64)
    monkeypatch.setattr(triton_conv, "TILE", 16)
    checks, check = [], module.worst_error

    def counted(device: str) -> float:
        checks.append(device)
        return check(device)

    monkeypatch.setattr(module, "worst_error", counted)
    for _ in range(3):
        assert trusted(module.__name__, "cpu") is module
    assert checks == ["cpu"] and not warnings_in(caplog)


@interpreted
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_kernels_first_used_without_autograd_are_trusted(mode: Callable[[], AbstractContextManager[None]]) -> None:
    with mode():
        assert trusted(TRITON_ROWS, "cpu") is triton_rows
        assert not torch.is_grad_enabled()


def test_kernels_are_checked_once_a_device(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    module, checks = ModuleType("lrgenome.ops.kernels"), []

    def worst_error(device: str) -> float:
        checks.append(device)
        return 0.0 if device == "cuda:0" else 1.0

    module.worst_error = worst_error  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for _ in range(2):
        assert trusted(module.__name__, "cuda:0") is module
        assert trusted(module.__name__, "cuda:1") is trusted(module.__name__, "cuda:2") is None
    assert checks == ["cuda:0", "cuda:1", "cuda:2"]
    first, second = warnings_in(caplog)
    assert "on cuda:1" in first and "on cuda:2" in second


def test_a_device_without_memory_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module, full = ModuleType("lrgenome.ops.kernels"), [True, False]

    def worst_error(device: str) -> float:
        if full.pop(0):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.0

    module.worst_error = worst_error  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(torch.OutOfMemoryError):
        trusted(module.__name__, "cuda:0")
    assert trusted(module.__name__, "cuda:0") is module and not warnings_in(caplog)


@pytest.mark.parametrize("given", [None, "/given"])
def test_what_triton_compiles_is_not_kept_at_home(
    given: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", given or "")
    if given is None:
        monkeypatch.delenv("TRITON_CACHE_DIR")
    trusted("lrgenome.ops.no_such_kernels", "cuda:0")
    expected = given or str(tmp_path / f"lrgenome-{os.getuid()}" / "triton")
    assert os.environ["TRITON_CACHE_DIR"] == expected


def test_the_largest_difference_keeps_what_is_not_a_number() -> None:
    one, many = torch.zeros(2), torch.tensor([100.0, 0.0])
    assert largest_difference([one + 0.5, many + 1.0], [one, many]) == pytest.approx(0.5)
    assert largest_difference([one, many + 1.0], [one, many]) == pytest.approx(0.01)
    for bad in (0, 1):
        got = [one.clone(), many.clone()]
        got[bad][1] = torch.nan
        value = largest_difference(got, [one, many])
        assert value != value


class ScaledGradient(torch.autograd.Function):
    """The identity, with a gradient that is a little too large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 1.01 * grad


def crash(y: Tensor) -> Tensor:
    raise RuntimeError("no kernel image is available")


WRONGS: dict[str, Callable[[Tensor], Tensor]] = {
    "slightly off": lambda y: y + 3e-3,
    "not a number": lambda y: torch.where(torch.arange(y.shape[-1]) == 1, torch.nan, y),
    "only its gradient": ScaledGradient.apply,
    "crashes": crash,
}


def spoilt(function: Callable[..., Any], wrong: Callable[[Tensor], Tensor], place: int) -> Callable[..., Any]:
    """Return `function` with its output `place` made wrong."""

    def run(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **{name: value for name, value in named.items() if name not in ("out", "record")})
        if isinstance(result, Tensor):
            return wrong(result)
        return tuple(wrong(one) if index == place else one for index, one in enumerate(result))

    return run


def plain_sum_and_norm(
    x: Tensor, scale: Tensor, dtype: torch.dtype, eps: float, delta: Tensor | None = None
) -> Outputs:
    total = x if delta is None else x + delta
    return total, norm.naive_rms_norm(total, scale, dtype, eps)


def plain_gate_sum(gate: Tensor, y1: Tensor, y2: Tensor, kind: int = triton_rows.GELU) -> Tensor:
    return (gating.naive_gate_sum if kind == triton_rows.GELU else gating.naive_silu_gate_sum)(gate, y1, y2)


# Module, name in it, what computes the same, and which of its outputs is spoilt.
KERNELS = [
    (triton_scan, "rglru", rglru_blocked.rglru, 0),
    (triton_scan, "rglru", rglru_blocked.rglru, 1),
    (triton_conv, "conv", conv_blocked.conv, 0),
    (triton_rows, "geglu", gating.naive_geglu, 0),
    (triton_rows, "gate_sum", plain_gate_sum, 0),
    (triton_rows, "rms_norm", plain_sum_and_norm, 0),
    (triton_rows, "rms_norm", plain_sum_and_norm, 1),
]


def calls_of(name: str) -> list[tuple[Callable[..., Tensor | Outputs], Callable[..., Tensor | Outputs], Outputs]]:
    """Return ops that the module `name` is for, what plain torch has for each, and inputs."""
    if name == SCAN:
        flags = {"reverse": True, "reset": True}
        inputs = rglru_inputs(2, 30, 2, 8, torch.float32)
        return [(partial(rglru, **flags), partial(rglru_blocked.rglru, **flags), inputs)]
    if name == CONV:
        inputs = conv_inputs(2, 30, 16, torch.float32)
        return [(partial(conv, reverse=True), partial(conv_blocked.conv, reverse=True), inputs)]
    x, y, z = (torch.randn(9, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    scale, wide = torch.linspace(-1.0, 1.0, 8), torch.float32
    return [
        (gating.geglu, gating.naive_geglu, (x,)),
        (gating.gate_sum, gating.naive_gate_sum, (x, y, z)),
        (gating.silu_gate_sum, gating.naive_silu_gate_sum, (x, y, z)),
        (lambda x, s: norm.rms_norm(x, s, wide), lambda x, s: norm.naive_rms_norm(x, s, wide), (x, scale)),
        (lambda x, y, s: norm.add_rms_norm(x, y, s, wide),
         lambda x, y, s: plain_sum_and_norm(x, s, wide, norm.EPS, y), (x, y, scale)),
    ]  # fmt: skip


def assert_plain_torch_runs(name: str, caplog: pytest.LogCaptureFixture) -> str:
    """Run the ops that the module `name` is for, twice; returns the only warning."""
    with backend.use("cuda"):
        for _ in range(2):
            for function, plain, inputs in calls_of(name):
                got = outputs_and_gradients(function, inputs)
                want = outputs_and_gradients(plain, inputs)
                assert all(torch.equal(a, b) for a, b in zip(got[0] + got[1], want[0] + want[1], strict=True))
    (message,) = warnings_in(caplog)
    assert name in message and "on cpu" in message and "plain torch" in message
    return message


@pytest.mark.parametrize("wrong", WRONGS)
@pytest.mark.parametrize(
    ("module", "name", "right", "place"), KERNELS, ids=[f"{name}-{place}" for _, name, _, place in KERNELS]
)
def test_wrong_kernels_are_left_out(
    module: ModuleType, name: str, right: Callable[..., Any], place: int, wrong: str,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    for kernel in {name for other, name, _, _ in KERNELS if other is module}:
        plain = next(plain for _, other, plain, _ in KERNELS if other == kernel)
        monkeypatch.setattr(module, kernel, plain)
    assert trusted(module.__name__, "cpu") is module and not warnings_in(caplog)
    trusted.cache_clear()
    monkeypatch.setattr(module, name, spoilt(right, WRONGS[wrong], place))
    message = assert_plain_torch_runs(module.__name__, caplog)
    assert ("no kernel image is available" if wrong == "crashes" else "differs by") in message


@pytest.mark.parametrize("name", [SCAN, CONV, TRITON_ROWS])
def test_kernels_that_do_not_import_are_left_out(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    assert "not usable" in assert_plain_torch_runs(name, caplog)


@pytest.mark.parametrize("error", [OSError("undefined symbol"), RuntimeError("no driver")])
def test_kernels_whose_check_fails_are_left_out(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(device: str) -> float:
        raise error

    monkeypatch.setattr(triton_rows, "worst_error", broken)
    message = assert_plain_torch_runs(TRITON_ROWS, caplog)
    assert str(error) in message and type(error).__name__ in message
