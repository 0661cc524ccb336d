"""`lrgenome pretrain` from manifest to model, and every way it can refuse, fail or be stopped."""

import csv
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from lrgenome.cli.app import app
from lrgenome.config import PRESETS, CaduceusConfig, NucleotideTransformerConfig
from lrgenome.models.checkpoint import load_model, save_model
from lrgenome.models.families import build
from lrgenome.ops import jit
from lrgenome.tasks import pretrain
from lrgenome.training import loop, step
from lrgenome.training.snapshot import last_step

FAST = [
    "--window", "64", "--batch-size", "1", "--accumulate", "2", "--warmup", "1", "--lr", "1e-3",
    "--val-windows", "2", "--precision", "float32", "--device", "cpu", "-t", "1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def as_found(monkeypatch):
    """Give back what a command sets for its whole process; no option comes from the environment."""
    for name in [name for name in os.environ if name.startswith("LRGENOME_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")
    logger, threads = logging.getLogger("lrgenome"), (torch.get_num_threads(), jit.numba.get_num_threads())
    level, propagate, handler = logger.level, logger.propagate, signal.getsignal(signal.SIGTERM)
    yield
    for own in list(logger.handlers):
        logger.removeHandler(own)
        own.close()
    logger.setLevel(level)
    logger.propagate = propagate
    signal.signal(signal.SIGTERM, handler)
    torch.set_num_threads(threads[0])
    jit.numba.set_num_threads(threads[1])


@pytest.fixture
def manifest(tmp_path, toy_fasta) -> Path:
    path = tmp_path / "manifest.tsv"
    path.write_text(
        "path\tweight\tname\tholdout\tvalidation\n"
        f"{toy_fasta.name}\t1\ttoy\tchr1:2001-2500\tchr1:3001-3500;chr2:1-300\n"
    )
    return path


def run(*arguments: object, code: int = 0):
    """Run the command in this process and check its exit code."""
    result = CliRunner().invoke(app, ["pretrain", *map(str, arguments)])
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    return result


def table(folder: Path) -> list[dict[str, str]]:
    """Rows of the log without the speed."""
    with open(folder / "log.tsv", newline="") as handle:
        return [
            {k: v for k, v in row.items() if k != "bp_per_s"}
            for row in csv.DictReader(handle, delimiter="\t")
        ]


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG\r\n") and path.stat().st_size > 5000


def test_from_manifest_to_model_in_a_process_of_its_own(manifest, tmp_path):
    out = tmp_path / "deep" / "model"
    arguments = [str(manifest), "-o", str(out), "--preset", "hawk-mini", "--steps", "2", *FAST]
    done = subprocess.run(
        [sys.executable, "-m", "lrgenome", "pretrain", *arguments],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    name, loss = done.stdout.split()
    rows = table(out)
    assert name == "toy" and float(loss) == pytest.approx(float(rows[-1]["val_toy"]), abs=1e-4)
    assert [row["step"] for row in rows] == ["1", "2"] and rows[1]["tokens"] == "256"
    loaded = load_model(out)
    assert loaded.model.config == PRESETS["hawk-mini"]
    assert loaded.sha256 in done.stderr
    training = loaded.meta["training"]
    assert training["settings"]["window"] == 64 and training["settings"]["steps"] == 2
    assert training["validation"]["toy"] == pytest.approx(float(loss), abs=1e-4)
    assert training["genomes"][0].startswith("toy 1.0 toy.fa:") and training["init"] is None
    assert is_png(out / "curve.png")
    assert {p.name for p in out.iterdir() if not p.name.startswith("snapshot-")} == {
        "best", "config.json", "curve.png", "log.tsv", "model.safetensors", "validation.tsv"
    }  # fmt: skip


def test_going_on_from_a_checkpoint_starts_with_its_weights(manifest, tiny_model, tmp_path):
    out = tmp_path / "out"
    run(manifest, "-o", out, "--init", tiny_model, "--steps", 3, "--lr", 0, "--lr-min", 0, *without("--lr"))
    loaded = load_model(out)
    assert loaded.sha256 == load_model(tiny_model).sha256  # a learning rate of zero changes nothing
    assert loaded.meta["training"]["init"] == tiny_model.name


def without(option: str) -> list[str]:
    """Leave an option and its value out of FAST."""
    place = FAST.index(option)
    return FAST[:place] + FAST[place + 2 :]


def test_going_on_from_the_snapshot_of_a_run(manifest, tiny_model, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    run(manifest, "-o", first, "--init", tiny_model, "--steps", 3, *FAST)
    sha = load_model(first).sha256
    for file in ("model.safetensors", "config.json"):
        (first / file).unlink()  # as a run that is still going on has none
    run(manifest, "-o", second, "--init", first, "--steps", 3, "--lr", 0, "--lr-min", 0, *without("--lr"))
    assert load_model(second).sha256 == sha


def test_dry_run_counts_and_writes_nothing(manifest, tmp_path):
    result = run(manifest, "-o", tmp_path / "out", "--dry-run", "--steps", 7, *FAST)
    *counts, seconds = result.stdout.splitlines()
    assert counts == [f"parameters\t{PRESETS['hawk-mini'].parameters}", "steps\t7", "bases\t896"]
    assert seconds.startswith("expected_seconds\t") and 0 <= float(seconds.split("\t")[1]) < 60
    assert not (tmp_path / "out").exists()


def test_equal_commands_write_equal_models(manifest, tiny_model, tmp_path):
    outs = [tmp_path / name for name in ("a", "b", "other")]
    for out, seed in zip(outs, (1, 1, 2), strict=True):
        run(manifest, "-o", out, "--init", tiny_model, "--steps", 3, "--seed", seed, *FAST)
    one, two, other = ((out / "model.safetensors").read_bytes() for out in outs)
    assert one == two != other
    assert (outs[0] / "config.json").read_bytes() == (outs[1] / "config.json").read_bytes()
    assert table(outs[0]) == table(outs[1])


def interrupted(manifest, tiny_model, out, monkeypatch, *options: object) -> None:
    """Leave a run of 5 steps unfinished after 2."""
    real, calls = loop.gradients, 0

    def stop(*args, **how):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "gradients", stop)
        start = [] if tiny_model is None else ["--init", tiny_model]
        result = run(manifest, "-o", out, *start, "--steps", 5, *FAST, *options, code=130)
    assert "--resume continues it" in result.stderr and "error" not in result.stderr


def test_an_unfinished_run_is_not_overwritten_but_resumed(manifest, tiny_model, tmp_path, monkeypatch):
    out, whole = tmp_path / "out", tmp_path / "whole"
    interrupted(manifest, tiny_model, out, monkeypatch)
    assert last_step(out) == len(table(out)) == 2 and not (out / "model.safetensors").exists()
    again = [manifest, "-o", out, "--init", tiny_model, "--steps", 5]
    before = sorted((p.name, p.stat().st_mtime_ns) for p in out.rglob("*"))
    refused = run(*again, *FAST, code=2)
    assert f"{out}: holds a run already; --resume continues it" in refused.stderr
    other = run(*again, *without("--lr"), "--lr", 2e-3, "--resume", code=2)
    assert "settings.lr was 0.001, is now 0.002" in other.stderr
    assert sorted((p.name, p.stat().st_mtime_ns) for p in out.rglob("*")) == before
    run(*again, *FAST, "--resume", "--no-clobber")
    run(manifest, "-o", whole, "--init", tiny_model, "--steps", 5, *FAST)
    assert table(out) == table(whole)
    for name in ("model.safetensors", "config.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_progress_of_a_resumed_run_starts_where_it_stopped(manifest, tiny_model, tmp_path, monkeypatch):
    seen, real = [], pretrain.Progress

    def progress(*args, done):
        seen.append(done)
        return real(*args, done=done)

    interrupted(manifest, tiny_model, tmp_path / "out", monkeypatch)
    monkeypatch.setattr(pretrain, "Progress", progress)
    run(manifest, "-o", tmp_path / "out", "--init", tiny_model, "--steps", 5, *FAST, "--resume")
    run(manifest, "-o", tmp_path / "new", "--init", tiny_model, "--steps", 2, *FAST, "--resume")
    assert seen == [2, 0]


def test_resuming_a_finished_run_writes_the_same_model_again(manifest, tiny_model, tmp_path):
    again = [manifest, "-o", tmp_path / "out", "--init", tiny_model, "--steps", 3, *FAST]
    printed = run(*again).stdout
    model, log = (tmp_path / "out" / "model.safetensors").read_bytes(), table(tmp_path / "out")
    assert run(*again, "--resume").stdout == printed
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == model and table(tmp_path / "out") == log


def test_no_clobber_keeps_a_model(manifest, tiny_model, tmp_path):
    out = tmp_path / "out"
    save_model(load_model(tiny_model).model, out)
    assert "--no-clobber" in run(manifest, "-o", out, "--steps", 3, *FAST, "--no-clobber", code=2).stderr
    assert load_model(out).sha256 == load_model(tiny_model).sha256


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "hawk-7b"], "--preset: got 'hawk-7b'"),
        (["--ring", "--half-life-max", "1Mbp"], "--half-life-max and --ring exclude each other"),
        (["--init", ".", "--ring"], "--half-life-max, --half-life-share and --ring set initial weights"),
        (["--window", "1,5kbp"], "expected a length such as"),
        (["--steps", "1", "--warmup", "5"], "--warmup: got 5"),
        (["--precision", "float16"], "--precision: got 'float16'"),
        (["--seed", "-1"], "--seed: got -1"),
        (["--schedule", "2kbp"], "--schedule: got '2kbp', expected LENGTH:STEPS"),
        (["--schedule", "2kbp:5", "--steps", "5"], "--schedule takes the place of --window and --steps"),
        (["--schedule", "2kbp:5", "--window", "5"], "--schedule takes the place of --window and --steps"),
        (["--val-lengths", "2kbp,far"], "expected a length such as"),
        (["--repeats", "2"], "--repeats: got 2.0, expected a share from 0 to 1"),
        (["--repeats", "0.1", "--preset", "nt-v2-50m"], "--repeats is of models that read single bases"),
        (["--cache", "x", "--no-cache"], "--cache and --no-cache exclude each other"),
        (["--divergence", "-1"], "--divergence: got -1.0"),
        (["--device", "abacus"], "--device: got 'abacus'"),
        (["--gpu", "0", "--device", "cpu"], "--gpu and --device exclude each other"),
    ],
)
def test_usage_errors_exit_2(manifest, tmp_path, options, message):
    result = run(manifest, "-o", tmp_path / "out", *options, code=2)
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_a_manifest_that_is_not_there_exits_2(tmp_path):
    run(tmp_path / "none.tsv", "-o", tmp_path / "out", code=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got no genome"),
        ("path\tweight\n", "expected it to have name, holdout, validation"),
        ("path\tweight\tname\tholdout\tvalidation\nnone.fa\t1\ta\t.\t.\n", "there is no FASTA file"),
        ("path\tweight\tname\tholdout\tvalidation\ntoy.fa\t0\ta\t.\t.\n", "got weight '0'"),
        (
            "path\tweight\tname\tholdout\tvalidation\ntoy.fa\t1\ta\tchr1;chr2\t.\n",
            "no training interval of a",
        ),
    ],
)
def test_bad_manifests_exit_3(manifest, tmp_path, text, message):
    manifest.write_text(text)
    result = run(manifest, "-o", tmp_path / "out", "--steps", 3, *FAST, code=3)
    assert message in result.stderr and result.stderr.count("\n") < 10
    assert not (tmp_path / "out").exists()


