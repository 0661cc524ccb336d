"""Hawk's layers against two independent implementations with the same weights, forward and backward.

The first is the torch half of google-deepmind/recurrentgemma 1.0.1, of the authors of the paper:

    pip install --no-deps recurrentgemma==1.0.1
    pip install einops jaxtyping

(its other dependencies are only for its tokenizer and for JAX, which is not needed here). The second is the
RecurrentGemma of `transformers`. Both run left to right; our other direction is compared on flipped input.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import hawk_oracles
import pytest
import torch
from hawk_oracles import (
    BothWays,
    copy_weights,
    of_recurrentgemma,
    of_transformers,
    pack_gates,
    recurrentgemma_block,
    scrambled,
    transformers_block,
)
from helpers import assert_close, one_thread  # noqa: F401
from torch import Tensor, nn
from torch.nn.functional import softplus

from lrgenome.config import HawkConfig
from lrgenome.models.base import DirectionState
from lrgenome.models.hawk import DECAY_SCALE, HawkBlock, build
from lrgenome.ops import backend
from lrgenome.ops.conv import conv, next_halo
from lrgenome.ops.linear import per_head
from lrgenome.ops.rglru import rglru
from lrgenome.ops.workspace import Workspace

CONFIG = HawkConfig(layers=1, width=20, recurrent_width=36, heads=3, mlp_width=60)
B, T = 2, 50
BACKENDS = ("naive", "cpu", "blocked")
NO_WORKSPACE = Workspace(enabled=False)
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def recurrentgemma() -> Iterator[ModuleType]:
    for needed in ("einops", "jaxtyping"):
        pytest.importorskip(needed, reason=f"the recurrentgemma oracle needs {needed}")
    if importlib.util.find_spec("recurrentgemma") is None:
        pytest.skip("needs the oracle: pip install --no-deps recurrentgemma==1.0.1")
    with hawk_oracles.recurrentgemma_modules() as modules:
        yield modules


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def positions(t: int, *, first: int = 0) -> Tensor:
    """Positions in the document; 0, the true first base, resets the oracle."""
    return torch.arange(first, first + t).expand(B, t)


def gradients(outputs: tuple[Tensor, ...], leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Differentiate one random linear loss of all outputs."""
    loss = sum((o * draw(*o.shape, seed=40 + i)).sum() for i, o in enumerate(outputs))
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def compare(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, want in theirs.items():
        assert_close(ours[name], want.detach(), TOLERANCE, name)


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def oriented(reverse: bool) -> Callable[[Tensor], Tensor]:
    """Return what turns the oracle's left-to-right tensors (b, t, ...) into those of our direction."""
    return (lambda x: x.flip(1)) if reverse else (lambda x: x)


@pytest.mark.parametrize("first", [0, 5], ids=["reset", "state"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", BACKENDS)
def test_rglru(recurrentgemma: ModuleType, name: str, reverse: bool, first: int) -> None:
    e, h = CONFIG.recurrent_width, CONFIG.heads
    theirs = scrambled(recurrentgemma.layers.RGLRU(width=e, num_heads=h))
    turn = oriented(reverse)
    x, h0 = leaf(draw(B, T, e)), leaf(draw(B, e, seed=1))
    y, end = theirs(turn(x), positions(T, first=first), cache=h0)
    want = gradients((turn(y), end), {"x": x, "h0": h0, **dict(theirs.named_parameters())})

    weight, bias = pack_gates((theirs.input_gate.w, theirs.a_gate.w), (theirs.input_gate.b, theirs.a_gate.b))
    own = {"x": x, "h0": h0, "weight": weight, "bias": bias, "a": theirs.a_param}
    own = {key: leaf(value) for key, value in own.items()}
    with backend.use(name):
        gates = per_head(own["x"].view(B * T, e), own["weight"])
        got_y, got_end = rglru(
            own["x"], gates, own["bias"], DECAY_SCALE * softplus(own["a"]), own["h0"],
            reverse=reverse, reset=first == 0,
        )  # fmt: skip
        got = gradients((got_y, got_end), own)
    compare({"y": got_y, "end": got_end}, {"y": turn(y), "end": end})
    weight, bias = pack_gates((want["input_gate.w"], want["a_gate.w"]), (want["input_gate.b"], want["a_gate.b"]))
    compare(got, {"x": want["x"], "h0": want["h0"], "weight": weight, "bias": bias, "a": want["a_param"]})


@pytest.mark.parametrize("t", [1, 3, T])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", BACKENDS)
def test_conv(recurrentgemma: ModuleType, name: str, reverse: bool, t: int) -> None:
    e = CONFIG.recurrent_width
    theirs = scrambled(recurrentgemma.layers.Conv1D(width=e, temporal_width=4))
    turn = oriented(reverse)
    x = leaf(draw(B, t, e))
    # Their layer masks its input in place, which a leaf forbids.
    y, cache = theirs(turn(x) * 1.0, positions(t))
    want = gradients((turn(y),), {"x": x, "weight": theirs.w, "bias": theirs.b})
    own = {"x": leaf(x), "weight": leaf(theirs.w), "bias": leaf(theirs.b)}
    halo = torch.zeros(B, 3, e)
    with backend.use(name):
        got = conv(own["x"], own["weight"], own["bias"], halo, reverse=reverse)
        own_gradients = gradients((got,), own)
    compare({"y": got}, {"y": turn(y)})
    compare(own_gradients, want)
    assert torch.equal(next_halo(own["x"], halo, reverse=reverse), turn(cache))


@pytest.mark.parametrize("name", BACKENDS)
def test_conv_one_position_after_the_halo(recurrentgemma: ModuleType, name: str) -> None:
    # Their cached convolution takes one position at a time.
    e = CONFIG.recurrent_width
    theirs = scrambled(recurrentgemma.layers.Conv1D(width=e, temporal_width=4))
    x, halo = draw(B, 1, e), draw(B, 3, e, seed=1)
    y, cache = theirs(x.clone(), positions(1, first=9), cache=halo)
    with backend.use(name):
        compare({"y": conv(x, theirs.w, theirs.b, halo, reverse=False)}, {"y": y})
    assert torch.equal(next_halo(x, halo, reverse=False), cache)


def our_block(weights: Mapping[str, Tensor], direction: int) -> tuple[HawkBlock, dict[str, Tensor]]:
    """A block with the given weights in one direction, and the parameters that got them by name."""
    block = build(CONFIG, seed=1).blocks[0]
    return block, copy_weights(block, weights, direction)


def run_one_direction(block: HawkBlock, x: Tensor, *, direction: int) -> tuple[Tensor, DirectionState]:
    """Run our residual block with nothing from the other direction."""
    u = block.prepare(x, NO_WORKSPACE)
    y, state = block.scan(
        u,
        block.initial_state(x.shape[0], x.device),
        weights=direction,
        reverse=direction == 1,
        reset=True,
        ws=NO_WORKSPACE,
    )
    return block.combine(x, u, y, torch.zeros_like(y), NO_WORKSPACE), state


def compare_blocks(
    theirs: nn.Module,
    run: Callable[[Tensor], Tensor],
    translate: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    direction: int,
) -> None:
    """Compare output and all gradients; `translate` gives things named as their parameters our names."""
    turn = oriented(direction == 1)
    x = leaf(draw(B, T, CONFIG.width))
    y = turn(run(turn(x)))
    parameters = dict(theirs.named_parameters())
    want = gradients((y,), {"x": x, **parameters})
    block, mine = our_block(translate(parameters), direction)
    own_x = leaf(x)
    got, _ = run_one_direction(block, own_x, direction=direction)
    got_gradients = gradients((got,), {"x": own_x, **mine})
    compare({"y": got}, {"y": y})
    compare(got_gradients, {"x": want["x"], **translate(want)})


@pytest.mark.parametrize("direction", [0, 1])
@pytest.mark.parametrize("name", BACKENDS)
def test_residual_block(recurrentgemma: ModuleType, name: str, direction: int) -> None:
    theirs = scrambled(recurrentgemma_block(recurrentgemma, CONFIG))
    with backend.use(name):
        compare_blocks(theirs, lambda x: theirs(x, positions(T), return_cache=False)[0], of_recurrentgemma, direction)


def test_residual_block_goes_on_from_its_state(recurrentgemma: ModuleType) -> None:
    # Their block after a prompt, one position at a time, is ours on the next chunk.
    theirs = scrambled(recurrentgemma_block(recurrentgemma, CONFIG))
    x = draw(B, T, CONFIG.width)
    prompt = T - 7
    with torch.no_grad():
        _, cache = theirs(x[:, :prompt], positions(prompt))
        steps = []
        for t in range(prompt, T):
            y, cache = theirs(x[:, t : t + 1], positions(1, first=t), cache)
            steps.append(y)
        block, _ = our_block(of_recurrentgemma(dict(theirs.named_parameters())), 0)
        _, state = run_one_direction(block, x[:, :prompt].contiguous(), direction=0)
        rest = x[:, prompt:].contiguous()
        u = block.prepare(rest, NO_WORKSPACE)
        y, state = block.scan(u, state, weights=0, reverse=False, reset=False, ws=NO_WORKSPACE)
        got = block.combine(rest, u, y, torch.zeros_like(y), NO_WORKSPACE)
    compare(
        {"y": got, "h": state.h, "halo": state.halo},
        {"y": torch.cat(steps, 1), "h": cache.rg_lru_state, "halo": cache.conv1d_state},
    )


@pytest.mark.parametrize("direction", [0, 1])
def test_residual_block_of_transformers(direction: int) -> None:
    pytest.importorskip("transformers", reason="the second oracle is transformers' RecurrentGemma")
    theirs = scrambled(transformers_block(CONFIG))
    run: Callable[..., Any] = partial(theirs, position_ids=positions(T), attention_mask=None, use_cache=False)
    compare_blocks(theirs, run, of_transformers, direction)


@pytest.mark.parametrize("library", ["recurrentgemma", "transformers"])
def test_both_directions_at_once(request: pytest.FixtureRequest, library: str) -> None:
    if library == "transformers":
        pytest.importorskip("transformers", reason="the second oracle is transformers' RecurrentGemma")
        pair, translate = [transformers_block(CONFIG) for _ in range(2)], of_transformers
    else:
        modules = request.getfixturevalue("recurrentgemma")
        pair, translate = [recurrentgemma_block(modules, CONFIG) for _ in range(2)], of_recurrentgemma
    one, other = (scrambled(block, seed=seed) for seed, block in enumerate(pair))
    ours = build(CONFIG, seed=1).blocks[0]
    copy_weights(ours, translate(dict(other.named_parameters())), 1)
    copy_weights(ours, translate(dict(one.named_parameters())), 0)
    x = draw(B, T, CONFIG.width)
    with torch.no_grad():
        want = BothWays(one, other)(x)
        u, start = ours.prepare(x, NO_WORKSPACE), ours.initial_state(B, x.device)
        y1, y2 = (
            ours.scan(u, start, weights=k, reverse=k == 1, reset=True, ws=NO_WORKSPACE)[0] for k in (0, 1)
        )
        compare({"y": ours.combine(x, u, y1, y2, NO_WORKSPACE)}, {"y": want})
