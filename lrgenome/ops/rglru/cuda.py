"""The RG-LRU through ``fla.ops.hgrn`` on a CUDA device.

``fused_recurrent_hgrn`` computes h_t = exp(g_t) h_{t-1} + x_t with an initial state and gradients for it.
It is imported on first use only, and its first use on a device is checked against `blocked` on a few hundred
positions; where it is absent or differs, `blocked` runs instead and a warning says so once.
"""

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from lrgenome.ops.record import Record
from lrgenome.ops.rglru import blocked
from lrgenome.ops.rglru.naive import elementwise

log = logging.getLogger(__name__)

Scan = Callable[..., tuple[Tensor, Tensor]]
CHECK_POSITIONS = 300
CHECK_TOLERANCE = 1e-4


def _import_kernel() -> Scan:
    from fla.ops.hgrn import fused_recurrent_hgrn

    return fused_recurrent_hgrn


def scan_with(kernel: Scan, log_a: Tensor, u: Tensor, h0: Tensor, *, reverse: bool) -> tuple[Tensor, Tensor]:
    """Run `kernel` (the signature of fused_recurrent_hgrn) with state in and out, either direction.

    Everything is float32: the kernel's final state takes the dtype of its input. A direction of right to left
    is a flip, since the kernel only runs left to right.
    """
    if reverse:
        log_a, u = log_a.flip(1), u.flip(1)
    # exp(-inf) = 0 at a reset position; a large finite number keeps the kernel's gradient free of NaN.
    log_a = torch.clamp(log_a, min=-80.0)
    y, end = kernel(
        x=u.float().contiguous(), g=log_a.float().contiguous(), initial_state=h0.float(), output_final_state=True
    )
    return (y.flip(1) if reverse else y), end


@cache
def _checked_kernel(device: str) -> Scan | None:
    try:
        kernel = _import_kernel()
    except Exception as error:  # an import of Triton code fails in many ways
        log.warning("fla is not usable on %s (%s: %s): plain torch scan", device, type(error).__name__, error)
        return None
    return kernel if self_check(kernel, device) else None


def self_check(kernel: Scan, device: str) -> bool:
    """Compare `kernel` with the blocked scan on random input; log and return False if they differ."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, CHECK_POSITIONS, 64)
    log_a = -torch.rand(shape, generator=generator).to(device)
    u = torch.randn(shape, generator=generator).to(device)
    h0 = torch.randn((2, 64), generator=generator).to(device)
    for reverse in (False, True):
        expected = blocked.scan(log_a, u, h0, reverse=reverse)
        try:
            y, end = scan_with(kernel, log_a, u, h0, reverse=reverse)
            # One tensor, since max() of Python numbers may lose a NaN.
            both = torch.cat([y - expected, (end - expected[:, 0 if reverse else -1])[:, None]], 1)
            worst = both.abs().max().item()
        except Exception as error:
            log.warning("fla failed its self-check on %s (%s): plain torch scan", device, error)
            return False
        if not worst <= CHECK_TOLERANCE:
            log.warning("fla differs by %.2g on %s in its self-check: plain torch scan", worst, device)
            return False
    return True


def rglru(
    x: Tensor, gates: Tensor, gate_bias: Tensor, decay: Tensor, h0: Tensor, *,
    reverse: bool, reset: bool, record: Record | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the recurrence over one chunk; shapes and meaning as in `naive.rglru`."""
    kernel = _checked_kernel(str(x.device))
    if kernel is None or x.shape[1] == 0:
        return blocked.rglru(x, gates, gate_bias, decay, h0, reverse=reverse, reset=reset, record=record)
    log_a, u = elementwise(x, gates, gate_bias, decay, reverse=reverse, reset=reset)
    y, end = scan_with(kernel, log_a, u, h0, reverse=reverse)
    if record is not None:
        record.pick(y, h0, reverse=reverse)
    return y.to(x.dtype), end
