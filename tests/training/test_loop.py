"""Pre-training: it learns, and neither how it is cut nor how it is stopped changes what it learns."""

import numpy as np
import pytest
import torch
from small_runs import SETTINGS, TINY, change, outcome, same_weights, table, train

from lrgenome.engine.memory import graph_bytes
from lrgenome.errors import MemoryLimitError, NumericalError, UsageError
from lrgenome.models.hawk import build
from lrgenome.training import step as step_module
from lrgenome.training.data import Corpus, sample_rng
from lrgenome.training.loop import fit
from lrgenome.training.objective import corrupt
from lrgenome.training.run_log import LOG_COLUMNS
from lrgenome.training.settings import PretrainSettings
from lrgenome.training.snapshot import last_step, snapshots
from lrgenome.training.step import batch_loss, gradients


def test_it_learns_a_genome_that_repeats_itself(corpus, tmp_path):
    train(corpus, tmp_path, steps=30, accumulate=1, batch_size=4)
    losses = [float(row["train_loss"]) for row in table(tmp_path)]
    assert np.mean(losses[:3]) > 2.0 and np.mean(losses[-5:]) < 1.3


def test_the_log_has_a_row_a_step(corpus, tmp_path):
    train(corpus, tmp_path)
    lines = (tmp_path / "log.tsv").read_text().splitlines()
    assert lines[0].split("\t") == [*LOG_COLUMNS, "val_ant", "val_bee"]
    rows = table(tmp_path)
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert [int(row["tokens"]) for row in rows] == [256 * step for step in range(1, 13)]
    assert [row["step"] for row in rows if row["val_loss"]] == ["5", "10", "12"]
    for row in rows:
        assert bool(row["val_ant"]) == bool(row["val_bee"]) == bool(row["val_loss"])
        if row["val_loss"]:
            mean = (float(row["val_ant"]) + float(row["val_bee"])) / 2
            assert float(row["val_loss"]) == pytest.approx(mean, rel=1e-4)
    assert float(rows[0]["lr"]) == pytest.approx(5e-3, rel=1e-4) and float(rows[1]["lr"]) == pytest.approx(1e-2)
    assert float(rows[-1]["lr"]) < 1e-3


def test_equal_settings_give_equal_bytes_and_other_seeds_do_not(corpus, tmp_path):
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    assert same_weights(train(corpus, one), train(corpus, two))
    assert outcome(one) == outcome(two)
    train(corpus, other, seed=1)  # the same weights to start from, other windows
    assert table(other)[0]["train_loss"] != table(one)[0]["train_loss"]


def test_validation_does_not_touch_training(corpus, tmp_path):
    often, seldom = train(corpus, tmp_path / "a", val_every=1), train(corpus, tmp_path / "b", val_every=1000)
    assert same_weights(often, seldom)


def test_the_first_loss_is_that_of_guessing_by_hand(corpus):
    """Recompute step 1 from the windows that (seed, step, index) determine."""
    model, losses = build(TINY, seed=0), []
    for index in range(4):
        rng = sample_rng(SETTINGS.seed, 0, index)
        ids = corpus.draw(rng)
        with torch.no_grad():
            losses.append(batch_loss(model, [(ids, corrupt(ids, rng, 0.15))], torch.device("cpu"), 0))
    loss, _ = gradients(model, corpus, SETTINGS, 0)
    assert loss == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)


def wide_gradients(corpus: Corpus, **values) -> tuple[float, dict[str, torch.Tensor]]:
    model = build(TINY, seed=0).double().set_compute_dtype(torch.float64)
    loss, _ = gradients(model, corpus, change(clip=1e9, **values), 3)
    return loss, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    "values",
    [
        {"batch_size": 1, "accumulate": 4},
        {"batch_size": 2, "accumulate": 2},
        {"batch_size": 4, "accumulate": 1, "chunk": 64},
        {"batch_size": 4, "accumulate": 1, "chunk": 17},
        {"batch_size": 1, "accumulate": 4, "chunk": 5},
    ],
)
def test_accumulation_and_chunks_leave_the_gradient_alone(corpus, values):
    loss, expected = wide_gradients(corpus, batch_size=4, accumulate=1)
    other, got = wide_gradients(corpus, **values)
    assert other == pytest.approx(loss, rel=1e-6)  # the loss itself is summed in float32
    for name, gradient in got.items():
        assert (gradient - expected[name]).abs().max() <= 1e-10 * (1 + expected[name].abs().max()), name


