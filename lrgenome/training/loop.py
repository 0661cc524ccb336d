"""The pre-training loop."""

from __future__ import annotations

import dataclasses
import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from lrgenome.errors import NumericalError, PeerLostError
from lrgenome.models.checkpoint import WEIGHTS_NAME
from lrgenome.models.families import Model
from lrgenome.training.data import Corpus
from lrgenome.training.optim import build_optimizer
from lrgenome.training.parallel import ALONE, Group
from lrgenome.training.run_log import BEST_NAME, RunLog
from lrgenome.training.settings import PretrainSettings
from lrgenome.training.snapshot import last_step, load_snapshot, save_snapshot
from lrgenome.training.states import InitialStates
from lrgenome.training.step import gradients, set_precision, update
from lrgenome.training.validation import Losses, validate, windows_by_length

log = logging.getLogger(__name__)

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
    identity = {"settings": of_weights(settings), "model": model.config.to_json(), "data": corpus.fingerprint()}
    windows = windows_by_length(corpus, settings, model)
    states = InitialStates(model, settings.state_init, settings.windows_per_step, group)
    start = load_snapshot(run, model, optimizer, identity, of_weights(PretrainSettings()), states) if resume else 0
    group.agree(start, f"--resume {run}")
    saved = time.monotonic()
    scores: dict[int, Losses] = {}
    # `whole`: weights, optimizer and log all stand at `done` steps.
    done, whole = start, True
    with ExitStack() as stack:
        record = None
        if group.leads:
            names = sorted({corpus.names[w.place.source] for w in windows[settings.window]})
            record = stack.enter_context(RunLog(run, settings.window, names, start, board))
        watch = Watch(settings.divergence, record.losses if record else ())
        try:
            for step in range(start, settings.steps):
                began = time.monotonic()
                model.train()
                loss, norm = gradients(model, corpus, settings, step, recompute=recompute, group=group, states=states)
                last = step + 1 == settings.steps
                looks = any(windows.values()) and (last or (step + 1) % settings.val_every == 0)
                # A validation may take minutes, and is not worth waiting for.
                with nullcontext() if looks else signals_held_back():
                    whole = False
                    rate = update(optimizer, settings, step)
                    states.advance()
                    speed = settings.window_at(step) * settings.windows_per_step / (time.monotonic() - began)
                    checked: dict[int, Losses] = {}
                    if looks:
                        checked = {
                            length: validate(model, corpus, of, length, settings, group)
                            for length, of in windows.items()
                        }
                        scores = checked
                    if record is not None:
                        record.add(model, step + 1, settings.bases_until(step + 1), loss, rate, norm, speed, checked,
                                   {"settings": identity["settings"]})  # fmt: skip
                    done = step + 1
                    whole = True
                if progress is not None:
                    progress.update(1)
                    progress.set_postfix_str(f"loss {loss:.4f}, {speed:,.0f} bp/s")
                if record is not None and watch.see(float(f"{loss:.6g}")):
                    raise NumericalError(
                        f"step {done}: diverged, the mean training loss of {WATCHED} steps is {watch.now:.4f}, it was "
                        f"{watch.lowest:.4f} (a lower --lr or a longer --warmup may help)"
                    )
                if record is not None and (last or time.monotonic() - saved > save_every):
                    save_snapshot(run, model, optimizer, identity, done, states)
                    saved = time.monotonic()
        except NumericalError as error:
            raise NumericalError(f"{error}; {_weights_before(run, done)}") from error
        except BaseException as error:
            # Interrupted, terminated or left alone, not failed: keep what was done since the last snapshot.
            failed = isinstance(error, Exception) and not isinstance(error, PeerLostError)
            if record is not None and whole and done > last_step(run) and not failed:
                with signals_held_back():
                    save_snapshot(run, model, optimizer, identity, done, states)
                    log.info("stopped after step %d; snapshot saved", done)
            raise
    if not scores and windows[settings.window]:
        return validate(model, corpus, windows[settings.window], settings.window, settings, group)
    return scores.get(settings.window, {})


def of_weights(settings: PretrainSettings) -> dict[str, Any]:
    """Return the settings without those that may change when a run is resumed: what is only looked at."""
    looks = ("divergence", "val_every", "val_windows", "val_lengths")
    return {name: value for name, value in dataclasses.asdict(settings).items() if name not in looks}


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Let the signals that end a run wait until the block ends.

    By other handlers: a mask of this thread would leave them to the other threads of the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []
    before = {
        number: handler for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU)
        if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }  # fmt: skip
    for number in before:
        signal.signal(number, lambda number, frame: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])


def _weights_before(run: Path, done: int) -> str:
    """Say which weights of the run may be gone on from."""
    if (run / BEST_NAME / WEIGHTS_NAME).is_file():
        return f"weights of the lowest validation loss are in {run / BEST_NAME}"
    step = last_step(run)
    return f"the last snapshot is of step {step}" if step else f"no weights were saved in {done} steps"
