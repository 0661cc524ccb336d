"""The small pre-training runs that tests compare."""

import csv
import dataclasses
from pathlib import Path

import torch

from lrgenome.config import HawkConfig
from lrgenome.models.hawk import Hawk, build
from lrgenome.training.data import Corpus
from lrgenome.training.loop import fit
from lrgenome.training.settings import PretrainSettings
from lrgenome.training.snapshot import snapshots

TINY = HawkConfig(layers=2, width=16, recurrent_width=16, heads=2, mlp_width=24)
SETTINGS = PretrainSettings(
    window=64,
    batch_size=2,
    accumulate=2,
    steps=12,
    warmup=2,
    lr=1e-2,
    precision="float32",
    val_every=5,
    val_windows=2,
)


def change(**values) -> PretrainSettings:
    return dataclasses.replace(SETTINGS, **values)


def train(corpus: Corpus, folder: Path, *, resume: bool = False, weights: int = 0, **values) -> Hawk:
    """Train the model that the seed `weights` makes; other options are settings, or arguments of `fit`."""
    save_every, progress = values.pop("save_every", 300.0), values.pop("progress", None)
    model = build(TINY, seed=weights)
    folder.mkdir(exist_ok=True)
    fit(model, corpus, change(**values), folder, resume=resume, save_every=save_every, progress=progress)
    return model


def table(folder: Path) -> list[dict[str, str]]:
    """Rows of the log without the speed."""
    with open(folder / "log.tsv", newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t"))
    for row in rows:
        assert float(row.pop("bp_per_s")) > 0
    return rows


def outcome(folder: Path) -> tuple[list[dict[str, str]], bytes]:
    """Return what must not depend on interruptions: the log, and weights with optimizer state."""
    (last,) = snapshots(folder)
    return table(folder), (last / "state.safetensors").read_bytes()


def same_weights(a: Hawk, b: Hawk) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
