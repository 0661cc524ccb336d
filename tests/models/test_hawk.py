"""Bidirectional Hawk: its size, what the directions share, and how long a fresh one remembers."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import softplus

from lrgenome.config import PRESETS, HawkConfig
from lrgenome.glossary import FORWARD, REVERSE
from lrgenome.models.base import DirectionState, Prepared
from lrgenome.models.hawk import DECAY_SCALE, Hawk, build, initial_lambda
from lrgenome.ops.workspace import Workspace

TINY = HawkConfig(layers=2, width=8, recurrent_width=12, heads=3, mlp_width=16)
WIDE = 200_000
"""Channels of a draw that quantiles are taken of."""


def ids_of(sequence: list[int]) -> torch.Tensor:
    return torch.tensor([sequence], dtype=torch.uint8)


def neutral_half_lives(lam: torch.Tensor) -> np.ndarray:
    """Half-life in bp of each channel at a gate of 1/2: a = exp(-8 * softplus(lambda) / 2)."""
    a = np.exp(-8.0 * np.logaddexp(0.0, lam.double().numpy()) / 2.0)
    return np.log(0.5) / np.log(a)


def draw(half_life_max: float | None, half_life_share: float = 1.0) -> np.ndarray:
    config = HawkConfig(
        layers=1, width=1, recurrent_width=WIDE, heads=1, mlp_width=1, half_life_max=half_life_max,
        half_life_share=half_life_share,
    )  # fmt: skip
    torch.manual_seed(0)
    return neutral_half_lives(initial_lambda(config))


@pytest.mark.parametrize("name", sorted(name for name, of in PRESETS.items() if isinstance(of, HawkConfig)))
def test_the_model_has_as_many_weights_as_its_settings_say(name):
    with torch.device("meta"):
        model = Hawk(PRESETS[name])
    assert sum(p.numel() for p in model.parameters()) == PRESETS[name].parameters


def test_odd_shapes_have_as_many_weights_as_their_settings_say():
    config = HawkConfig(layers=3, width=10, recurrent_width=14, heads=7, mlp_width=9, conv_width=3, vocab=20)
    assert sum(p.numel() for p in Hawk(config).parameters()) == config.parameters


def test_directions_own_only_convolution_and_recurrence():
    block = build(TINY, seed=0).blocks[0]
    own = {name for name, _ in block.directions[FORWARD].named_parameters()}
    assert own == {"conv_weight", "conv_bias", "gate_weight", "gate_bias", "a_param"}
    assert len(block.directions) == 2
    shared = {name for name, _ in block.named_parameters() if not name.startswith("directions.")}
    assert shared == {
        "mixer_norm", "in_branch_weight", "in_branch_bias", "in_gate_weight", "in_gate_bias", "out_weight",
        "out_bias", "mlp_norm", "up_weight", "up_bias", "down_weight", "down_bias",
    }  # fmt: skip
    for a, b in zip(
        block.directions[FORWARD].parameters(), block.directions[REVERSE].parameters(), strict=True
    ):
        assert a.data_ptr() != b.data_ptr()


def test_projections_are_applied_to_the_sum_of_both_directions():
    model = build(TINY, seed=0).double().set_compute_dtype(torch.float64)
    block, ws = model.blocks[0], Workspace(enabled=False)
    torch.nn.init.normal_(block.out_bias)
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(1, 5, 8, generator=rng, dtype=torch.float64)
    y1, y2 = torch.randn(2, 1, 5, 12, generator=rng, dtype=torch.float64)
    with torch.no_grad():
        u = block.prepare(x, ws)
        both = block.combine(x, u, y1, y2, ws)
        assert torch.allclose(both, block.combine(x, u, y2, y1, ws), atol=1e-14)
        assert torch.allclose(both, block.combine(x, u, y1 + y2, torch.zeros_like(y1), ws), atol=1e-14)


def test_head_is_the_embedding():
    model = build(TINY, seed=0)
    hidden = torch.randn(3, 8)
    logits = model.logits(hidden)
    assert logits.shape == (3, 16) and logits.dtype == torch.float32
    assert torch.allclose(logits, hidden @ model.embedding.t())
    assert [name for name, _ in model.named_parameters() if "blocks" not in name] == [
        "embedding",
        "final_norm",
    ]


def test_logits_are_float32_for_bfloat16_and_float64_for_float64():
    model = build(TINY, seed=0)
    assert model.logits(torch.randn(3, 8, dtype=torch.bfloat16)).dtype == torch.float32
    assert model.double().logits(torch.randn(3, 8, dtype=torch.float64)).dtype == torch.float64


def test_the_ring_forgets_half_within_173_bp():
    lives = draw(None)
    assert lives.max() == pytest.approx(math.log(2) / (-4 * math.log(0.999)), rel=1e-3)
    assert lives.max() == pytest.approx(173.2, abs=0.5)
    assert lives.min() == pytest.approx(math.log(2) / (-4 * math.log(0.9)), rel=1e-3)
    # The square of the radius is uniform on the ring.
    squares = 0.5 ** (1 / (2 * lives))
    expected = 0.81 + (0.999**2 - 0.81) * np.array([0.1, 0.5, 0.9])
    assert np.quantile(squares, [0.1, 0.5, 0.9]) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("longest", [100.0, 12_000.0, 1e6])
def test_log_uniform_half_lives_cover_2_bp_to_the_longest(longest):
    lives = draw(longest)
    share = np.array([0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99])
    expected = np.log(2.0) + share * np.log(longest / 2.0)
    assert np.log(np.quantile(lives, share)) == pytest.approx(expected, abs=0.06)
    assert 2.0 <= lives.min() * 1.001 and lives.max() <= longest * 1.01


@pytest.mark.parametrize("share", [0.1, 0.125, 0.9])
def test_a_share_of_the_channels_remembers_past_the_ring(share):
    ring, lives = draw(None), draw(48_000.0, share)
    long = lives != ring  # all others are as if there were no such share
    assert lives[long].min() > 173
    assert long.sum() == pytest.approx(share * WIDE, rel=5e-3)
    share_of = np.array([0.1, 0.25, 0.5, 0.75, 0.9])
    expected = np.log(173.2) + share_of * np.log(48_000 / 173.2)
    assert np.log(np.quantile(lives[long], share_of)) == pytest.approx(expected, abs=0.06)
    assert lives.max() <= 48_000 * 1.01
    per_head = long.reshape(100, -1).sum(1)
    assert per_head.max() - per_head.min() <= 0.02 * per_head.mean()


@pytest.mark.parametrize("direction", [FORWARD, REVERSE])
def test_a_channel_halves_after_its_half_life(direction):
    config = HawkConfig(layers=1, width=4, recurrent_width=6, heads=2, mlp_width=4, half_life_max=3000.0)
    block = build(config, seed=3).double().set_compute_dtype(torch.float64).blocks[0]
    own = block.directions[direction]
    lives = torch.tensor([2.0, 17.0, 173.0, 500.0, 1000.0, 3000.0], dtype=torch.float64)
    with torch.no_grad():
        own.gate_weight.zero_()  # a neutral gate
        own.a_param.copy_(torch.log(torch.expm1(math.log(2.0) / (4.0 * lives))))
        assert torch.allclose(DECAY_SCALE * softplus(own.a_param) / 2, math.log(2.0) / lives)
        nothing = torch.zeros(1, 3000, 6, dtype=torch.float64)
        start = DirectionState(torch.ones(1, 6, dtype=torch.float64), nothing[:, :3])
        y, end = block.scan(
            Prepared(nothing, nothing), start,
            weights=direction, reverse=direction == REVERSE, reset=False, ws=Workspace(enabled=False),
        )  # fmt: skip
    if direction == REVERSE:
        y = y.flip(1)
    for channel, life in enumerate(lives.long().tolist()):
        assert y[0, life - 1, channel].item() == pytest.approx(0.5, rel=1e-6)
    assert torch.equal(end.h, y[:, -1])


def test_seed_decides_the_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    one, two, other = build(TINY, seed=1), build(TINY, seed=1), build(TINY, seed=2)
    assert torch.equal(before, torch.random.get_rng_state())
    for (name, a), (_, b) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(one.embedding, other.embedding)
    assert not torch.equal(build(TINY).embedding, build(TINY).embedding)


def test_initial_scale_of_projections():
    config = HawkConfig(layers=8, width=256, recurrent_width=320, heads=4, mlp_width=512)
    block = build(config, seed=0).blocks[0]
    for tensor, std in [
        (block.in_branch_weight, (1 / 256) ** 0.5),
        (block.in_gate_weight, (1 / 256) ** 0.5),
        (block.up_weight, (1 / 256) ** 0.5),
        (block.out_weight, (2 / 8 / 320) ** 0.5),
        (block.down_weight, (2 / 8 / 512) ** 0.5),
        (block.directions[0].gate_weight, (1 / 80) ** 0.5),
        (block.directions[1].conv_weight, (0.01 / 4) ** 0.5),
    ]:
        assert tensor.std().item() == pytest.approx(std, rel=0.05)
    for name, tensor in block.named_parameters():
        if name.endswith(("bias", "norm")):
            assert not tensor.any(), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_inference_freezes_and_keeps_the_recurrence_wide(dtype):
    model = build(TINY, seed=0).for_inference(dtype)
    assert not any(p.requires_grad for p in model.parameters()) and not model.training
    block, wide = model.blocks[0], torch.float64 if dtype == torch.float64 else torch.float32
    assert (
        block.in_branch_weight.dtype == block.directions[0].gate_weight.dtype == block.up_bias.dtype == dtype
    )
    own = block.directions[0]
    for tensor in (
        own.a_param,
        own.conv_weight,
        own.gate_bias,
        block.mixer_norm,
        model.embedding,
        model.final_norm,
    ):
        assert tensor.dtype == wide
    state = block.initial_state(2, torch.device("cpu"))
    assert state.h.dtype == wide and state.halo.dtype == dtype
    assert state.h.shape == (2, 12) and state.halo.shape == (2, 3, 12)
    assert model.embed(ids_of([7, 8])).dtype == dtype
    assert (model.prepared_width(), model.scan_width()) == (24, 12)