@pytest.mark.parametrize("most", [1, 64, 128, 1000])
def test_windows_at_once_leave_the_gradient_alone(corpus, monkeypatch, most):
    _, expected = wide_gradients(corpus, batch_size=4, accumulate=1)
    monkeypatch.setattr(step_module, "CPU_PASS", most)
    settings = change(batch_size=4, accumulate=1)
    assert step_module.windows_at_once(settings, torch.device("cpu"), 64) == {1: 1, 64: 1, 128: 2, 1000: 4}[most]
    monkeypatch.setattr(step_module, "GPU_PASS", 192)
    assert step_module.windows_at_once(settings, torch.device("cuda"), 64) == 3
    _, got = wide_gradients(corpus, batch_size=4, accumulate=1)
    for name, gradient in got.items():
        assert (gradient - expected[name]).abs().max() <= 1e-10 * (1 + expected[name].abs().max()), name


def test_running_blocks_again_trains_the_same_weights(corpus, tmp_path):
    models = []
    for recompute in (False, True):
        models.append(build(TINY, seed=0))
        (tmp_path / str(recompute)).mkdir()
        fit(models[-1], corpus, change(steps=4), tmp_path / str(recompute), resume=False, recompute=recompute)
    assert same_weights(*models)


def test_blocks_are_run_again_when_memory_is_short(caplog):
    model, choose = build(TINY, seed=0), step_module.choose_recompute
    kept, least = (graph_bytes(model, 128, recompute=again) for again in (False, True))
    fixed = 3 * sum(p.nbytes for p in model.parameters())  # gradients and AdamW's moments
    with caplog.at_level("INFO", logger="lrgenome"):
        assert not choose(model, SETTINGS, "auto", 100 * kept)
    assert "128 bp at once, graph kept: about" in caplog.text
    assert choose(model, SETTINGS, "always", 100 * kept)
    short = int((least + fixed) / 0.9) + 2
    assert choose(model, SETTINGS, "auto", short) == (kept > 0.6 * short)
    assert choose(model, SETTINGS, "always", short)
    enough = int((kept + fixed) / 0.9) + 2
    assert not choose(model, SETTINGS, "never", enough)
    for how, free in (("always", short - 4), ("never", enough - 4)):
        with pytest.raises(MemoryLimitError, match=r"a pass over 128 bp needs about .* GB, free are .* GB"):
            choose(model, SETTINGS, how, free)
    with pytest.raises(UsageError, match="--recompute always: got --chunk 16, expected 0"):
        choose(model, change(chunk=16), "always", 100 * kept)
    with pytest.raises(UsageError, match="--recompute: got 'sometimes', expected one of auto, always, never"):
        choose(model, SETTINGS, "sometimes", kept)


def test_auto_runs_blocks_again_where_the_graph_is_large():
    """Of long windows the graph is most of the memory, whatever the weights take."""
    model, settings = build(TINY, seed=0), change(window=100_000, batch_size=1)
    kept = graph_bytes(model, 100_000, recompute=False)
    assert step_module.choose_recompute(model, settings, "auto", int(1.5 * kept))
    assert not step_module.choose_recompute(model, settings, "auto", int(1.8 * kept))


def test_chunked_training_equals_whole_window_training(corpus, tmp_path):
    whole, chunked = train(corpus, tmp_path / "a", steps=6), train(corpus, tmp_path / "b", steps=6, chunk=20)
    for a, b in zip(table(tmp_path / "a"), table(tmp_path / "b"), strict=True):
        assert float(a["train_loss"]) == pytest.approx(float(b["train_loss"]), abs=2e-3)
    # AdamW moves by the sign of the gradient at first, so weights with no gradient to speak of may part.
    far = torch.cat(
        [(p - q).detach().abs().view(-1) for p, q in zip(whole.parameters(), chunked.parameters(), strict=True)]
    )
    assert far.quantile(0.99) < 1e-3


def test_bfloat16_is_close_to_float32(corpus):
    found = {}
    for precision in ("float32", "bfloat16"):
        model = build(TINY, seed=0).set_compute_dtype(getattr(torch, precision), residual=torch.float32)
        loss, norm = gradients(model, corpus, change(clip=1e9), 0)
        found[precision] = loss, norm, torch.cat([p.grad.flatten() for p in model.parameters()])
    (loss, norm, wide), (narrow_loss, narrow_norm, narrow) = found["float32"], found["bfloat16"]
    assert narrow.dtype == torch.float32
    assert narrow_loss == pytest.approx(loss, rel=1e-2) and narrow_norm == pytest.approx(norm, rel=3e-2)
    assert torch.cosine_similarity(wide, narrow, 0).item() > 0.999


