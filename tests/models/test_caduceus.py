"""Caduceus's blocks against other implementations of Mamba, and its initial weights."""

import math
from typing import cast

import pytest
import torch

from lrgenome.config import CaduceusConfig, preset
from lrgenome.models.caduceus import Caduceus, CaduceusBlock, Direction, build
from lrgenome.ops.jit import set_threads
from lrgenome.ops.norm import naive_rms_norm
from lrgenome.ops.workspace import Workspace

pytest.importorskip("transformers")
from mamba_oracles import copy_weights, mambapy_mixer, tied_pair, transformers_mixer

CONFIG = CaduceusConfig(layers=1, width=20, state=8, dt_rank=3)


@pytest.fixture(autouse=True)
def one_thread():
    """Barriers between threads would cost more than these small sums."""
    before = torch.get_num_threads()
    set_threads(1)
    yield
    set_threads(before)


def mixed(block: CaduceusBlock, x: torch.Tensor) -> torch.Tensor:
    """What a block adds to its input."""
    ws = Workspace(enabled=False)
    u, start = block.prepare(x, ws), block.initial_state(len(x), x.device)
    ys = [block.scan(u, start, weights=k, reverse=bool(k), reset=True, ws=ws)[0] for k in (0, 1)]
    return block.combine(x, u, *ys, ws) - x


@pytest.mark.parametrize("make", [transformers_mixer, mambapy_mixer])
@pytest.mark.parametrize("length", [1, 3, 70])
def test_a_block_is_two_mixers_of_another_library(make, length):
    if make is mambapy_mixer:
        pytest.importorskip("mambapy")
    rival = tied_pair(CONFIG, make)
    block = cast(CaduceusBlock, build(CONFIG, seed=0).blocks[0])
    for direction, mixer in enumerate((rival.one, rival.other)):
        copy_weights(block, dict(mixer.named_parameters()), direction)
    x = torch.randn(2, length, CONFIG.width, generator=torch.Generator().manual_seed(2), requires_grad=True)
    weight = torch.randn(2, length, CONFIG.width, generator=torch.Generator().manual_seed(3))
    want = rival(naive_rms_norm(x, block.norm, torch.float32, 1e-5))
    got = mixed(block, x)
    assert (got - want).abs().max() < 1e-5 * want.abs().max()
    leaves = [x, rival.one.get_parameter("in_proj.weight"), rival.one.get_parameter("A_log")]
    expected = torch.autograd.grad((want * weight).sum(), leaves)
    ours = [x, block.in_branch_weight, block.in_gate_weight, cast(Direction, block.directions[0]).a_log]
    dx, d_branch, d_gate, d_a = torch.autograd.grad((got * weight).sum(), ours)
    assert (dx - expected[0]).abs().max() < 1e-5 * expected[0].abs().max()
    assert (d_a - expected[2]).abs().max() <= 1e-5 * expected[2].abs().max()
    # The in-projection is shared: its gradient is that of both directions of theirs.
    other = torch.autograd.grad(
        (rival(naive_rms_norm(x, block.norm, torch.float32, 1e-5)) * weight).sum(),
        [mixer.get_parameter("in_proj.weight") for mixer in (rival.one, rival.other)],
    )
    both = other[0] + other[1]
    assert (torch.cat([d_branch, d_gate]) - both).abs().max() < 1e-5 * both.abs().max()


@pytest.mark.parametrize("name", ["caduceus-7.7m", "caduceus-7.7m-ps", "caduceus-50m"])
def test_presets_have_their_published_sizes(name):
    with torch.device("meta"):
        model = Caduceus(preset(name))  # type: ignore[arg-type]
    assert sum(p.numel() for p in model.parameters()) == preset(name).parameters


def test_initial_steps_are_log_uniform_and_states_those_of_mamba():
    config = CaduceusConfig(layers=2, width=512, dt_min=1e-3, dt_max=0.1)
    own = cast(Direction, cast(CaduceusBlock, build(config, seed=0).blocks[1]).directions[1])
    logs = torch.log(torch.nn.functional.softplus(own.dt_bias.detach()))
    assert logs.min() >= math.log(1e-3) - 1e-4 and logs.max() <= math.log(0.1) + 1e-4
    assert logs.mean().item() == pytest.approx(0.5 * math.log(1e-4), abs=0.15)
    assert logs.std().item() == pytest.approx(math.log(100.0) / math.sqrt(12.0), rel=0.1)
    assert torch.equal(torch.exp(own.a_log[3]).round(), torch.arange(1.0, 17.0))


def test_seeds_make_weights_and_leave_global_randomness_alone():
    state = torch.random.get_rng_state()
    one, same, other = (build(CONFIG, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.embedding, other.embedding)


def test_an_untied_head_is_its_own():
    config = CaduceusConfig(layers=1, width=8, equivariant=True, tied=False)
    model = build(config, seed=0)
    assert model.head is not None and sum(p.numel() for p in model.parameters()) == config.parameters
    hidden = torch.randn(3, 16)
    complement = [*range(7), 10, 9, 8, 7, *range(11, 16)]
    want = hidden[:, :8] @ model.head.t() + hidden[:, 8:] @ model.head[complement].t()
    torch.testing.assert_close(model.logits(hidden), want)


def test_inference_keeps_what_the_recurrence_uses_in_float32():
    model = build(CONFIG, seed=0).for_inference(torch.bfloat16)
    narrow = {name.split(".")[-1] for name, p in model.named_parameters() if p.dtype == torch.bfloat16}
    assert narrow == {"in_branch_weight", "in_gate_weight", "out_weight", "x_weight", "dt_weight"}
    assert not any(p.requires_grad for p in model.parameters())
