"""What the tests of the selective scan share: inputs, the optional gate as one more of them, stand-in kernels."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

NAMES = ("x", "dt", "a", "b", "c", "skip", "dt_bias", "h0", "z")


class ScanInputs(NamedTuple):
    """Arguments of `selective_scan`, in order; the gate last."""

    x: Tensor
    dt: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    skip: Tensor
    dt_bias: Tensor
    h0: Tensor
    z: Tensor


def scan_inputs(
    rows: int, t: int, e: int, n: int, dtype: torch.dtype, *, seed: int = 0, low: float = 1e-3, high: float = 16.0
) -> ScanInputs:
    """Draw inputs in `dtype` (the rest at least float32), rates -a log-uniform from `low` to `high`; steps near 0.5."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    rate = low * (high / low) ** torch.rand(e, n, generator=generator)
    # As a model makes them: columns of one product.
    made = draw(rows, t, 3 + 2 * n).to(dtype)
    return ScanInputs(
        draw(rows, t, e).to(dtype),
        draw(rows, t, e).to(dtype),
        -rate.to(wide),
        made[..., 3 : 3 + n],
        made[..., 3 + n :],
        draw(e).to(wide),
        (draw(e) - 0.5).to(wide),
        draw(rows, e, n).to(wide),
        draw(rows, t, e).to(dtype),
    )


def positional(
    function: Callable[..., tuple[Tensor, Tensor]], *, reverse: bool
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Let `function` take the gate as a ninth tensor, or eight tensors and no gate."""

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return function(*tensors[:8], reverse=reverse, z=tensors[8] if len(tensors) > 8 else None)

    return run


def selective_scan_stand_in(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """What mamba_ssm's selective_scan_fn computes, in plain torch, from a zero state and with its layouts."""
    rows, e, t = u.shape
    n = A.shape[1]
    assert delta.shape == u.shape and A.shape == (e, n) and B.shape == C.shape == (rows, n, t) and t > 0
    assert all(v.dtype == torch.float32 and v.is_contiguous() for v in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = softplus(delta)
    h = torch.zeros(rows, e, n)
    outputs = []
    for p in range(t):
        h = torch.exp(delta[:, :, p, None] * A) * h + (delta * u)[:, :, p, None] * B[:, None, :, p]
        outputs.append(torch.einsum("ben,bn->be", h, C[:, :, p]))
    y = torch.stack(outputs, 2)
    if D is not None:
        y = y + D[:, None] * u
    if z is not None:
        y = y * silu(z)
    return (y, h) if return_last_state else y


def selective_scan_slightly_off(*arguments: Tensor, **named: Any) -> tuple[Tensor, Tensor]:
    y, end = selective_scan_stand_in(*arguments, **named)
    return y + 1e-2, end


def selective_scan_of_plain_steps(*arguments: Tensor, **named: Any) -> tuple[Tensor, Tensor]:
    return selective_scan_stand_in(*arguments, **{**named, "delta_softplus": False})


def selective_scan_without_bias(*arguments: Tensor, **named: Any) -> tuple[Tensor, Tensor]:
    return selective_scan_stand_in(*arguments, **{**named, "delta_bias": None})


def selective_scan_without_last_state(*arguments: Tensor, **named: Any) -> Tensor:
    return selective_scan_stand_in(*arguments, **named)[0]


def selective_scan_not_a_number(*arguments: Tensor, **named: Any) -> tuple[Tensor, Tensor]:
    y, end = selective_scan_stand_in(*arguments, **named)
    return y, torch.full_like(end, torch.nan)


def selective_scan_that_crashes(*arguments: Tensor, **named: Any) -> tuple[Tensor, Tensor]:
    raise RuntimeError("no kernel image is available")


WRONG_SELECTIVE_SCANS = [
    selective_scan_slightly_off,
    selective_scan_of_plain_steps,
    selective_scan_without_bias,
    selective_scan_without_last_state,
    selective_scan_not_a_number,
    selective_scan_that_crashes,
]