def test_clipping_bounds_the_gradient_and_reports_it_unclipped(corpus):
    model = build(TINY, seed=0)
    _, norm = gradients(model, corpus, change(clip=1e-3), 0)
    clipped = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    assert norm > 0.1 and clipped == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_the_step_and_changes_no_weight(corpus, tmp_path, monkeypatch, value):
    model, real = build(TINY, seed=0), step_module.batch_loss

    def poisoned(*args, **how):
        return real(*args) * (value if last_step(tmp_path) == 3 else 1.0)

    monkeypatch.setattr(step_module, "batch_loss", poisoned)
    with pytest.raises(NumericalError, match=rf"^step 4: loss {value}"):
        fit(model, corpus, change(val_every=100), tmp_path, resume=False, save_every=0)
    assert len(table(tmp_path)) == last_step(tmp_path) == 3
    assert all(p.isfinite().all() for p in model.parameters())


def test_weights_that_are_not_finite_are_found_at_the_first_step(corpus, tmp_path):
    model = build(TINY, seed=0)
    with torch.no_grad():
        model.blocks[1].down_weight[0, 0] = torch.nan
    with pytest.raises(NumericalError, match=r"^step 1: loss nan"):
        fit(model, corpus, SETTINGS, tmp_path, resume=False)
    assert snapshots(tmp_path) == []


def test_genomes_without_validation(tmp_path):
    (tmp_path / "a.fa").write_text(">1\n" + "ACGTTGCA" * 200 + "\n")
    (tmp_path / "m.tsv").write_text("path\tweight\tname\tholdout\tvalidation\na.fa\t1\ta\t.\t.\n")
    with Corpus(tmp_path / "m.tsv", 64) as corpus:
        assert fit(build(TINY, seed=0), corpus, change(steps=3), tmp_path, resume=False) == {}
    assert [row["val_loss"] for row in table(tmp_path)] == ["", "", ""]


def test_a_validation_region_of_n_gives_no_score_and_no_error(tmp_path):
    (tmp_path / "a.fa").write_text(">1\n" + "N" * 200 + "ACGTTGCA" * 200 + "\n")
    (tmp_path / "b.fa").write_text(">1\n" + "ACGTTGCA" * 200 + "\n")
    (tmp_path / "m.tsv").write_text(
        "path\tweight\tname\tholdout\tvalidation\na.fa\t1\ta\t.\t1:1-200\nb.fa\t1\tb\t.\t1:1-200\n"
    )
    with Corpus(tmp_path / "m.tsv", 64) as corpus:
        scores = fit(build(TINY, seed=0), corpus, change(steps=3), tmp_path, resume=False)
    assert set(scores) == {"b"}
    last = table(tmp_path)[-1]
    assert last["val_a"] == "" and last["val_b"] == last["val_loss"] != ""


def test_windows_without_a_base_to_predict_are_survived(tmp_path):
    (tmp_path / "a.fa").write_text(">1\n" + "ACGTTGCA" * 200 + "\n")
    (tmp_path / "m.tsv").write_text("path\tweight\tname\tholdout\tvalidation\na.fa\t1\ta\t.\t1:1-64\n")
    with Corpus(tmp_path / "m.tsv", 64) as corpus:
        values = {"steps": 3, "mask_fraction": 1e-9}
        assert fit(build(TINY, seed=0), corpus, change(**values), tmp_path, resume=False) == {}
    assert {row["train_loss"] for row in table(tmp_path)} == {"0"}


@pytest.mark.parametrize(
    ("values", "option"),
    [
        ({"window": 0}, "--window"),
        ({"batch_size": 0}, "--batch-size"),
        ({"accumulate": -1}, "--accumulate"),
        ({"steps": 0}, "--steps"),
        ({"val_every": 0}, "--val-every"),
        ({"val_windows": 0}, "--val-windows"),
        ({"warmup": -1}, "--warmup"),
        ({"warmup": 12}, "--warmup"),
        ({"mask_fraction": 0.0}, "--mask-fraction"),
        ({"mask_fraction": 1.0}, "--mask-fraction"),
        ({"mask_fraction": float("nan")}, "--mask-fraction"),
        ({"lr": 1e-9}, "--lr"),
        ({"lr": float("inf")}, "--lr"),
        ({"lr_min": -1.0}, "--lr"),
        ({"weight_decay": -0.1}, "--weight-decay"),
        ({"clip": 0.0}, "--clip"),
        ({"seed": -1}, "--seed"),
        ({"seed": 1 << 64}, "--seed"),
        ({"chunk": -1}, "--chunk"),
    ],
)
def test_bad_settings_name_the_option(values, option):
    with pytest.raises(UsageError, match=f"^{option}: got"):
        change(**values)


def test_the_defaults_are_the_papers():
    settings = PretrainSettings()
    assert settings.batch_size * settings.accumulate == 96 and settings.window == 12_000
    assert settings.bases_until(settings.steps) == pytest.approx(300e9, rel=1e-5)
    assert (settings.lr, settings.lr_min, settings.mask_fraction) == (1e-4, 1e-8, 0.15)
