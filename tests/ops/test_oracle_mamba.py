"""The parts of a Mamba layer against the mixer of `transformers` with the same weights, forward and backward.

Theirs runs left to right from a zero state; our other direction is compared on flipped input.
"""

from collections.abc import Mapping

import pytest
import torch
from helpers import assert_close, one_thread  # noqa: F401
from torch import Tensor, nn
from torch.nn.functional import linear

from lrgenome.ops import backend
from lrgenome.ops.conv import conv, next_halo
from lrgenome.ops.gating import silu_gate_sum
from lrgenome.ops.selective_scan import selective_scan

B, T, WIDTH, ENTRIES, RANK = 2, 50, 20, 6, 3
E = 2 * WIDTH
BACKENDS = ("naive", "cpu", "blocked")
TOLERANCE = 1e-5


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def oracle() -> nn.Module:
    """Make their mixer in evaluation mode, where it runs its plain torch code; no parameter is at its default."""
    library = pytest.importorskip("transformers", reason="the oracle is transformers' Mamba")
    modules = pytest.importorskip("transformers.models.mamba.modeling_mamba")
    settings = library.MambaConfig(
        hidden_size=WIDTH, state_size=ENTRIES, expand=2, conv_kernel=4, time_step_rank=RANK, num_hidden_layers=1
    )
    mixer: nn.Module = modules.MambaMixer(settings, 0).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return mixer


def ours(w: Mapping[str, Tensor], x: Tensor, *, reverse: bool, size: int, fused: bool) -> Tensor:
    """One direction of a layer by their weights, in chunks of `size`; the gate in the scan if `fused`, else after."""
    b, t, _ = x.shape
    branch, gate = linear(x, w["in_proj.weight"]).chunk(2, -1)
    taps = w["conv1d.weight"][:, 0].t()
    a = -torch.exp(w["A_log"])
    h, halo = torch.zeros(b, E, ENTRIES), torch.zeros(b, 3, E)
    pieces = []
    starts = range(0, t, size)
    for lo in reversed(starts) if reverse else starts:
        at = slice(lo, lo + size)
        v = conv(branch[:, at], taps, w["conv1d.bias"], halo, reverse=reverse, silu=True)
        halo = next_halo(branch[:, at], halo, reverse=reverse)
        made = linear(v, w["x_proj.weight"])
        dt = linear(made[..., :RANK], w["dt_proj.weight"])
        y, h = selective_scan(
            v, dt, a, made[..., RANK : RANK + ENTRIES], made[..., RANK + ENTRIES :], w["D"], w["dt_proj.bias"], h,
            reverse=reverse, z=gate[:, at] if fused else None,
        )  # fmt: skip
        pieces.append(y)
    y = torch.cat(pieces[::-1] if reverse else pieces, 1)
    if not fused:
        flat = y.reshape(b * t, E)
        y = silu_gate_sum(gate.reshape(b * t, E), flat, torch.zeros_like(flat)).view(b, t, E)
    return linear(y, w["out_proj.weight"])


def gradients(y: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Differentiate a random linear loss of y."""
    loss = (y * draw(*y.shape, seed=40)).sum()
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


@pytest.mark.parametrize("fused", [True, False], ids=["gate in the scan", "gate after it"])
@pytest.mark.parametrize("size", [T, 17])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", BACKENDS)
def test_layer(name: str, reverse: bool, size: int, fused: bool) -> None:
    theirs = oracle()
    x = draw(B, T, WIDTH).requires_grad_()
    turned = x.flip(1) if reverse else x
    want = theirs(turned)
    want = want.flip(1) if reverse else want
    parameters = dict(theirs.named_parameters())
    want_gradients = gradients(want, {"x": x, **parameters})
    weights = {key: value.detach().clone().requires_grad_() for key, value in parameters.items()}
    own = x.detach().clone().requires_grad_()
    with backend.use(name):
        got = ours(weights, own, reverse=reverse, size=size, fused=fused)
        got_gradients = gradients(got, {"x": own, **weights})
    assert_close(got.detach(), want.detach(), TOLERANCE, "y")
    for key, value in want_gradients.items():
        assert_close(got_gradients[key], value, TOLERANCE, key)
