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
    monkeypatch.setattr(setup, "free_memory", lambda device, limit: 1_000)
    monkeypatch.setattr(setup, "free_disk", lambda folder: 2_000)
    _, runner = setup.ready(tiny_model, **OPTIONS)
    with pytest.raises(MemoryLimitError, match=r"a window of 10,000 bp needs .* of memory"):
        runner.plan(1, 10_000)


def test_free_memory_of_the_cpu_is_some():
    assert compute.free_memory(torch.device("cpu")) > 1 << 20


def test_free_memory_of_a_gpu_is_asked_of_its_driver(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (123, 456))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 40)
    assert compute.free_memory(torch.device("cuda:1")) == 123
    assert compute.free_memory(torch.device("cuda:1"), 100) == 60


def test_a_limit_is_of_all_that_the_process_holds(monkeypatch):
    monkeypatch.setattr(compute, "available_memory", lambda: 5_000)
    monkeypatch.setattr(compute, "used_memory", lambda: 3_000)
    cpu = torch.device("cpu")
    assert [compute.free_memory(cpu, limit) for limit in (None, 9_000, 4_000, 2_000)] == [5_000, 5_000, 1_000, 0]


def test_under_a_limit_windows_are_run_in_less(tiny_model, monkeypatch):
    used = compute.used_memory()
    _, plenty = setup.ready(tiny_model, **OPTIONS)
    how = plenty.plan(1, 1_000_000)
    assert how.keep_prepared and not how.on_disk
    monkeypatch.setattr(compute, "used_memory", lambda: used)
    _, runner = setup.ready(tiny_model, **OPTIONS, max_memory=used + how.ram)
    less = runner.plan(1, 1_000_000)
    assert not less.keep_prepared and not less.on_disk and less.ram < how.ram
    _, runner = setup.ready(tiny_model, **OPTIONS, max_memory=used + how.ram // 8)
    assert runner.plan(1, 1_000_000).on_disk


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
