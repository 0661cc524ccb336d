"""Snapshots of training made to do harm."""

import os

import pytest
import torch
from malice import CONFIGS, edit, refusal
from safetensors.torch import load_file, save_file

from lrgenome.models.families import build
from lrgenome.training.snapshot import load_snapshot, load_weights, save_snapshot

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def run(tmp_path):
    model = build(CONFIGS["hawk"], seed=1)
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    save_snapshot(tmp_path / "run", model, optimizer, {"model": model.config.to_json()}, 3)
    return tmp_path / "run"


def resume(folder):
    model = build(CONFIGS["hawk"], seed=1)
    return load_snapshot(folder, model, torch.optim.AdamW(model.parameters()), {"model": model.config.to_json()})


IDENTITIES = (
    "[" * 100_000,
    "{}",
    "null",
    '{"step": 4}',
    '{"step": "3"}',
    '{"step": 3}',
    '{"step": 3, "model": {"width": 1}}',
    "",
)


@pytest.mark.parametrize("text", IDENTITIES)
def test_snapshots_without_an_identity(run, text):
    (run / "snapshot-000000003" / "identity.json").write_text(text)
    refusal(run, load_weights)
    if text != '{"step": 3}' and "model" not in text:  # those are of other settings, which is another error
        refusal(run, resume)


@pytest.mark.parametrize("name", ["identity.json", "state.safetensors"])
def test_snapshots_that_are_pipes(run, name):
    path = run / "snapshot-000000003" / name
    path.unlink()
    os.mkfifo(path)
    refusal(run, load_weights)
    refusal(run, resume)


def test_snapshots_of_a_larger_model(run):
    edit(run / "snapshot-000000003" / "identity.json", lambda v: v["model"].update(mlp_width=10**9))
    assert "too few weights" in refusal(run, load_weights)


STATES = {
    "no weights": lambda t: [t.pop(n) for n in list(t) if n.startswith("model/")],
    "a weight of another shape": lambda t: t.update({"model/final_norm": torch.zeros(1)}),
    "weights that are no numbers": lambda t: t["model/final_norm"].fill_(float("nan")),
    "a moment of no weight": lambda t: t.update({"optimizer/nothing/exp_avg": torch.zeros(16)}),
    "a moment of no kind": lambda t: t.update({"optimizer/final_norm/evil": torch.zeros(16)}),
    "a moment without a name": lambda t: t.update({"optimizer/": torch.zeros(16)}),
    "a moment of another shape": lambda t: t.update({"optimizer/final_norm/exp_avg": torch.zeros(3)}),
    "a moment that is no number": lambda t: t["optimizer/final_norm/exp_avg"].fill_(float("inf")),
    "half of the moments": lambda t: t.pop("optimizer/final_norm/exp_avg_sq"),
    "steps below one": lambda t: t["optimizer/final_norm/step"].fill_(-3.0),
}


@pytest.mark.parametrize("case", STATES)
def test_snapshots_with_another_state(run, case):
    path = run / "snapshot-000000003" / "state.safetensors"
    tensors = load_file(path)
    STATES[case](tensors)
    save_file(tensors, path)
    refusal(run, resume)
    if "moment" not in case and "steps" not in case:
        refusal(run, load_weights)
