import logging
import os
from pathlib import Path

import pytest
import torch

from lrgenome.errors import DeviceError, UsageError
from lrgenome.io import resources
from lrgenome.tasks import compute


@pytest.fixture
def log(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lrgenome"), "propagate", True)
    caplog.set_level(logging.INFO, "lrgenome")
    return caplog


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")


def test_the_cpu_is_said_when_there_is_no_gpu(no_gpu, log):
    assert compute.choose_device(None, None) == torch.device("cpu")
    assert log.messages == ["device: cpu (CPU)"]


def test_the_first_gpu_is_chosen_and_said(two_gpus, log):
    assert compute.choose_device(None, None) == torch.device("cuda:0")
    assert log.messages == ["device: cuda:0 (A GPU)"]


@pytest.mark.parametrize(
    ("gpu", "name", "chosen"),
    [(1, None, "cuda:1"), (None, "cuda:1", "cuda:1"), (None, "cuda", "cuda"), (None, "cpu", "cpu")],
)
def test_what_was_asked_for_is_taken(two_gpus, gpu, name, chosen):
    assert compute.choose_device(gpu, name) == torch.device(chosen)


@pytest.mark.parametrize(("gpu", "name"), [(0, None), (None, "cuda"), (None, "cuda:3")])
def test_a_gpu_that_is_not_there_is_an_error(no_gpu, gpu, name):
    with pytest.raises(DeviceError, match=r"cuda.*: expected .*this process sees 0"):
        compute.choose_device(gpu, name)


def test_an_index_past_the_last_gpu_is_an_error(two_gpus):
    with pytest.raises(DeviceError, match=r"cuda:2: expected .*this process sees 2"):
        compute.choose_device(2, None)


def test_processes_of_a_machine_share_it(two_gpus, monkeypatch):
    assert compute.share_machine(0, None, None) == (0, None, None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert compute.share_machine(None, None, None) == (1, None, 4)
    assert compute.share_machine(None, "cuda", 3) == (1, None, 3)
    assert compute.share_machine(None, "cpu", 3) == (None, "cpu", 3)
    for gpu, device in ((0, None), (None, "cuda:1")):
        with pytest.raises(UsageError, match="for 2 processes; each takes a GPU of its own"):
            compute.share_machine(gpu, device, None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert compute.share_machine(None, None, None) == (None, None, 4)


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:x", "meta", ""])
def test_unknown_devices(no_gpu, name):
    with pytest.raises(UsageError, match=r"--device: got .* expected cpu, cuda or cuda:N"):
        compute.choose_device(None, name)


def test_gpu_and_device_exclude_each_other():
    with pytest.raises(UsageError, match="--gpu and --device exclude each other"):
        compute.choose_device(0, "cpu")


def test_threads_default_to_what_the_process_may_use(monkeypatch):
    given = []
    monkeypatch.setattr(compute, "set_threads", given.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert compute.choose_threads(None) == 3
    assert compute.choose_threads(1) == 1
    assert given == [3, 1]


def test_threads_are_taken_where_there_is_no_affinity(monkeypatch):
    given = []
    monkeypatch.setattr(compute, "set_threads", given.append)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(compute, "available_cpus", lambda: resources.available_cpus(cgroup_of_process=Path("/none")))
    assert [compute.choose_threads(threads) for threads in (5, 9, None)] == [5, 8, 8]
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert compute.choose_threads(None) == 1
    assert given == [5, 8, 8, 1]


@pytest.mark.parametrize(
    ("precision", "native", "auto", "dtype"),
    [
        ("float32", True, None, torch.float32),
        ("bfloat16", False, None, torch.bfloat16),
        ("auto", True, None, torch.bfloat16),
        ("auto", False, None, torch.float32),
        ("auto", True, torch.float32, torch.float32),
    ],
)
def test_precision(no_gpu, monkeypatch, precision, native, auto, dtype):
    monkeypatch.setattr(compute, "native_bfloat16", lambda device: native)
    chosen = compute.choose_compute(gpu=None, device=None, threads=1, precision=precision, auto=auto)
    assert chosen == (torch.device("cpu"), dtype, 1)
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32


def test_unknown_precision():
    with pytest.raises(UsageError, match="--precision: got 'float64', expected one of auto"):
        compute.choose_compute(gpu=None, device=None, threads=1, precision="float64")
