from pathlib import Path

import pytest
import torch

from lrgenome.errors import DeviceError, MemoryLimitError, ModelError, UsageError
from lrgenome.tasks import compute, setup

OPTIONS = {
    "gpu": None, "device": "cpu", "threads": 1, "precision": "float32", "auto": None, "chunk": None,
    "transfer": "exact", "store": "auto", "tmpdir": None,
}  # fmt: skip


def test_ready_gives_a_frozen_model_and_its_runner(tiny_model, tmp_path):
    loaded, runner = setup.ready(tiny_model, **{**OPTIONS, "chunk": 50, "tmpdir": tmp_path})
    with runner:
        assert loaded.name == "tiny" and len(loaded.sha256) == 64
        assert not any(p.requires_grad for p in loaded.model.parameters())
        assert runner.model is loaded.model and runner.chunk == 50
        parts = list(runner.stream(torch.randint(7, 11, (1, 120), dtype=torch.uint8)))
        assert [(p.start, p.end) for p in parts] == [(0, 50), (50, 100), (100, 120)]


def test_bfloat16_weights(tiny_model):
    loaded, _ = setup.ready(tiny_model, **{**OPTIONS, "precision": "bfloat16"})
    assert loaded.model.compute_dtype == torch.bfloat16
    assert loaded.model.blocks[0].up_weight.dtype == torch.bfloat16
    assert loaded.model.blocks[0].directions[0].a_param.dtype == torch.float32


def test_memory_is_asked_for_when_a_window_is_planned(tiny_model, monkeypatch):
    monkeypatch.setattr(setup, "free_memory", lambda device: 1_000)
    monkeypatch.setattr(setup, "free_disk", lambda folder: 2_000)
    _, runner = setup.ready(tiny_model, **OPTIONS)
    with pytest.raises(MemoryLimitError, match=r"a window of 10,000 bp needs .* of memory"):
        runner.plan(1, 10_000)


def test_free_memory_of_the_cpu_is_some():
    assert compute.free_memory(torch.device("cpu")) > 1 << 20


def test_free_memory_of_a_gpu_is_asked_of_its_driver(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (123, 456))
    assert compute.free_memory(torch.device("cuda:1")) == 123


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"device": None, "gpu": 99}, DeviceError, "cuda:99"),
        ({"precision": "half"}, UsageError, "--precision"),
        ({"transfer": "some"}, UsageError, "--transfer: got 'some', expected one of exact, forward, none"),
        ({"tmpdir": Path("/nowhere/at/all")}, UsageError, "--tmpdir: got /nowhere/at/all"),
    ],
)
def test_settings_that_cannot_be(tiny_model, change, error, message):
    with pytest.raises(error, match=message):
        setup.ready(tiny_model, **{**OPTIONS, **change})


def test_an_unknown_store_is_refused_with_the_first_plan(tiny_model):
    _, runner = setup.ready(tiny_model, **{**OPTIONS, "store": "tape"})
    with pytest.raises(UsageError, match="--store: got 'tape', expected one of auto, ram, disk"):
        runner.plan(1, 100)


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match="no such folder; expected one with config"):
        setup.ready(tmp_path / "none", **OPTIONS)
