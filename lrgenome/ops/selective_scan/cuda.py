"""The selective scan through ``mamba_ssm`` on a CUDA device.

``selective_scan_fn`` takes no initial state. The scan is linear in its state, so the kernel runs from zeros and
what the entering state adds is added to its outputs. The kernel gives no gradient of its last state either, so
where autograd is at work `blocked` runs. It is imported on first use only, and its first use on a device is
checked against `blocked` on a few hundred positions; where it is absent or differs, `blocked` runs instead and a
warning says so once.
"""

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import softplus

from lrgenome.ops import backend
from lrgenome.ops.selective_scan import blocked
from lrgenome.ops.selective_scan.naive import finish

log = logging.getLogger(__name__)

Scan = Callable[..., tuple[Tensor, Tensor]]
CHECK_POSITIONS = 300
CHECK_TOLERANCE = 1e-4
PIECE = 1024
"""Positions to which the entering state is added at a time: the decays of all their states are held at once."""


def _import_kernel() -> Scan:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn


def scan_with(
    kernel: Scan, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, dt_bias: Tensor, h0: Tensor, *,
    reverse: bool, z: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run `kernel` (the signature of selective_scan_fn) with state in and out, either direction.

    Everything is float32, positions last. A direction of right to left is a flip, since the kernel only runs left
    to right. After S = delta_1 + ... + delta_t, exp(a S) of the entering state is left.
    """
    wide_x = x.float()
    u, dt, b, c = ((v.flip(1) if reverse else v).float() for v in (wide_x, dt, b, c))
    a, dt_bias = a.float(), dt_bias.float()
    y, end = kernel(
        *(v.transpose(1, 2).contiguous() for v in (u, dt)),
        a.contiguous(),
        *(v.transpose(1, 2).contiguous() for v in (b, c)),
        delta_bias=dt_bias.contiguous(),
        delta_softplus=True,
        return_last_state=True,
    )
    y = y.transpose(1, 2).contiguous()
    left = h0.float()
    for at in blocked.segments(x.shape[1], PIECE, reverse=False):
        if not left.any():
            break
        passed = torch.cumsum(softplus(dt[:, at] + dt_bias), 1)
        decayed = torch.exp(passed[..., None] * a) * left[:, None]
        y[:, at] += torch.einsum("bten,btn->bte", decayed, c[:, at])
        left = decayed[:, -1]
    else:
        end = end + left
    return finish(y.flip(1) if reverse else y, wide_x, skip, z).to(x.dtype), end


@cache
def _checked_kernel(device: str) -> Scan | None:
    try:
        kernel = _import_kernel()
    except Exception as error:  # a compiled extension fails to import in many ways
        log.warning("mamba_ssm is not usable on %s (%s: %s): plain torch scan", device, type(error).__name__, error)
        return None
    return kernel if self_check(kernel, device) else None


def self_check(kernel: Scan, device: str) -> bool:
    """Compare `kernel` with the blocked scan on random input; log and return False if they differ."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    b, t, e, n = 2, CHECK_POSITIONS, 64, 16
    inputs = (
        draw(b, t, e), draw(b, t, e), -torch.exp(draw(e, n)), draw(b, t, n), draw(b, t, n), draw(e), draw(e) - 3.0,
        draw(b, e, n),
    )  # fmt: skip
    for reverse in (False, True):
        expected, last = blocked.selective_scan(*inputs, reverse=reverse)
        try:
            y, end = scan_with(kernel, *inputs, reverse=reverse)
            # One tensor, since max() of Python numbers may lose a NaN.
            both = torch.cat([(y - expected).flatten(1), (end - last).flatten(1)], 1)
            worst = both.abs().max().item()
        except Exception as error:
            log.warning("mamba_ssm failed its self-check on %s (%s): plain torch scan", device, error)
            return False
        if not worst <= CHECK_TOLERANCE:
            log.warning("mamba_ssm differs by %.2g on %s in its self-check: plain torch scan", worst, device)
            return False
    return True


def selective_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, dt_bias: Tensor, h0: Tensor, *,
    reverse: bool, z: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the recurrence over one chunk; shapes and meaning as in `naive.selective_scan`."""
    inputs = (x, dt, a, b, c, skip, dt_bias, h0)
    kernel = None if backend.wants_grad(*inputs, z) else _checked_kernel(str(x.device))
    if kernel is None or x.shape[1] == 0:
        return blocked.selective_scan(*inputs, reverse=reverse, z=z)
    return scan_with(kernel, *inputs, reverse=reverse, z=z)
