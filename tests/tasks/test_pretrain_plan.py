"""What `lrgenome pretrain` settles before it begins: the model, and how long a step takes."""

import math
from pathlib import Path

import pytest
import torch

from lrgenome.config import PRESETS
from lrgenome.errors import UsageError
from lrgenome.models.families import build
from lrgenome.models.hawk import Hawk
from lrgenome.tasks.pretrain import choose_model
from lrgenome.training import step
from lrgenome.training.settings import PretrainSettings


def test_a_transformer_remembers_how_long_its_windows_were():
    config = choose_model("nt-v2-50m", None, False, None, 0, 30_000)[1]
    assert config.max_tokens == 5_001
    assert choose_model("nt-v2-50m", None, False, None, 0, 600)[1] == PRESETS["nt-v2-50m"]


def test_the_slowest_state_of_a_caduceus_has_the_half_life_asked_for():
    config = choose_model("caduceus-7.7m", 12_000, False, None, 0, 64)[1]
    assert math.exp(-config.dt_min * 12_000) == pytest.approx(0.5)
    for arguments, message in (
        (("caduceus-7.7m", None, True), "--ring is of a Hawk"),
        (("caduceus-7.7m", 5, False), "--half-life-max: got 5, expected more than 7 bp"),
        (("nt-v2-50m", 5_000, False), "--half-life-max is of recurrent models"),
    ):
        with pytest.raises(UsageError, match=message):
            choose_model(*arguments, None, 0, 64)


def test_initial_half_lives_follow_the_options():
    assert choose_model("hawk-mini", None, False, None, 0, 64)[1] == PRESETS["hawk-mini"]
    assert choose_model("hawk-mini", 5000, False, None, 0, 64)[1].half_life_max == 5000
    model, config = choose_model("hawk-mini", None, True, None, 0, 64)
    assert config.half_life_max is None and isinstance(model, Hawk)
    again, _ = choose_model("hawk-mini", None, True, None, 0, 64)
    assert torch.equal(again.embedding, model.embedding)
    with pytest.raises(UsageError):
        choose_model("hawk-mini", 1, False, None, 0, 64)
    mixed = choose_model("hawk-mini", 5000, False, None, 0, 64, 0.25)[1]
    assert (mixed.half_life_max, mixed.half_life_share) == (5000, 0.25)
    alone = choose_model("hawk-mini", None, False, None, 0, 64, 0.25)[1]
    assert (alone.half_life_max, alone.half_life_share) == (12_000, 0.25)
    for arguments, message in (
        (("hawk-50m", None, False, None, 0, 64, 0.25), "--half-life-share: got 0.25, expected --half-life-max"),
        (("hawk-mini", None, True, None, 0, 64, 0.25), "--half-life-share: got 0.25, expected --half-life-max"),
        (("hawk-mini", 5000, False, None, 0, 64, 0.0), "--half-life-share: got 0.0, expected more than 0"),
        (("caduceus-mini", 5000, False, None, 0, 64, 0.25), "--half-life-share is of a Hawk"),
        (("hawk-mini", None, False, Path("here"), 0, 64, 0.25), "set initial weights; got them with --init"),
    ):
        with pytest.raises(UsageError, match=message):
            choose_model(*arguments)


@pytest.mark.parametrize("preset", ["hawk-mini", "transformer-mini"])
def test_a_step_takes_as_long_as_is_measured(preset, monkeypatch):
    """Of a clock that counts positions, windows and all: linear for recurrent models, whole windows for others."""
    model, seen = build(PRESETS[preset]), []

    class Clock:
        @staticmethod
        def perf_counter():
            return float(sum(seen))

    def counted(model, batch, *args, **more):
        seen.extend(len(truth) for truth, _ in batch)
        return model.embedding.sum()[None]

    monkeypatch.setattr(step, "time", Clock)
    monkeypatch.setattr(step, "batch_loss", counted)
    settings = PretrainSettings(window=9_000, batch_size=3, accumulate=2, steps=1, warmup=0)
    assert step.measure_step(model, settings, 9_000, recompute=False, windows=6) == pytest.approx(54_000)
    assert max(seen) == (9_000 if preset == "transformer-mini" else 4_096)
