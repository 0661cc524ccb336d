"""A run that is stopped and resumed, however that happens, ends as one that was not."""

import dataclasses
import json
import os
import subprocess
import sys
import time

import pytest
import torch
from small_runs import SETTINGS, TINY, change, outcome, same_weights, table, train

from lrgenome.errors import UsageError
from lrgenome.models.hawk import build
from lrgenome.ops import jit
from lrgenome.training import loop
from lrgenome.training.data import Corpus
from lrgenome.training.loop import fit
from lrgenome.training.run_log import trim_log
from lrgenome.training.snapshot import last_step, snapshots


class StopAt:
    """Stands in for the progress bar: raises after a number of whole steps."""

    def __init__(self, steps: int, error: type[BaseException]) -> None:
        self.left, self.error = steps, error

    def update(self, count: int) -> None:
        self.left -= count
        if not self.left:
            raise self.error

    def set_postfix_str(self, text: str) -> None:
        pass


class Terminated(BaseException):
    """As the command line raises on SIGTERM."""


@pytest.fixture(scope="module")
def uninterrupted(manifest, tmp_path_factory) -> tuple[list[dict[str, str]], bytes]:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    before = torch.get_num_threads(), jit.numba.get_num_threads()
    jit.set_threads(1)
    with Corpus(manifest, SETTINGS.window) as corpus:
        train(corpus, folder)
    torch.set_num_threads(before[0])
    jit.numba.set_num_threads(before[1])
    return outcome(folder)


@pytest.mark.parametrize("error", [KeyboardInterrupt, Terminated])
@pytest.mark.parametrize("steps", [1, 7, 12])
def test_an_interrupted_run_saves_a_snapshot_and_goes_on_exactly(corpus, tmp_path, uninterrupted, error, steps):
    with pytest.raises(error):
        train(corpus, tmp_path, progress=StopAt(steps, error))
    assert last_step(tmp_path) == len(table(tmp_path)) == steps
    train(corpus, tmp_path, resume=True, weights=5)  # the weights come from the snapshot
    assert outcome(tmp_path) == uninterrupted


def raise_in_call(monkeypatch, name: str, number: int, error: type[BaseException], *, after: bool = False) -> None:
    """Make call `number` of a function of the loop end in an error, before or after it has done its work."""
    real, count = getattr(loop, name), 0

    def wrapped(*args, **kwargs):
        nonlocal count
        count += 1
        if count == number and not after:
            raise error
        result = real(*args, **kwargs)
        if count == number:
            raise error
        return result

    monkeypatch.setattr(loop, name, wrapped)


@pytest.mark.parametrize("after", [False, True])
def test_interrupted_inside_a_gradient(corpus, tmp_path, monkeypatch, uninterrupted, after):
    with monkeypatch.context() as patch:
        raise_in_call(patch, "gradients", 5, KeyboardInterrupt, after=after)
        with pytest.raises(KeyboardInterrupt):
            train(corpus, tmp_path)
    assert last_step(tmp_path) == len(table(tmp_path)) == 4
    train(corpus, tmp_path, resume=True)
    assert outcome(tmp_path) == uninterrupted


@pytest.mark.parametrize("name", ["update", "validate"])
@pytest.mark.parametrize("after", [False, True])
def test_a_torn_step_is_not_saved(corpus, tmp_path, monkeypatch, uninterrupted, name, after):
    # The first validation is in step 5; weights and log do not belong together until it is logged.
    with monkeypatch.context() as patch:
        raise_in_call(patch, name, 5 if name == "update" else 1, KeyboardInterrupt, after=after)
        with pytest.raises(KeyboardInterrupt):
            train(corpus, tmp_path)
    assert snapshots(tmp_path) == []
    train(corpus, tmp_path, resume=True)
    assert outcome(tmp_path) == uninterrupted


def test_an_optimizer_stopped_halfway_leaves_the_snapshot_before(corpus, tmp_path, monkeypatch, uninterrupted):
    real, steps = torch.optim.AdamW.step, 0

    def half(self, *args):
        nonlocal steps
        steps += 1
        if steps == 6:
            with torch.no_grad():
                self.param_groups[0]["params"][0].zero_()
            raise KeyboardInterrupt
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", half)
        with pytest.raises(KeyboardInterrupt):
            train(corpus, tmp_path, save_every=0)
    assert last_step(tmp_path) == 5
    train(corpus, tmp_path, resume=True)
    assert outcome(tmp_path) == uninterrupted


def test_interrupted_while_a_snapshot_is_written(corpus, tmp_path, monkeypatch, uninterrupted):
    real, calls = os.rename, 0

    def stop_once(*args):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", stop_once)
        with pytest.raises(KeyboardInterrupt):
            train(corpus, tmp_path, save_every=0)
    assert last_step(tmp_path) == len(table(tmp_path)) == 4  # written again on the way out
    train(corpus, tmp_path, resume=True)
    assert outcome(tmp_path) == uninterrupted


def test_a_failure_is_no_interruption(corpus, tmp_path):
    with pytest.raises(RuntimeError):
        train(corpus, tmp_path, progress=StopAt(3, RuntimeError))
    assert snapshots(tmp_path) == [] and len(table(tmp_path)) == 3


