"""The selective scan through the kernel of ``mamba_ssm``, on a CUDA device.

``selective_scan_fn`` takes no initial state. The scan is linear in its state, so the kernel runs from zeros and
what the entering state adds is added to its outputs. It is imported on first use only.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from lrgenome.ops.selective_scan import blocked
from lrgenome.ops.selective_scan.naive import finish
from lrgenome.ops.trusted import largest_difference

Scan = Callable[..., tuple[Tensor, Tensor]]
CHECK_POSITIONS = 300
PIECE = 1024
"""Positions to which the entering state is added at a time: the decays of all their states are held at once."""


def _import_kernel() -> Scan:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn


def selective_scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, dt_bias: Tensor, h0: Tensor, *,
    reverse: bool, z: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Run the recurrence over one chunk; shapes and meaning as in `naive.selective_scan`, without gradients.

    The kernel's arguments are float32, positions last. A direction of right to left is a flip, since the kernel
    only runs left to right. After S = delta_1 + ... + delta_t, exp(a S) of the entering state is left.
    """
    wide_x = x.float()
    u, dt, b, c = ((v.flip(1) if reverse else v).float() for v in (wide_x, dt, b, c))
    a, dt_bias = a.float(), dt_bias.float()
    y, end = _import_kernel()(
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


def worst_error(device: str) -> float:
    """Return the largest difference from `blocked` of outputs and states on random input, relative as elsewhere."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    b, t, e, n = 2, CHECK_POSITIONS, 64, 16
    inputs = (
        draw(b, t, e), draw(b, t, e), -torch.exp(draw(e, n)), draw(b, t, n), draw(b, t, n), draw(e), draw(e) - 3.0,
        draw(b, e, n),
    )  # fmt: skip
    got: list[Tensor] = []
    expected: list[Tensor] = []
    for reverse in (False, True):
        got += selective_scan(*inputs, reverse=reverse)
        expected += blocked.selective_scan(*inputs, reverse=reverse)
    return largest_difference(got, expected)
