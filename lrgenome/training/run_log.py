"""What a training run writes beside its snapshots: a row a step, validation losses, the best weights."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from lrgenome.io.length_curves import COLUMNS as VALIDATION_COLUMNS
from lrgenome.models.checkpoint import CONFIG_NAME, save_model
from lrgenome.models.families import Model
from lrgenome.training.validation import Losses

log = logging.getLogger(__name__)

LOG_COLUMNS = ("step", "tokens", "train_loss", "lr", "grad_norm", "bp_per_s", "val_loss")
LOG_NAME, VALIDATION_NAME, BEST_NAME = "log.tsv", "validation.tsv", "best"


class RunLog:
    """The tables of a run and its best weights, from a step on; a context manager.

    Parameters
    ----------
    run
        Folder of the run.
    window
        Training window, bp, whose validation losses choose the best weights.
    names
        Genomes that are validated at that length.
    start
        Steps that are done; what a killed run wrote of later ones goes.
    board
        Something with ``add_scalar(name, value, step)``, or None.
    """

    def __init__(self, run: Path, window: int, names: Sequence[str], start: int, board: Any = None) -> None:
        self._run, self._window, self._names, self._board = run, window, names, board
        self.columns = LOG_COLUMNS + tuple(f"val_{name}" for name in names)
        rows = trim_log(run / LOG_NAME, self.columns, start)
        trim_log(run / VALIDATION_NAME, VALIDATION_COLUMNS, start)
        _drop_best(run / BEST_NAME, start)
        self.losses = [float(row[2]) for row in rows]
        """Training losses of the steps that are done."""
        self._best = min((float(row[6]) for row in rows if row[6]), default=float("inf"))
        self._table = open(run / LOG_NAME, "a", encoding="utf-8")

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._table.close()

    def add(
        self, model: Model, step: int, bases: int, loss: float, rate: float, norm: float, speed: float,
        scores: dict[int, Losses], about: dict[str, Any],
    ) -> None:  # fmt: skip
        """Add a step (1-based), with its validation losses by length where there are any."""
        here = scores.get(self._window, {})
        value = f"{np.mean(list(here.values())):.6g}" if here else ""
        if any(scores.values()):
            log.info("step %d: train %.4f, validation%s", step, loss, _in_words(scores))
            self._add_validation(step, scores)
        if value and float(value) < self._best:
            self._best = float(value)
            save_model(model, self._run / BEST_NAME, {"training": {"step": step, "validation": here, **about}})
        row = [str(step), str(bases), *(f"{number:.6g}" for number in (loss, rate, norm, speed)), value]
        # A genome whose validation regions are all N has windows but no score.
        row += [f"{here[name]:.6g}" if name in here else "" for name in self._names]
        self._table.write("\t".join(row) + "\n")
        self._table.flush()
        if self._board is not None:
            for name, cell in zip(self.columns[1:], row[1:], strict=True):
                if cell:
                    self._board.add_scalar(name, float(cell), step)

    def _add_validation(self, step: int, scores: dict[int, Losses]) -> None:
        with open(self._run / VALIDATION_NAME, "a", encoding="utf-8") as table:
            for length, of in scores.items():
                for genome, loss in of.items():
                    table.write(f"{step}\t{length}\t{genome}\t{loss:.6g}\n")


def _in_words(scores: dict[int, Losses]) -> str:
    """Write the losses of the first length by genome, and of the others their mean."""
    words = []
    for number, (length, of) in enumerate(scores.items()):
        if of:
            each = [f"{name} {loss:.4f}" for name, loss in of.items()] if not number else []
            words.append(f" at {length:,} bp {', '.join(each) or format(np.mean(list(of.values())), '.4f')}")
    return ";".join(words)


def _drop_best(folder: Path, start: int) -> None:
    """Remove weights that are of another run, or of a step that this one is yet to come to."""
    try:
        step = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))["training"]["step"]
    except (OSError, ValueError, KeyError, TypeError):
        step = start + 1
    if not 0 < step <= start:
        shutil.rmtree(folder, ignore_errors=True)


def trim_log(path: Path, columns: tuple[str, ...], steps: int) -> list[list[str]]:
    """Make a table hold the header and the whole rows of the first `steps` steps, which are returned."""
    kept = []
    if steps and path.is_file():
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
        kept = [row for row in rows if len(row) == len(columns) and row[0].isdigit() and int(row[0]) <= steps]
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join("\t".join(cells) + "\n" for cells in (columns, *kept)), encoding="utf-8")
    partial.replace(path)
    return kept
