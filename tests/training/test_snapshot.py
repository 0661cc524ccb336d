"""Snapshots: everything comes back bit for bit, whatever a kill left lying about."""

import copy
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from lrgenome.config import HawkConfig
from lrgenome.errors import ModelError, OutputError, UsageError
from lrgenome.models.hawk import Hawk, build
from lrgenome.training.optim import build_optimizer
from lrgenome.training.snapshot import last_step, load_snapshot, load_weights, save_snapshot, snapshots

TINY = HawkConfig(layers=1, width=8, recurrent_width=12, heads=3, mlp_width=16)
IDENTITY = {
    "settings": {"lr": 1e-4, "window": 12000, "precision": "float32"},
    "model": TINY.to_json(),
    "data": ["yeast 1.0 yeast.fa:12:ab ('1:1-10',) ()"],
}


def start(seed: int = 0) -> tuple[Hawk, torch.optim.AdamW]:
    model = build(TINY, seed=seed)
    return model, build_optimizer(model, rate=1e-2, betas=(0.9, 0.95), weight_decay=0.1)


def step(model, optimizer, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    optimizer.step()


def weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def run(tmp_path):
    """A run of three steps with a snapshot after the third."""
    model, optimizer = start()
    for number in range(3):
        step(model, optimizer, number)
    save_snapshot(tmp_path, model, optimizer, IDENTITY, 3)
    return tmp_path


def test_a_restored_run_goes_on_bit_for_bit(run):
    model, optimizer = start()
    for number in range(5):
        step(model, optimizer, number)
    resumed, its_optimizer = start(seed=9)
    assert load_snapshot(run, resumed, its_optimizer, copy.deepcopy(IDENTITY)) == 3
    for number in (3, 4):
        step(resumed, its_optimizer, number)
    assert same(weights(resumed), weights(model))
    for p, q in zip(model.parameters(), resumed.parameters(), strict=True):
        assert same(its_optimizer.state[q], optimizer.state[p])


def test_a_run_without_snapshots_starts_at_zero(tmp_path):
    model, optimizer = start()
    before = weights(model)
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert load_snapshot(folder, model, optimizer, IDENTITY) == last_step(folder) == 0
        assert snapshots(folder) == []
    assert same(weights(model), before) and not optimizer.state


def test_the_last_of_several_is_used_and_older_ones_are_dropped(run):
    model, optimizer = start(seed=4)
    step(model, optimizer, 0)
    for number in (9, 10, 1_000_000_000):
        save_snapshot(run, model, optimizer, IDENTITY, number)
        assert [p.name for p in run.iterdir()] == [f"snapshot-{number:09d}"]
        assert last_step(run) == load_snapshot(run, *start(), IDENTITY) == number


def test_what_a_kill_left_half_written_is_ignored_and_replaced(run):
    (run / "snapshot-partial").mkdir()
    (run / "snapshot-partial" / "state.safetensors").write_bytes(b"half")
    (run / "snapshot-old").mkdir()
    (run / "snapshot-000000001").mkdir()  # its removal was cut short
    resumed, optimizer = start()
    assert load_snapshot(run, resumed, optimizer, IDENTITY) == 3
    save_snapshot(run, resumed, optimizer, IDENTITY, 4)
    assert sorted(p.name for p in run.iterdir()) == ["snapshot-000000004", "snapshot-old"]
    assert load_snapshot(run, *start(), IDENTITY) == 4


@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_a_stop_while_writing_keeps_the_snapshot_before(run, monkeypatch, call):
    model, optimizer = start()
    step(model, optimizer, 7)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            save_snapshot(run, model, optimizer, IDENTITY, 4)
    assert last_step(run) == 3
    assert load_snapshot(run, *start(), IDENTITY) == 3


def test_a_full_disk_is_said_and_keeps_the_snapshot_before(run, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    model, optimizer = start()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match=r"snapshot .*snapshot-000000004: .*No space left"):
            save_snapshot(run, model, optimizer, IDENTITY, 4)
    assert load_snapshot(run, *start(), IDENTITY) == 3


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("settings", "lr"), 2e-4, "settings.lr was 0.0001, is now 0.0002"),
        (("settings", "precision"), "bfloat16", "settings.precision was 'float32', is now 'bfloat16'"),
        (("settings", "clip"), 1.0, "settings.clip was None, is now 1.0"),
        (("model", "width"), 16, "model.width was 8, is now 16"),
        (("data",), ["fly"], "data was ["),
    ],
)
def test_other_settings_are_named(run, path, value, message):
    changed = copy.deepcopy(IDENTITY)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    model, optimizer = start(seed=2)
    before = weights(model)
    with pytest.raises(UsageError) as caught:
        load_snapshot(run, model, optimizer, changed)
    assert "--resume" in str(caught.value) and message in str(caught.value)
    assert same(weights(model), before) and not optimizer.state


@pytest.mark.parametrize("name", ["state.safetensors", "identity.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damage_is_a_model_error(run, name, damage):
    file = run / "snapshot-000000003" / name
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-9])
    for load in (lambda: load_snapshot(run, *start(), IDENTITY), lambda: load_weights(run)):
        with pytest.raises(ModelError, match="snapshot-000000003"):
            load()


def test_weights_alone_can_be_taken_from_a_run(run):
    model, optimizer = start(seed=5)
    load_snapshot(run, model, optimizer, IDENTITY)
    taken = load_weights(run)
    assert taken.config == TINY and same(weights(taken), weights(model))


def test_weights_of_a_run_without_a_snapshot(tmp_path):
    with pytest.raises(ModelError, match="neither a model nor a snapshot"):
        load_weights(tmp_path)


def test_a_snapshot_of_another_shape_is_damaged(run):
    state = run / "snapshot-000000003" / "state.safetensors"
    tensors = load_file(state)
    for change in ({"model/embedding": torch.zeros(3, 3)}, {}):
        save_file({**{k: v for k, v in tensors.items() if k != "model/embedding"}, **change}, state)
        for load in (lambda: load_snapshot(run, *start(), IDENTITY), lambda: load_weights(run)):
            with pytest.raises(ModelError, match="snapshot-000000003"):
                load()


def test_the_identity_is_readable_json(run):
    saved = json.loads((run / "snapshot-000000003" / "identity.json").read_text())
    assert saved == {"step": 3, **IDENTITY}
    tensors = load_file(run / "snapshot-000000003" / "state.safetensors")
    assert {"model/embedding", "optimizer/embedding/exp_avg", "optimizer/embedding/step"} <= set(tensors)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_moments_come_back_to_the_device_of_their_weights(run):
    model, optimizer = start()
    model.cuda()
    load_snapshot(run, model, optimizer, IDENTITY)
    assert all(state["exp_avg"].is_cuda for state in optimizer.state.values())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
