"""The depthwise convolution through ``causal_conv1d`` on a CUDA device.

Imported on first use only and checked against `blocked` there; where it is absent or differs, `blocked` runs
and a warning says so once.
"""

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from lrgenome.ops.conv import blocked

log = logging.getLogger(__name__)

Kernel = Callable[..., Tensor]
CHECK_POSITIONS = 300
CHECK_TOLERANCE = 1e-4


def _import_kernel() -> Kernel:
    from causal_conv1d import causal_conv1d_fn

    return causal_conv1d_fn


def conv_with(
    kernel: Kernel, x: Tensor, weight: Tensor, bias: Tensor, halo: Tensor, *, reverse: bool, silu: bool = False
) -> Tensor:
    """Run `kernel` (the signature of causal_conv1d_fn) with a halo, either direction.

    The kernel wants (b, e, t) with the channel axis contiguous, for the input and for its initial states. Weight
    and bias stay float32 whatever the dtype of x, as in the other implementations.
    """
    if reverse:
        x, halo = x.flip(1), halo.flip(1)
    y = kernel(
        x.contiguous().transpose(1, 2),
        weight.float().t().contiguous(),
        bias.float(),
        initial_states=halo.to(x.dtype).contiguous().transpose(1, 2),
        activation="silu" if silu else None,
    ).transpose(1, 2)
    return y.flip(1) if reverse else y


@cache
def _checked_kernel(device: str) -> Kernel | None:
    try:
        kernel = _import_kernel()
    except Exception as error:  # a compiled extension fails to import in many ways
        log.warning("causal_conv1d is not usable on %s (%s): plain torch convolution", device, error)
        return None
    return kernel if self_check(kernel, device) else None


def self_check(kernel: Kernel, device: str) -> bool:
    """Compare `kernel` with `blocked` on random input; log and return False if they differ."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((2, CHECK_POSITIONS, 64), generator=generator).to(device)
    halo = torch.randn((2, 3, 64), generator=generator).to(device)
    weight = torch.randn((4, 64), generator=generator).to(device)
    bias = torch.randn((64,), generator=generator).to(device)
    for reverse, silu in ((False, False), (True, False), (False, True)):
        expected = blocked.conv(x, weight, bias, halo, reverse=reverse, silu=silu)
        try:
            y = conv_with(kernel, x, weight, bias, halo, reverse=reverse, silu=silu)
            worst = (y - expected).abs().max().item()
        except Exception as error:
            log.warning("causal_conv1d failed its self-check on %s (%s): plain torch", device, error)
            return False
        if not worst <= CHECK_TOLERANCE:
            log.warning("causal_conv1d differs by %.2g on %s in its self-check: plain torch", worst, device)
            return False
    return True


def conv(x: Tensor, weight: Tensor, bias: Tensor, halo: Tensor, *, reverse: bool, silu: bool = False) -> Tensor:
    """Convolve one chunk; shapes and meaning as in `naive.conv`."""
    kernel = _checked_kernel(str(x.device))
    # The kernel's initial states and its widths have limits that the plain convolution has not.
    if kernel is None or weight.shape[0] not in (2, 3, 4) or x.shape[2] % 8 or x.shape[1] == 0:
        return blocked.conv(x, weight, bias, halo, reverse=reverse, silu=silu)
    return conv_with(kernel, x, weight, bias, halo, reverse=reverse, silu=silu)
