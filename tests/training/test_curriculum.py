"""Windows that grow, validation at several lengths, the best weights, and runs that diverge."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
from small_runs import SETTINGS, TINY, change, outcome, same_weights, table, train
from test_resume import StopAt

from lrgenome.config import NucleotideTransformerConfig
from lrgenome.errors import InputError, ManifestError, NumericalError, UsageError
from lrgenome.io.length_curves import length_curves, read_losses
from lrgenome.models.checkpoint import load_model
from lrgenome.models.families import build
from lrgenome.training import loop, validation
from lrgenome.training.data import Corpus
from lrgenome.training.loop import Watch, fit
from lrgenome.training.objective import tokens_of
from lrgenome.training.run_log import BEST_NAME, VALIDATION_NAME
from lrgenome.training.settings import parse_schedule
from lrgenome.training.snapshot import last_step
from lrgenome.training.validation import Piece, validate, windows_by_length

KMERS = NucleotideTransformerConfig(layers=1, width=16, heads=2, mlp_width=24, max_tokens=64)
GROWING = {"schedule": ((16, 3), (32, 4), (64, 5)), "warmup": 2}


@pytest.fixture
def grown(manifest):
    with Corpus(manifest, 64, 16, 32, 64) as corpus:
        yield corpus


def losses(folder):
    with open(folder / VALIDATION_NAME, newline="") as handle:
        return [
            (int(row["step"]), int(row["length"]), row["genome"], float(row["loss"]))
            for row in csv.DictReader(handle, delimiter="\t")
        ]


def test_a_schedule_is_read():
    assert parse_schedule("2kbp:20000, 4kbp:10,12000:1") == ((2000, 20_000), (4000, 10), (12_000, 1))


@pytest.mark.parametrize("text", ["", "2kbp", "2kbp:", ":5", "2kbp:0", "2kbp:-1", "two:5", "2kbp:5,,4kbp:5"])
def test_a_schedule_that_is_none(text):
    with pytest.raises(UsageError, match=r"^--schedule: got '.*', expected LENGTH:STEPS"):
        parse_schedule(text)


def test_a_schedule_decides_windows_and_steps():
    settings = change(**GROWING)
    assert (settings.window, settings.steps) == (64, 12)
    assert [settings.window_at(step) for step in range(12)] == [16] * 3 + [32] * 4 + [64] * 5
    assert [settings.bases_until(step) for step in (0, 1, 3, 4, 12)] == [0, 64, 192, 320, 192 + 512 + 1280]
    assert SETTINGS.phases == ((64, 12),) and SETTINGS.bases_until(12) == 12 * 256
    with pytest.raises(UsageError, match=r"^--schedule"):
        change(schedule=((16, 0), (32, 4)))


def test_windows_grow(grown, tmp_path, monkeypatch):
    drawn = []
    real = grown.draw

    def draw(rng, window):
        drawn.append(window)
        return real(rng, window)

    monkeypatch.setattr(grown, "draw", draw)
    train(grown, tmp_path, **GROWING)
    assert drawn == [16] * 12 + [32] * 16 + [64] * 20
    assert [int(row["tokens"]) for row in table(tmp_path)][-1] == 1984


@pytest.mark.parametrize("steps", [2, 3, 5, 7])
def test_a_run_resumes_in_any_phase(grown, tmp_path, steps):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    values = {**GROWING, "val_lengths": (32, 128), "val_every": 2}
    train(grown, whole, **values)
    with pytest.raises(KeyboardInterrupt):
        train(grown, stopped, progress=StopAt(steps, KeyboardInterrupt), **values)
    train(grown, stopped, resume=True, weights=3, **values)
    assert outcome(stopped) == outcome(whole) and losses(stopped) == losses(whole)
    assert load_model(stopped / BEST_NAME).sha256 == load_model(whole / BEST_NAME).sha256


def test_a_genome_too_short_for_a_phase_is_named(manifest):
    with pytest.raises(ManifestError, match="no training interval of bee is as long as the window of 1100 bp"):
        Corpus(manifest, 64, 1100)


def test_every_length_is_validated_on_the_same_bases(corpus, tmp_path):
    model = train(corpus, tmp_path, val_lengths=(32, 64, 128), val_every=6, val_windows=2)
    rows = losses(tmp_path)
    assert [(step, length, genome) for step, length, genome, _ in rows] == [
        (step, length, genome) for step in (6, 12) for length in (64, 32, 128) for genome in ("ant", "bee")
    ]
    settings = change(val_lengths=(32, 128), val_windows=2)
    chosen = windows_by_length(corpus, settings, model)
    assert {length: len(windows) for length, windows in chosen.items()} == {64: 4, 32: 8, 128: 2}
    places = {length: {piece[:2] for piece in windows} for length, windows in chosen.items()}
    assert places[64] == places[32] == places[128]
    assert all(place.end - place.start == 128 and place.end <= 200 for place, _ in places[128])
    last = {(length, genome): loss for step, length, genome, loss in rows if step == 12}
    for length in (32, 128):
        for genome, loss in validate(model, corpus, chosen[length], length, settings).items():
            assert last[length, genome] == pytest.approx(loss, abs=1e-4)
    final = table(tmp_path)[-1]
    assert float(final["val_ant"]) == pytest.approx(last[64, "ant"]) and "val_bee" in final


@pytest.fixture
def examples(monkeypatch):
    """Return what went through a model while it was validated at each length: (genome, truth, ids, targets)."""

    def run(corpus, model, **values):
        settings, seen, genome = change(**values), [], []
        real, fetch = validation.batch_loss, corpus.fetch

        def watched(model, examples, device, chunk):
            ((truth, masked),) = examples
            seen[-1][1].append((genome[-1], truth, masked.ids, masked.targets))
            return real(model, examples, device, chunk)

        with monkeypatch.context() as patch:
            patch.setattr(corpus, "fetch", lambda place: genome.append(place.source) or fetch(place))
            patch.setattr(validation, "batch_loss", watched)
            for length, windows in windows_by_length(corpus, settings, model).items():
                seen.append((length, []))
                validate(model, corpus, windows, length, settings)
        return dict(seen)

    return run


def joined(windows, genome):
    return np.concatenate([np.stack([of.astype(int) for of in one[1:]]) for one in windows if one[0] == genome], axis=1)


def test_windows_of_every_length_have_the_same_masks(corpus, examples):
    seen = examples(corpus, build(TINY, seed=0), val_lengths=(32, 48, 128), val_windows=2)
    for genome in (0, 1):
        whole = joined(seen[128], genome)
        assert whole.shape == (3, 128) and 0 < whole[2].sum() < 64
        assert np.array_equal(joined(seen[64], genome), whole) and np.array_equal(joined(seen[32], genome), whole)
        assert np.array_equal(joined(seen[48], genome), whole[:, :96]), "32 bp are left over"


def test_a_length_that_only_the_second_genome_holds(manifest, examples):
    short = manifest.with_name("short.tsv")
    short.write_text(manifest.read_text().replace("ant\t.\t1:1-200", "ant\t.\t1:1-100"))
    with Corpus(short, 64) as corpus:
        model = build(TINY, seed=0)
        chosen = windows_by_length(corpus, change(val_lengths=(32, 190), val_windows=2), model)
        seen = examples(corpus, model, val_lengths=(32, 190), val_windows=2)
    ant, bee = (0, "1", 0, 64), (1, "1", 0, 190)
    assert chosen == {
        64: [Piece(ant, 0, 0), Piece(bee, 1, 0), Piece(bee, 1, 64)],
        32: [Piece(ant, 0, 0), Piece(ant, 0, 32), *(Piece(bee, 1, offset) for offset in (0, 32, 64, 96, 128))],
        190: [Piece(bee, 1, 0)],
    }
    whole = joined(seen[190], 1)
    assert np.array_equal(joined(seen[64], 1), whole[:, :128]) and np.array_equal(joined(seen[32], 1), whole[:, :160])
    assert np.array_equal(joined(seen[64], 0), joined(seen[32], 0))


def test_windows_of_6_mers_have_the_same_masks_every_time(corpus, examples):
    model = build(KMERS, seed=0)
    values = {"val_lengths": (30, 120), "val_windows": 2, "mask_fraction": 0.9}
    first, again = (examples(corpus, model, **values) for _ in range(2))
    assert {length: len(windows) for length, windows in first.items()} == {64: 2, 30: 8, 120: 2}
    for length, windows in first.items():
        assert {len(truth) for _, truth, _, _ in windows} == {tokens_of(KMERS, length)}
        for genome in (0, 1):
            assert np.array_equal(joined(windows, genome), joined(again[length], genome))
    assert len({tuple(ids) for _, _, ids, _ in first[30]}) > 4, "windows of a place have masks of their own"


def test_a_length_without_a_region_is_said_and_left_out(corpus, tmp_path, caplog):
    with caplog.at_level("WARNING", logger="lrgenome"):
        train(corpus, tmp_path, val_lengths=(500,), steps=3)
    assert "no validation region holds a window of 500 bp" in caplog.text
    assert {length for _, length, _, _ in losses(tmp_path)} == {64}


def test_long_windows_go_through_in_chunks(corpus, monkeypatch):
    model = build(TINY, seed=0)
    windows, short = ([Piece(w, i, 0) for i, w in enumerate(corpus.validation_windows(1, t))] for t in (128, 64))
    whole = validate(model, corpus, windows, 128, SETTINGS)
    chunks, real = [], validation.batch_loss
    monkeypatch.setattr(validation, "batch_loss", lambda *args: chunks.append(args[-1]) or real(*args))
    monkeypatch.setattr(validation, "CPU_PASS", 64)
    monkeypatch.setattr(validation, "default_chunk", lambda *args: 24)
    validate(model, corpus, short, 64, SETTINGS)
    assert set(chunks) == {0}
    chunks.clear()
    assert validate(model, corpus, windows, 128, SETTINGS) == pytest.approx(whole, rel=1e-5)
    assert set(chunks) == {24}


def test_other_lengths_are_validated_where_the_training_window_cannot_be(manifest, tmp_path, caplog):
    with Corpus(manifest, 300) as corpus, caplog.at_level("INFO", logger="lrgenome"):
        train(corpus, tmp_path, window=300, val_lengths=(32,), steps=6, val_every=2)
    assert {(step, length) for step, length, _, _ in losses(tmp_path)} == {(2, 32), (4, 32), (6, 32)}
    assert "no validation region holds a window of 300 bp" in caplog.text and "validation at 32 bp" in caplog.text
    assert not (tmp_path / BEST_NAME).exists() and table(tmp_path)[-1]["val_loss"] == ""


def test_best_weights_of_another_run_or_a_later_step_go(corpus, tmp_path):
    train(corpus, tmp_path, steps=4, val_every=2)
    shutil.rmtree(next(tmp_path.glob("snapshot-*")))
    with pytest.raises(KeyboardInterrupt):
        train(corpus, tmp_path, steps=4, val_every=9, progress=StopAt(1, KeyboardInterrupt))
    assert not (tmp_path / BEST_NAME).exists()
    train(corpus, tmp_path, steps=4, val_every=2, resume=True)
    assert load_model(tmp_path / BEST_NAME).meta["training"]["step"] in (2, 4)


def test_what_is_only_looked_at_may_change_on_the_way(corpus, tmp_path, monkeypatch):
    whole, changed = tmp_path / "whole", tmp_path / "changed"
    train(corpus, whole)
    with pytest.raises(KeyboardInterrupt):
        train(corpus, changed, progress=StopAt(3, KeyboardInterrupt), divergence=0.0, val_every=1, val_lengths=(16,))
    train(corpus, changed, resume=True, val_windows=1)
    assert outcome(changed)[1] == outcome(whole)[1]


def test_snapshots_of_before_there_were_schedules_are_gone_on_from(corpus, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(corpus, tmp_path / "old", progress=StopAt(3, KeyboardInterrupt))
    (saved,) = (tmp_path / "old").glob("snapshot-*/identity.json")
    identity = json.loads(saved.read_text())
    for name in ("schedule", "repeats"):
        del identity["settings"][name]
    del identity["model"]["half_life_share"]
    saved.write_text(json.dumps(identity))
    with pytest.raises(UsageError, match=r"settings\.repeats was 0\.0, is now 0\.5"):
        train(corpus, tmp_path / "old", resume=True, repeats=0.5)
    train(corpus, tmp_path / "old", resume=True)
    train(corpus, tmp_path / "new")
    assert outcome(tmp_path / "old") == outcome(tmp_path / "new")


def test_the_best_weights_are_kept(corpus, tmp_path):
    model = train(corpus, tmp_path, steps=16, val_every=4)
    best = load_model(tmp_path / BEST_NAME)
    by_step = {int(row["step"]): float(row["val_loss"]) for row in table(tmp_path) if row["val_loss"]}
    step = min(by_step, key=by_step.__getitem__)
    assert best.meta["training"]["step"] == step
    assert same_weights(best.model, model) == (step == 16)


def test_divergence_is_a_mean_that_rises(monkeypatch):
    monkeypatch.setattr(loop, "WATCHED", 4)
    falling = [2.0, 1.5, 1.3, 1.2, 1.2, 1.2, 1.2]
    watch = Watch(0.1)
    assert not any(watch.see(loss) for loss in falling)
    assert watch.lowest == pytest.approx(1.2)
    assert not any(watch.see(loss) for loss in (1.55, 1.2, 1.2, 1.2, 1.2)), "one spike is none"
    rising = Watch(0.1, falling)
    assert [rising.see(1.35) for _ in range(4)] == [False, False, True, True]
    assert not any(Watch(0.0, falling).see(9.0) for _ in range(9))


def test_a_run_that_diverges_stops_and_says_what_to_go_on_from(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "WATCHED", 4)
    real = loop.gradients

    def worse(model, corpus, settings, step, **how):
        loss, norm = real(model, corpus, settings, step, **how)
        return loss + (0.5 if step >= 8 else 0.0), norm

    monkeypatch.setattr(loop, "gradients", worse)
    with pytest.raises(NumericalError, match=r"^step \d+: diverged, .*lowest validation loss are in .*best"):
        train(corpus, tmp_path, steps=30, val_every=2, save_every=0)
    stopped = len(table(tmp_path))
    assert 9 <= stopped <= 14 and last_step(tmp_path) == stopped - 1
    assert load_model(tmp_path / BEST_NAME).meta["training"]["step"] <= 14
    with pytest.raises(NumericalError, match="diverged"):
        train(corpus, tmp_path, steps=30, val_every=2, resume=True)
    assert len(table(tmp_path)) == stopped


def test_what_is_not_finite_says_what_to_go_on_from(corpus, tmp_path):
    model = build(TINY, seed=0)
    with torch.no_grad():
        model.blocks[0].down_weight.fill_(math.nan)
    with pytest.raises(NumericalError, match="expected finite numbers; no weights were saved in 0 steps"):
        fit(model, corpus, SETTINGS, tmp_path, resume=False)


def test_the_figure_of_lengths(corpus, tmp_path):
    train(corpus, tmp_path, val_lengths=(16, 32, 128))
    read = read_losses(tmp_path / VALIDATION_NAME)
    assert list(read) == [16, 32, 64, 128] and list(read[16]) == [5, 10, 12]
    rows = [loss for step, length, _, loss in losses(tmp_path) if (step, length) == (10, 32)]
    assert read[32][10] == pytest.approx(sum(rows) / 2)
    length_curves(tmp_path / VALIDATION_NAME, tmp_path / "lengths.png")
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step\tlength\tgenome\tloss\n", "no losses"),
        ("step\tlength\tgenome\tloss\n1\t2\ta\tx\n", "line 2: got"),
        ("step\tgenome\tloss\n1\ta\t1\n", "expected numbers for step, length and loss"),
    ],
)
def test_tables_of_losses_that_are_none(tmp_path, text, message):
    (tmp_path / "v.tsv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_losses(tmp_path / "v.tsv")
    with pytest.raises(InputError, match="cannot be read"):
        read_losses(tmp_path / "none.tsv")
