"""Heads on a frozen model: features that are computed once, and linear heads of scikit-learn."""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lrgenome.config.head import HeadConfig
from lrgenome.engine.runners import AnyRunner
from lrgenome.errors import NumericalError, OutputError, UsageError
from lrgenome.io.atomic import os_error_as_output_error, write_at_once
from lrgenome.models.heads import Head
from lrgenome.training.labelled import LabelledWindows
from lrgenome.training.stretches import pools_alleles, streamed_means, stretches_of, width_of

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
LINEAR = ("logistic", "ridge", "svm")
_BLOCK = 256
"""Rows between two notes of how far the features are."""
_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)


class Features(NamedTuple):
    """Pooled hidden states of rows."""

    values: Floats
    """(u, S, K, d) of the windows that differ."""
    place: Rows
    """(n,) which of them each row has; -1 for rows without."""


def compute_features(
    runner: AnyRunner, windows: LabelledWindows, rows: Rows, config: HeadConfig, *,
    model_sha256: str, cache: Path | None, at_once: int, progress: Any = None,
) -> Features:  # fmt: skip
    """Pool the hidden states of the windows of rows, each window once; from `cache`, as far as they are there.

    Parameters
    ----------
    cache
        Folder of features, each set in a file of its own with how far it is; None: not kept.
    at_once
        Windows that go through the model together.

    Raises
    ------
    NumericalError
        If a feature is not finite, naming the row.
    """
    first: dict[tuple[object, ...], int] = {}
    index = np.full(len(windows.examples), -1, dtype=np.int64)
    rows = np.array(windows.in_genome_order(rows), np.int64)
    for row in rows:
        index[row] = first.setdefault(windows.identity(int(row)), len(first))
    unique = np.zeros(len(first), dtype=np.int64)
    unique[index[rows][::-1]] = rows[::-1]
    sides = 2 if config.variants else 1
    shape = (len(unique), sides, stretches_of(config, windows.context).number, width_of(runner.model))
    key = {
        "model": model_sha256, "windows": windows.fingerprint(unique), "low": config.low, "high": config.high,
        "bin_size": config.bin_size, "alleles": pools_alleles(config), "bins": config.pool == "bins",
        "strand": config.strand, "shape": list(shape),
        "precision": str(runner.model.compute_dtype), "transfer": runner.transfer,
        "extension": getattr(runner, "extension", "none"),
    }  # fmt: skip
    store = _Store(cache, key, shape)
    done = store.done
    if done:
        log.info("features of %d of %d windows are in %s", done, len(unique), cache)
    if progress is not None:
        progress.update(done)
    per_pass = max(1, at_once // sides)
    for low in range(done, len(unique), _BLOCK):
        high = min(low + _BLOCK, len(unique))
        for start in range(low, high, per_pass):
            part = unique[start : min(start + per_pass, high)]
            # Full passes, so that a window's features do not depend on how many others there are.
            padded = [*part, *[part[-1]] * (per_pass - len(part))]
            ids = torch.from_numpy(np.concatenate([windows.windows(int(row)) for row in padded]))
            spans = [own for row in padded for own in windows.spans(int(row))] if pools_alleles(config) else None
            means = streamed_means(runner, ids, config, spans).unflatten(0, (per_pass, sides))[: len(part)].numpy()
            if not np.isfinite(means).all():
                bad = part[int(np.flatnonzero(~np.isfinite(means).reshape(len(part), -1).all(1))[0])]
                raise NumericalError(f"hidden states are not finite at {windows.examples.name_of(int(bad))}")
            store.values[start : start + len(part)] = means
            if progress is not None:
                progress.update(len(part))
        store.mark(high)
    return Features(store.values, index)


class _Store:
    """Features in a file, or in memory."""

    def __init__(self, folder: Path | None, key: dict[str, Any], shape: tuple[int, ...]) -> None:
        self.done, self._note = 0, Path()
        self.values: Floats
        self._file = folder is not None
        if folder is None:
            self.values = np.zeros(shape, np.float32)
            return
        text = json.dumps(key, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        path, self._note = folder / f"{name}.npy", folder / f"{name}.json"
        with os_error_as_output_error(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                note = json.loads(self._note.read_text(encoding="utf-8"))
                values = np.lib.format.open_memmap(path, mode="r+")
                if note["key"] == key and values.shape == shape and values.dtype == np.float32:
                    self.done, self.values = int(note["done"]), values
                    self._key = key
                    return
            except (OSError, ValueError, KeyError, TypeError):
                pass
            self._note.unlink(missing_ok=True)
            try:
                self.values = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
            except ValueError as error:
                raise OutputError(f"{path}: {error}") from error
        self._key = key

    def mark(self, done: int) -> None:
        """Note that the first `done` are there."""
        self.done = done
        if self._file:
            with os_error_as_output_error(self._note):
                self.values.flush()  # type: ignore[attr-defined]
                text = json.dumps({"done": done, "key": self._key}, indent=1, sort_keys=True) + "\n"
                write_at_once(self._note, text.encode(), 0o644)


def fit_linear(
    method: str, config: HeadConfig, x: Floats, y: Floats, x_val: Floats, y_val: Floats, *, balanced: bool, seed: int
) -> Head:
    """Fit a linear head by scikit-learn, its penalty chosen by the validation loss.

    Parameters
    ----------
    method
        logistic (binary labels), ridge (numbers) or svm (either); see `LINEAR`.
    x, x_val
        (n, i) inputs of the head's layer: the features, and what else comes in.
    y, y_val
        (n, m) labels; NaN where there is none.
    balanced
        Whether both classes weigh the same.
    """
    from sklearn.preprocessing import StandardScaler

    if (method == "logistic" and config.kind == "numbers") or (method == "ridge" and config.kind != "numbers"):
        raise UsageError(f"--train {method}: got labels of kind {config.kind}, expected "
                         f"{'binary ones' if method == 'logistic' else 'numbers'}")  # fmt: skip
    x, x_val = x.astype(np.float64), x_val.astype(np.float64)
    scaler = StandardScaler().fit(x)
    # Without a spread, a value says nothing.
    inputs, checks = scaler.transform(x), scaler.transform(x_val)
    head = Head(config)
    weight, bias = np.zeros((config.logits, x.shape[1])), np.zeros(config.logits)
    for output in range(y.shape[1]):
        row = output + 1 if config.kind == "classes" else output
        known, known_val = ~np.isnan(y[:, output]), ~np.isnan(y_val[:, output])
        weight[row], bias[row] = _fit_one(
            method, config.kind, inputs[known], y[known, output], checks[known_val], y_val[known_val, output],
            balanced=balanced, seed=seed,
        )  # fmt: skip
    weight = weight / scaler.scale_
    bias = bias - weight @ scaler.mean_
    with torch.no_grad():
        head.weights[0].copy_(torch.from_numpy(weight))
        head.biases[0].copy_(torch.from_numpy(bias))
    return head


def _fit_one(
    method: str, kind: str, x: npt.NDArray[Any], y: Floats, x_val: npt.NDArray[Any], y_val: Floats, *,
    balanced: bool, seed: int,
) -> tuple[npt.NDArray[np.float64], float]:  # fmt: skip
    """Return weights and bias of one output at the penalty of the lowest validation loss."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.svm import LinearSVC, LinearSVR

    if kind == "numbers" and not len(y):
        return np.zeros(x.shape[1]), 0.0
    if kind != "numbers" and len(np.unique(y)) < 2:
        # Of one class alone there is nothing to learn but that.
        rate = np.clip(float(y.mean()) if len(y) else 0.5, 1e-4, 1 - 1e-4)
        return np.zeros(x.shape[1]), float(np.log(rate / (1 - rate)))
    weigh = "balanced" if balanced and kind != "numbers" else None
    best: tuple[float, npt.NDArray[np.float64], float] | None = None
    seed %= 1 << 32
    # The strongest first, which stays where there is nothing to choose by.
    for penalty in reversed(_PENALTIES):
        if method == "logistic":
            model = LogisticRegression(C=1.0 / (penalty * len(y)), class_weight=weigh, max_iter=1_000)
        elif method == "ridge":
            model = Ridge(alpha=penalty * len(y))
        elif kind == "numbers":
            model = LinearSVR(C=1.0 / (penalty * len(y)), random_state=seed, max_iter=5_000)
        else:
            model = LinearSVC(C=1.0 / (penalty * len(y)), class_weight=weigh, random_state=seed, max_iter=5_000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x, y)
        weight, bias = np.ravel(model.coef_).astype(np.float64), float(np.ravel(model.intercept_)[0])
        if method == "svm" and kind != "numbers" and len(np.unique(y_val)) == 2:
            # Margins are no logits: Platt's scaling, on the validation rows.
            platt = LogisticRegression(C=1e6).fit((x_val @ weight + bias)[:, None], y_val)
            slope = float(platt.coef_[0, 0])
            weight, bias = weight * slope, bias * slope + float(platt.intercept_[0])
        score = x_val @ weight + bias
        if not len(y_val):
            loss = 0.0
        elif kind == "numbers":
            loss = float(np.mean((score - y_val) ** 2))
        else:
            loss = float(np.mean(np.logaddexp(0, score) - y_val * score))
        if best is None or loss < best[0]:
            best = loss, weight, bias
    assert best is not None
    return best[1], best[2]