def test_a_gpu_that_is_not_there_exits_4(manifest, tmp_path):
    result = run(manifest, "-o", tmp_path / "out", "--gpu", 99, "--steps", 3, "--warmup", 1, code=4)
    assert "cuda:99" in result.stderr


def test_a_model_that_is_not_there_exits_5(manifest, tmp_path):
    for init in (tmp_path / "none", tmp_path):
        result = run(manifest, "-o", tmp_path / "out", "--init", init, "--steps", 3, *FAST, code=5)
        assert str(init) in result.stderr


def test_a_loss_that_is_not_finite_exits_1_and_names_the_step(manifest, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(step, "masked_losses", lambda logits, truth: logits[:, 0] * float("nan"))
    result = run(manifest, "-o", tmp_path / "out", "--init", tiny_model, "--steps", 3, *FAST, code=1)
    assert "lrgenome: error: step 1: loss nan" in result.stderr
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_output_that_cannot_be_written_exits_3(manifest, tiny_model, tmp_path):
    (tmp_path / "file").write_text("in the way")
    run(manifest, "-o", tmp_path / "file", "--init", tiny_model, "--steps", 3, *FAST, code=3)
    (tmp_path / "out" / "log.tsv.partial").mkdir(parents=True)
    result = run(manifest, "-o", tmp_path / "out", "--init", tiny_model, "--steps", 3, *FAST, code=3)
    assert "lrgenome: error: cannot write" in result.stderr


SMALL = {
    "caduceus": CaduceusConfig(layers=2, width=16, state=4),
    "caduceus-ps": CaduceusConfig(layers=2, width=16, state=4, equivariant=True),
    "6-mers": NucleotideTransformerConfig(layers=2, width=16, heads=2, mlp_width=24),
    "bases": NucleotideTransformerConfig(layers=2, width=16, heads=2, mlp_width=24, kmers=False, vocab=16),
}


@pytest.mark.parametrize("name", SMALL)
def test_every_kind_of_model_is_trained_and_resumed(manifest, tmp_path, monkeypatch, name):
    monkeypatch.setitem(PRESETS, "small", SMALL[name])
    options = ["--preset", "small", "--steps", 5, *FAST]
    run(manifest, "-o", tmp_path / "whole", *options)
    interrupted(manifest, None, tmp_path / "cut", monkeypatch, "--preset", "small")
    run(manifest, "-o", tmp_path / "cut", *options, "--resume")
    weights = [(tmp_path / out / "model.safetensors").read_bytes() for out in ("whole", "cut")]
    assert weights[0] == weights[1]
    assert table(tmp_path / "whole") == table(tmp_path / "cut")
    loaded = load_model(tmp_path / "whole").model
    fresh = build(loaded.config, seed=0)
    moved = [not torch.equal(a, b) for a, b in zip(loaded.parameters(), fresh.parameters(), strict=True)]
    assert loaded.config == SMALL[name] and all(moved)


def stop(arguments: list[str], log: Path, rows: int, number: int) -> tuple[int, str]:
    """Start the command, send it a signal once its log has some rows, and return exit code and stderr."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lrgenome", "pretrain", *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        patience = time.monotonic() + 200
        while not (log.is_file() and log.read_text().count("\n") > rows) and time.monotonic() < patience:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
        process.send_signal(number)
        _, said = process.communicate(timeout=100)
    finally:
        process.kill()
        process.wait()
    return process.returncode, said


def test_signals_save_a_snapshot_and_the_run_goes_on_from_it(manifest, tiny_model, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    options = ["--init", str(tiny_model), "--steps", "300", "--val-every", "50", *FAST]
    for rows, number, expected in ((3, signal.SIGINT, 130), (60, signal.SIGTERM, 143)):
        code, said = stop(
            [str(manifest), "-o", str(out), *options, "--resume"], out / "log.tsv", rows, number
        )
        assert code == expected, said
        assert "--resume continues it" in said and "Traceback" not in said
        # A signal that comes while weights are changed leaves no snapshot; otherwise nothing is lost.
        if "snapshot saved" in said:
            assert rows <= last_step(out) == len(table(out)) < 300
    run(manifest, "-o", out, *options, "--resume")
    run(manifest, "-o", whole, *options)
    assert table(out) == table(whole)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_share_of_the_channels_is_what_was_asked_for(manifest, tmp_path):
    options = ["--preset", "hawk-mini", "--half-life-max", "48kbp", "--half-life-share", "0.125"]
    run(manifest, "-o", tmp_path / "out", *options, "--steps", 2, *FAST)
    config = load_model(tmp_path / "out").model.config
    assert (config.half_life_max, config.half_life_share) == (48_000, 0.125)


def test_windows_grow_and_are_validated_at_every_length(manifest, tiny_model, tmp_path):
    out = tmp_path / "out"
    options = [*without("--window"), "--init", tiny_model, "--schedule", "32:2,64bp:3", "--val-lengths", "32,128"]
    run(manifest, "-o", out, *options, "--repeats", "0.5")
    rows = table(out)
    assert [int(row["tokens"]) for row in rows] == [64, 128, 256, 384, 512]
    _, *losses = (out / "validation.tsv").read_text().splitlines()
    assert {line.split("\t")[1] for line in losses} == {"32", "64", "128"}
    assert is_png(out / "lengths.png") and is_png(out / "curve.png")
    settings = load_model(out).meta["training"]["settings"]
    assert settings["schedule"] == [[32, 2], [64, 3]] and settings["window"] == 64 and settings["steps"] == 5
    assert load_model(out / "best").meta["training"]["step"] == 5


def test_tensorboard_has_every_column_and_goes_on_where_the_run_does(manifest, tiny_model, tmp_path, monkeypatch):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "out"
    interrupted(manifest, tiny_model, out, monkeypatch, "--tensorboard")
    run(manifest, "-o", out, "--init", tiny_model, "--steps", 5, *FAST, "--tensorboard", "--resume")
    events = accumulators.EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert {"train_loss", "lr", "grad_norm", "bp_per_s", "val_loss", "val_toy"} <= set(events.Tags()["scalars"])
    found = [(event.step, event.value) for event in events.Scalars("train_loss")]
    assert [step for step, _ in found] == [1, 2, 3, 4, 5]
    assert [value for _, value in found] == pytest.approx([float(row["train_loss"]) for row in table(out)], rel=1e-5)


def test_without_tensorboard_the_extra_is_named(manifest, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    result = run(
        manifest, "-o", tmp_path / "out", "--init", tiny_model, "--steps", 2, *FAST, "--tensorboard", code=2
    )
    assert "pip install 'lrgenome[tensorboard]'" in result.stderr


def test_options_are_read_from_the_environment(manifest, tmp_path, monkeypatch):
    monkeypatch.setenv("LRGENOME_SEED", "-7")
    assert "--seed: got -7" in run(manifest, "-o", tmp_path / "out", *FAST, "--steps", 3, code=2).stderr


def test_settings_of_the_checkpoint_are_plain_json(manifest, tiny_model, tmp_path):
    run(manifest, "-o", tmp_path / "out", "--init", tiny_model, "--steps", 2, *FAST)
    text = (tmp_path / "out" / "config.json").read_text()
    assert json.loads(text)["training"]["settings"]["precision"] == "float32"
    assert os.fspath(tmp_path) not in text  # no path of the machine it was trained on


@pytest.mark.parametrize("how", ["always", "never"])
def test_memory_may_be_saved_and_the_weights_are_the_same(manifest, tiny_model, tmp_path, how):
    run(manifest, "-o", tmp_path / "auto", "--init", tiny_model, "--steps", 3, *FAST)
    run(manifest, "-o", tmp_path / how, "--init", tiny_model, "--steps", 3, *FAST, "--recompute", how)
    weights = [list(load_model(tmp_path / name).model.parameters()) for name in ("auto", how)]
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


def test_memory_that_is_not_there_is_said_before_the_run(manifest, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "free_memory", lambda device, limit=None: 1_000)
    result = run(manifest, "-o", tmp_path / "out", "--init", tiny_model, "--steps", 3, *FAST, code=137)
    assert "needs about" in result.stderr and "--window" in result.stderr
