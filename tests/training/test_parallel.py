"""Processes that share a run: what one of them would learn, killed and resumed with another number of them."""

import csv
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import SETTINGS, TINY, change

from lrgenome.models.families import build
from lrgenome.training.parallel import ALONE, Group
from lrgenome.training.snapshot import last_step, snapshots
from lrgenome.training.step import gradients

ARGUMENTS = [
    "--window", "64", "--batch-size", "2", "--accumulate", "2", "--steps", "8", "--warmup", "2", "--lr", "1e-2",
    "--val-every", "4", "--val-windows", "2", "--val-lengths", "32", "--precision", "float32", "--device", "cpu",
    "--save-every", "0", "-t", "1",
]  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(*command: str, processes: int = 2, restarts: int = 0) -> subprocess.Popen:
    """Start processes of one program; one of them without torchrun."""
    launcher = [
        "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--rdzv-backend", "c10d",
        "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--max-restarts", str(restarts), "--monitor-interval", "0.1",
    ] if processes > 1 else []  # fmt: skip
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LRGENOME_", "COV"))}
    # Else processes that are started again find the addresses of those before them.
    env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *launcher, *command], text=True, env=env, **pipes)


def start(manifest: Path, out: Path, *more: str, processes: int = 2, restarts: int = 0) -> subprocess.Popen:
    """Start a run."""
    command = ["-m", "lrgenome", "pretrain", str(manifest), "-o", str(out), *ARGUMENTS, *more]
    return launch(*command, processes=processes, restarts=restarts)


def finish(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return str(out)


def log(out: Path) -> list[dict[str, str]]:
    with open(out / "log.tsv", newline="") as handle:
        return list(csv.DictReader(handle, delimiter="\t"))


def assert_same(one: Path, other: Path) -> None:
    """Sums are taken in another order, which AdamW's first steps blow up; so not to the last digit."""
    for a, b in zip(log(one), log(other), strict=True):
        for name in ("step", "tokens", "lr"):
            assert a[name] == b[name]
        for name in ("train_loss", "grad_norm", "val_loss", "val_ant"):
            assert bool(a[name]) == bool(b[name])
            assert float(a[name] or 0) == pytest.approx(float(b[name] or 0), rel=2e-3), (name, a["step"])
    weights = [load_file(out / "model.safetensors") for out in (one, other)]
    far = torch.cat([(weights[0][name] - weights[1][name]).abs().flatten() for name in weights[0]])
    assert far.quantile(0.99) < 2e-4


@pytest.fixture(scope="module")
def alone(manifest, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("parallel") / "alone"
    finish(start(manifest, out, processes=1))
    return out


def test_two_processes_learn_what_one_does(manifest, tmp_path, alone):
    printed = finish(start(manifest, tmp_path / "two"))
    assert_same(tmp_path / "two", alone)
    assert len(printed.splitlines()) == 2, "more than one process printed the result"
    counted = finish(start(manifest, tmp_path / "none", "--dry-run"))
    assert counted.splitlines()[1:3] == ["steps\t8", "bases\t2048"]
    assert (tmp_path / "two" / "validation.tsv").read_text().count("\n") == (
        alone / "validation.tsv"
    ).read_text().count("\n")


@pytest.mark.parametrize("kind", ["pass", "noise"])
def test_initial_states_are_of_all_processes(manifest, tmp_path, kind):
    finish(start(manifest, tmp_path / "one", "--state-init", kind, processes=1))
    finish(start(manifest, tmp_path / "two", "--state-init", kind))
    assert_same(tmp_path / "two", tmp_path / "one")


def test_a_run_goes_on_with_another_number_of_processes(manifest, tmp_path, alone):
    out = tmp_path / "changing"
    process = start(manifest, out)
    patience = time.monotonic() + 120
    while last_step(out) < 3 and time.monotonic() < patience:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    # The launcher is gone; its processes see that, or are done.
    time.sleep(0.5)
    subprocess.run(["pkill", "-KILL", "-f", str(out)], check=False)
    assert 3 <= last_step(out) <= 8
    finish(start(manifest, out, "--resume", processes=1))
    assert_same(out, alone)


LEAVES = '''
import os, sys, torch
from lrgenome.training.parallel import join

threads = lambda: {open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")}
with join(torch.device("cpu")) as group:
    torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    assert group.total([1.0]) == [2.0]
    assert any("gloo" in name for name in threads()), threads()
assert not any("gloo" in name for name in threads()), threads()
'''


def test_no_thread_of_the_group_outlives_it(tmp_path):
    # They would abort the interpreter at its end.
    (tmp_path / "leaves.py").write_text(LEAVES)
    finish(launch(str(tmp_path / "leaves.py")))


def test_a_process_that_dies_is_started_again_where_the_run_was(manifest, tmp_path):
    out = tmp_path / "restarted"
    more = ["--resume", "--steps", "60", "--save-every", "1000", "--val-every", "1000"]
    process = start(manifest, out, *more, restarts=1)
    patience = time.monotonic() + 120
    while not (out / "log.tsv").is_file() or len(log(out)) < 3:
        assert time.monotonic() < patience
        time.sleep(0.005)
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False)
    os.kill(int(found.stdout.split()[-1]), signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0 and "exitcode: -9" in err, err
    assert "snapshot saved" in err, err
    (saved,) = re.findall(r"stopped after step (\d+); snapshot saved", err)
    (resumed,) = re.findall(r"resumed from step (\d+)", err)
    assert saved == resumed and 3 <= int(saved) < 60
    assert [int(row["step"]) for row in log(out)] == list(range(1, 61)) and last_step(out) == 60
    assert len(snapshots(out)) == 1


class Part(Group):
    """One of some processes whose sums are not exchanged."""

    def total(self, values):
        return list(values)

    def add(self, tensors):
        pass

    def add_gradients(self, parameters):
        pass


def test_shares_of_a_step_add_up_to_it(corpus):
    settings = change(batch_size=3, accumulate=2, clip=1e9)

    def of(group):
        model = build(TINY, seed=0).double().set_compute_dtype(torch.float64)
        loss, _ = gradients(model, corpus, settings, 2, group=group)
        return loss, [p.grad for p in model.parameters()]

    loss, whole = of(ALONE)
    parts = [of(Part(rank, 4)) for rank in range(4)]
    # Each part divides by its own targets here, so it is weighed by them.
    counts = []
    for rank in range(4):
        seen: list[float] = []
        group = Part(rank, 4)
        object.__setattr__(group, "total", lambda values, seen=seen: seen.extend(v := list(values)) or v)
        of(group)
        counts.append(seen[0])
    summed = sum(count * part for count, (part, _) in zip(counts, parts, strict=True)) / sum(counts)
    assert summed == pytest.approx(loss)
    for i, gradient in enumerate(whole):
        summed = sum(count * grads[i] for count, (_, grads) in zip(counts, parts, strict=True)) / sum(counts)
        assert (summed - gradient).abs().max() <= 1e-10 * (1 + gradient.abs().max())


@pytest.mark.parametrize(("count", "size"), [(4, 2), (5, 2), (7, 3), (3, 4), (96, 8)])
def test_shares_are_even_and_cover_everything(count, size):
    shares = [Group(rank, size).share(count) for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert list(ALONE.share(3)) == [0, 1, 2] and ALONE.leads and not Group(1, 2).leads


def test_more_processes_than_windows_are_refused(manifest, tmp_path):
    process = start(manifest, tmp_path / "out", "--batch-size", "1", "--accumulate", "1")
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "got 1 windows a step, expected at least one for each of the 2 processes" in err
    assert SETTINGS.windows_per_step == 4
