"""The learning rate over a run, and which weights decay."""

from itertools import pairwise

import pytest
import torch

from lrgenome.config import HawkConfig
from lrgenome.models.hawk import build
from lrgenome.training.optim import build_optimizer, learning_rate

LOW, HIGH = 1e-8, 1e-4


def rate(step: int, *, warmup: int = 100, steps: int = 1100) -> float:
    return learning_rate(step, warmup=warmup, steps=steps, low=LOW, high=HIGH)


def test_values_by_hand():
    assert rate(0) == pytest.approx(LOW + (HIGH - LOW) / 100)
    assert rate(49) == pytest.approx(LOW + (HIGH - LOW) / 2)
    assert rate(99) == rate(100) == pytest.approx(HIGH)  # end of the warm-up, start of the cosine
    assert rate(350) == pytest.approx(LOW + (HIGH - LOW) * (2 + 2**0.5) / 4)
    assert rate(600) == pytest.approx((LOW + HIGH) / 2)
    assert rate(1099) == pytest.approx(LOW + (HIGH - LOW) * 2.47e-6, rel=1e-2)
    assert rate(1100) == rate(5000) == pytest.approx(LOW)


def test_it_rises_then_falls_within_its_bounds():
    rates = [rate(step) for step in range(1101)]
    assert all(a < b for a, b in pairwise(rates[:100]))
    assert all(a > b for a, b in pairwise(rates[100:]))
    assert min(rates) >= LOW and max(rates) <= HIGH


def test_without_warmup_it_starts_at_the_top():
    assert rate(0, warmup=0, steps=10) == pytest.approx(HIGH)
    assert rate(5, warmup=0, steps=10) == pytest.approx((LOW + HIGH) / 2)
    assert rate(0, warmup=0, steps=1) == pytest.approx(HIGH)


def test_only_the_matrices_decay():
    model = build(HawkConfig(layers=2, width=8, recurrent_width=12, heads=3, mlp_width=16), seed=0)
    optimizer = build_optimizer(model, rate=1e-3, betas=(0.8, 0.9), weight_decay=0.3)
    assert isinstance(optimizer, torch.optim.AdamW)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, plain = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    per_block = {
        "in_branch_weight", "in_gate_weight", "out_weight", "up_weight", "down_weight",
        "directions.0.gate_weight", "directions.1.gate_weight",
    }  # fmt: skip
    assert decayed == {f"blocks.{i}.{name}" for i in (0, 1) for name in per_block}
    assert decayed | plain == set(names.values()) and not decayed & plain
    assert {
        "embedding",
        "final_norm",
        "blocks.1.directions.0.a_param",
        "blocks.0.directions.1.conv_weight",
    } <= plain
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert all(group["lr"] == 1e-3 and group["betas"] == (0.8, 0.9) for group in optimizer.param_groups)


def test_decay_shrinks_matrices_alone():
    model = build(HawkConfig(layers=1, width=8, recurrent_width=12, heads=3, mlp_width=16), seed=0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, rate=0.1, betas=(0.9, 0.95), weight_decay=0.5)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    after = dict(model.named_parameters())
    assert torch.allclose(after["blocks.0.up_weight"], before["blocks.0.up_weight"] * 0.95)
    for name in ("embedding", "blocks.0.directions.0.a_param", "blocks.0.directions.0.conv_weight"):
        assert torch.equal(after[name], before[name])