def test_resuming_a_finished_run_only_validates(corpus, tmp_path, uninterrupted):
    model = train(corpus, tmp_path)
    again = train(corpus, tmp_path, resume=True, weights=3)
    assert same_weights(model, again) and outcome(tmp_path) == uninterrupted
    scores = fit(build(TINY, seed=1), corpus, SETTINGS, tmp_path, resume=True)
    last = table(tmp_path)[-1]
    assert {f"val_{name}": f"{score:.6g}" for name, score in scores.items()} == {
        name: last[name] for name in ("val_ant", "val_bee")
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 2e-2}, "settings.lr was 0.01, is now 0.02"),
        ({"steps": 13}, "settings.steps was 12, is now 13"),
        ({"seed": 1}, "settings.seed was 0, is now 1"),
        ({"precision": "bfloat16"}, "settings.precision was 'float32', is now 'bfloat16'"),
    ],
)
def test_resuming_with_other_settings_names_them(corpus, tmp_path, values, message):
    with pytest.raises(KeyboardInterrupt):
        train(corpus, tmp_path, progress=StopAt(3, KeyboardInterrupt))
    log = (tmp_path / "log.tsv").read_text()
    with pytest.raises(UsageError) as caught:
        train(corpus, tmp_path, resume=True, **values)
    assert message in str(caught.value)
    assert last_step(tmp_path) == 3 and (tmp_path / "log.tsv").read_text() == log


def test_resuming_with_another_model_or_other_data_names_it(corpus, manifest, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(corpus, tmp_path, progress=StopAt(3, KeyboardInterrupt))
    deeper = build(dataclasses.replace(TINY, layers=3), seed=0)
    with pytest.raises(UsageError, match=r"model\.layers was 2, is now 3"):
        fit(deeper, corpus, SETTINGS, tmp_path, resume=True)
    other = manifest.with_name("other.tsv")
    other.write_text(manifest.read_text().replace("1:301-400", "1:301-401"))
    with Corpus(other, SETTINGS.window) as changed, pytest.raises(UsageError, match="data was"):
        train(changed, tmp_path, resume=True)


def test_trim_log(tmp_path):
    log, columns = tmp_path / "log.tsv", ("step", "loss", "val")
    trim_log(log, columns, 0)
    assert log.read_text() == "step\tloss\tval\n"
    log.write_text("step\tloss\tval\n1\t3.5\t\n2\t3.25\t3\n3\t3\t\n4\t2.9")  # the last row was cut short
    trim_log(log, columns, 4)
    assert log.read_text() == "step\tloss\tval\n1\t3.5\t\n2\t3.25\t3\n3\t3\t\n"
    trim_log(log, columns, 2)
    assert log.read_text() == "step\tloss\tval\n1\t3.5\t\n2\t3.25\t3\n"
    assert [p.name for p in tmp_path.iterdir()] == ["log.tsv"]


# A process that is killed at random and started again, until it is done. Imports are paid for once: each life
# is a fork made before any thread exists.
LIVES = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from lrgenome.ops import jit
from lrgenome.training.data import Corpus
from lrgenome.training.loop import fit
from lrgenome.training.settings import PretrainSettings
from lrgenome.config import HawkConfig
from lrgenome.models.hawk import build

manifest, run, settings, config, kills, seed = sys.argv[1:]
settings, config = PretrainSettings(**json.loads(settings)), HawkConfig(**json.loads(config))
run, chance = Path(run), random.Random(int(seed))
weight = torch.nn.Parameter(torch.zeros(1))
weight.grad = torch.zeros(1)
torch.optim.AdamW([weight]).step()  # imports much

def live():
    jit.set_threads(1)
    with Corpus(manifest, settings.window) as corpus:
        fit(build(config, seed=0), corpus, settings, run, resume=True, save_every=chance.choice([0.0, 0.02]))

def rows():
    log = run / "log.tsv"
    return len(log.read_text().splitlines()) if log.is_file() else 0

done = 0
while True:
    chance.random()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            live()
            code = 0
        finally:
            os._exit(code)
    if done < int(kills):
        before, patience = rows(), time.monotonic() + 60
        while rows() in (0, 1, before) and time.monotonic() < patience and not os.waitid(
            os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT
        ):
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.06))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        done += 1
        print("killed", rows() - 1, flush=True)
    else:
        sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_run_that_is_killed_again_and_again_ends_the_same(manifest, tmp_path, corpus):
    values, seed = {"steps": 150}, time.time_ns() % 10**9
    train(corpus, tmp_path / "whole", **values)
    run = tmp_path / "killed"
    run.mkdir()
    arguments = [
        str(manifest), str(run), json.dumps(dataclasses.asdict(change(**values))),
        json.dumps(TINY.to_json()), "4", str(seed),
    ]  # fmt: skip
    finished = subprocess.run(
        [sys.executable, "-c", LIVES, *arguments], capture_output=True, text=True, timeout=240, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("killed") >= 3, finished.stdout
    assert outcome(run) == outcome(tmp_path / "whole"), f"seed {seed}, {finished.stdout}"
