"""The pre-training loop."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from lrgenome.errors import NumericalError, PeerLostError
from lrgenome.models.checkpoint import save_model
from lrgenome.models.families import Model
from lrgenome.training.data import Corpus
from lrgenome.training.optim import build_optimizer
from lrgenome.training.parallel import ALONE, Group
from lrgenome.training.settings import PretrainSettings
from lrgenome.training.snapshot import last_step, load_snapshot, save_snapshot
from lrgenome.training.step import gradients, set_precision, update
from lrgenome.training.validation import COLUMNS as VALIDATION_COLUMNS
from lrgenome.training.validation import Losses, add_rows, mean, validate, windows_by_length

log = logging.getLogger(__name__)

LOG_COLUMNS = ("step", "tokens", "train_loss", "lr", "grad_norm", "bp_per_s", "val_loss")
LOG_NAME, VALIDATION_NAME, BEST_NAME = "log.tsv", "validation.tsv", "best"
WATCHED = 100
"""Steps whose mean training loss is watched for divergence."""


class Watch:
    """Sees training losses go by, and when their mean over `WATCHED` steps leaves its lowest value behind.

    Parameters
    ----------
    limit
        How far it may rise, nats; 0 for any.
    losses
        Of the steps so far.
    """

    def __init__(self, limit: float, losses: Iterable[float] = ()) -> None:
        self._limit, self._last = limit, deque[float](maxlen=WATCHED)
        self.lowest = self.now = float("inf")
        for loss in losses:
            self.see(loss)

    def see(self, loss: float) -> bool:
        """Take the loss of a step; returns whether training has diverged."""
        self._last.append(loss)
        if len(self._last) < WATCHED:
            return False
        self.now = sum(self._last) / WATCHED
        self.lowest = min(self.lowest, self.now)
        return self._limit > 0 and self.now > self.lowest + self._limit


def fit(
    model: Model,
    corpus: Corpus,
    settings: PretrainSettings,
    run: Path,
    *,
    resume: bool,
    recompute: bool = False,
    save_every: float = 300.0,
    progress: Any = None,
    board: Any = None,
    group: Group = ALONE,
) -> Losses:
    """Train until `settings.steps`, logging to ``run/log.tsv`` and saving snapshots that resume exactly.

    Validation losses of every length go to ``run/validation.tsv``; the weights of the lowest one at the training
    window are kept in ``run/best``.

    Parameters
    ----------
    model
        Trained in place.
    run
        Folder of the run.
    resume
        Continue from the last snapshot in it, if there is one.
    recompute
        Run blocks again in the backward pass: the same weights for less memory.
    save_every
        Seconds between snapshots.
    progress
        Something with ``update(n)`` and ``set_postfix_str(text)``.
    board
        Something with ``add_scalar(name, value, step)``, as TensorBoard's writer.
    group
        The processes that share the work; all see the same folder, and the first one writes to it.

    Returns
    -------
    dict
        The last validation losses by genome, at the training window.

    Raises
    ------
    NumericalError
        When the loss or the gradient is not finite, or training diverges, naming the step and the weights before.
    """
    set_precision(model, settings)
    optimizer = build_optimizer(
        model, rate=settings.lr, betas=(settings.beta1, settings.beta2), weight_decay=settings.weight_decay
    )
    identity = {"settings": dataclasses.asdict(settings), "model": model.config.to_json(), "data": corpus.fingerprint()}
    windows = windows_by_length(corpus, settings, model)
    names = sorted({corpus.names[w.source] for w in windows[settings.window]})
    columns = LOG_COLUMNS + tuple(f"val_{name}" for name in names)
    start = load_snapshot(run, model, optimizer, identity) if resume else 0
    group.agree(start, f"--resume {run}")
    rows = read_log(run / LOG_NAME, columns, start)
    if group.leads:
        trim_log(run / LOG_NAME, columns, start)
        trim_log(run / VALIDATION_NAME, VALIDATION_COLUMNS, start)
    watch = Watch(settings.divergence, (float(row[2]) for row in rows))
    best = min((float(row[6]) for row in rows if row[6]), default=float("inf"))
    saved = time.monotonic()
    scores: dict[int, Losses] = {}
    # `whole`: weights, optimizer and log all stand at `done` steps.
    done, whole = start, True
    try:
        with open(run / LOG_NAME if group.leads else os.devnull, "a", encoding="utf-8") as table:
            for step in range(start, settings.steps):
                began = time.monotonic()
                model.train()
                try:
                    loss, norm = gradients(model, corpus, settings, step, recompute=recompute, group=group)
                except NumericalError as error:
                    raise NumericalError(f"{error}; {_weights_before(run, done)}") from error
                whole = False
                rate = update(optimizer, settings, step)
                speed = settings.window_at(step) * settings.windows_per_step / (time.monotonic() - began)
                last = step + 1 == settings.steps
                checked: Losses = {}
                if any(windows.values()) and (last or (step + 1) % settings.val_every == 0):
                    scores = {length: validate(model, corpus, of, settings, group) for length, of in windows.items()}
                    checked = scores[settings.window]
                if group.leads:
                    if scores and checked:
                        _say(step + 1, loss, scores)
                    value = f"{mean(checked.values()):.6g}" if checked else ""
                    if value and float(value) < best:
                        best = float(value)
                        about = {"step": step + 1, "settings": identity["settings"], "validation": checked}
                        save_model(model, run / BEST_NAME, {"training": about})
                    row = [
                        str(step + 1), str(settings.bases_until(step + 1)), f"{loss:.6g}", f"{rate:.6g}",
                        f"{norm:.6g}", f"{speed:.6g}", value,
                    ]  # fmt: skip
                    # A genome whose validation regions are all N has windows but no score.
                    row += [f"{checked[name]:.6g}" if name in checked else "" for name in names]
                    if checked or (scores and last):
                        add_rows(run / VALIDATION_NAME, step + 1, scores)
                    _write(table, row)
                    _to_board(board, columns, row)
                done = step + 1
                whole = True
                if progress is not None:
                    progress.update(1)
                    progress.set_postfix_str(f"loss {loss:.4f}, {speed:,.0f} bp/s")
                if watch.see(float(f"{loss:.6g}")):
                    raise NumericalError(
                        f"step {done}: diverged, the mean training loss of {WATCHED} steps is {watch.now:.4f}, it was "
                        f"{watch.lowest:.4f}; {_weights_before(run, done)}. A lower --lr or a longer --warmup may help"
                    )
                if group.leads and (last or time.monotonic() - saved > save_every):
                    save_snapshot(run, model, optimizer, identity, done)
                    saved = time.monotonic()
    except BaseException as error:
        # Interrupted, terminated or left alone, not failed: keep what was done since the last snapshot.
        failed = isinstance(error, Exception) and not isinstance(error, PeerLostError)
        if group.leads and whole and done > last_step(run) and not failed:
            save_snapshot(run, model, optimizer, identity, done)
            log.info("stopped after step %d; snapshot saved", done)
        raise
    if not scores and windows[settings.window]:
        return validate(model, corpus, windows[settings.window], settings, group)
    return scores.get(settings.window, {})


def _say(step: int, loss: float, scores: dict[int, Losses]) -> None:
    (window, here), *others = scores.items()
    text = ", ".join(f"{name} {value:.4f}" for name, value in here.items())
    text += "".join(f"; at {length:,} bp {mean(of.values()):.4f}" for length, of in others if of)
    log.info("step %d: train %.4f, validation at %s bp %s", step, loss, f"{window:,}", text)


def _weights_before(run: Path, done: int) -> str:
    """Say which weights of the run may be gone on from."""
    if (run / BEST_NAME / "model.safetensors").is_file():
        return f"weights of the lowest validation loss are in {run / BEST_NAME}"
    step = last_step(run)
    return f"the last snapshot is of step {step}" if step else f"no weights were saved in {done} steps"


def _write(table: IO[str], row: Sequence[str]) -> None:
    table.write("\t".join(row) + "\n")
    table.flush()


def _to_board(board: Any, columns: Sequence[str], row: Sequence[str]) -> None:
    if board is not None:
        for name, value in zip(columns[1:], row[1:], strict=True):
            if value:
                board.add_scalar(name, float(value), int(row[0]))


def read_log(path: Path, columns: tuple[str, ...], steps: int) -> list[list[str]]:
    """Return the whole rows of the first `steps` steps of a log."""
    if not steps or not path.is_file():
        return []
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    return [row for row in rows if len(row) == len(columns) and row[0].isdigit() and int(row[0]) <= steps]


def trim_log(path: Path, columns: tuple[str, ...], steps: int) -> None:
    """Make a log hold the header and the first `steps` steps: what a killed run wrote after its snapshot goes."""
    kept = [columns, *read_log(path, columns, steps)]
    partial = path.with_name(path.name + ".partial")
    partial.write_text("".join("\t".join(cells) + "\n" for cells in kept), encoding="utf-8")
    partial.replace(path)
