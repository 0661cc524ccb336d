"""Supervised training: the loss of labels, and loops that train a head alone or with its model.

Both loops stop when the validation loss has not fallen for some epochs, and give back the weights at its lowest. What a
step sees follows from seed, fold and step alone.
"""

from __future__ import annotations

import csv
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from lrgenome.config.head import HeadConfig
from lrgenome.errors import ModelError, NumericalError, UsageError
from lrgenome.models.families import Model
from lrgenome.models.heads import Extras, Head
from lrgenome.training.optim import NO_DECAY, learning_rate
from lrgenome.training.snapshot import load_snapshot, save_snapshot
from lrgenome.training.stretches import Spans, pooled_states

log = logging.getLogger(__name__)

Rows = npt.NDArray[np.int64]
_LOG = "log.tsv"
_COLUMNS = ("epoch", "step", "train_loss", "val_loss", "lr")


@dataclass(frozen=True)
class TuneSettings:
    """What decides the weights that supervised training makes."""

    epochs: int = 20
    """Passes over the training rows, at most."""
    batch_size: int = 32
    """Rows of an optimizer step."""
    lr: float = 1e-4
    """Highest learning rate of the model's last block."""
    head_lr: float = 1e-3
    """Highest learning rate of the head."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each block to the one before it, and to the embedding."""
    weight_decay: float = 0.01
    """AdamW's, on matrices only."""
    warmup: float = 0.05
    """Share of all steps with a rising learning rate."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    patience: int = 3
    """Stop after so many epochs without a lower validation loss."""
    class_weights: str = "none"
    """none; or balanced: positives weigh so that both classes weigh the same."""
    seed: int = 0
    """Of initial weights and of the order of rows."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')}: got {getattr(self, name)}, expected at least 1")
        for name in ("lr", "head_lr", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                got = getattr(self, name)
                raise UsageError(f"--{name.replace('_', '-')}: got {got}, expected a finite number >= 0")
        if not 0 < self.layer_decay <= 1:
            raise UsageError(f"--layer-decay: got {self.layer_decay}, expected more than 0 and at most 1")
        if not 0 <= self.warmup < 1:
            raise UsageError(f"--warmup: got {self.warmup}, expected a share of the steps from 0 to 1")
        if self.class_weights not in ("none", "balanced"):
            raise UsageError(f"--class-weights: got {self.class_weights!r}, expected none or balanced")
        if not 0 <= self.seed < 1 << 63:
            raise UsageError(f"--seed: got {self.seed}, expected a whole number from 0 to 2^63 - 1")


def positive_weights(config: HeadConfig, labels: npt.NDArray[np.float32], settings: TuneSettings) -> Tensor:
    """Return (m,) weights of positives against negatives, from the training labels (n, m)."""
    ones = torch.ones(len(config.outputs))
    if settings.class_weights == "none" or config.kind == "numbers":
        return ones
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.nansum(labels == 0, axis=0) / np.nansum(labels == 1, axis=0)
    return torch.from_numpy(np.where(np.isfinite(ratio) & (ratio > 0), ratio, 1.0)).float()


def label_losses(config: HeadConfig, logits: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return sums over rows (b,) of losses and of weights; labels that are NaN weigh nothing.

    Cross-entropy (classes), binary cross-entropy (labels), squared error (numbers).
    """
    known = ~torch.isnan(labels)
    truth = torch.nan_to_num(labels)
    weight = known.float()
    if config.kind == "numbers":
        loss = (logits - truth) ** 2
    else:
        weight = weight * torch.where(truth > 0.5, weights.to(truth), torch.ones_like(truth))
        if config.kind == "classes":
            loss = cross_entropy(logits, truth[:, 0].long(), reduction="none")[:, None]
        else:
            loss = binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return (loss * weight).flatten(1).sum(1), weight.flatten(1).sum(1)


class Windows(NamedTuple):
    """Windows of rows."""

    ids: Tensor
    """(b, S, t)"""
    spans: Spans | None
    """Of each of b x S windows; None where all are pooled alike."""


class TunedModel(nn.Module):
    """A model and a head on it."""

    def __init__(self, trunk: Model, head: Head, *, chunk: int | None = None, recompute: bool = False) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head
        self._chunk, self._recompute = chunk, recompute

    def forward(self, windows: Windows, extras: Extras) -> Tensor:
        """Make logits of the windows of rows."""
        ids, spans = windows
        b, sides, t = ids.shape
        pooled = pooled_states(
            self.trunk, ids.reshape(b * sides, t), self.head.config, spans, chunk=self._chunk,
            recompute=self._recompute,
        )  # fmt: skip
        return self.head(pooled.unflatten(0, (b, sides)), extras)


class Batches(NamedTuple):
    """Where the rows of a fold come from."""

    inputs: Callable[[Rows], Tensor | Windows]
    """Features (b, S, K, d) or windows of rows, on the device."""
    extras: Callable[[Rows], Extras]
    labels: Callable[[Rows], Tensor]
    name_of: Callable[[int], str]
    """Name of a row, for messages."""


def parameter_groups(model: nn.Module, settings: TuneSettings) -> list[dict[str, Any]]:
    """Make AdamW's groups: each with its highest learning rate (``peak``), and decay of matrices only."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    depth = len(model.trunk.blocks) if isinstance(model, TunedModel) else 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if not name.startswith("trunk."):
            rate = settings.head_lr
        else:
            parts = name.split(".")
            below = depth - 1 - int(parts[2]) if parts[1] == "blocks" else depth if "embedding" in name else 0
            rate = settings.lr * settings.layer_decay**below
        plain = parameter.ndim < 2 or any(word in name for word in NO_DECAY)
        groups.setdefault((rate, 0.0 if plain else settings.weight_decay), []).append(parameter)
    return [{"params": of, "lr": rate, "peak": rate, "weight_decay": decay} for (rate, decay), of in groups.items()]


@torch.no_grad()
def mean_loss(model: nn.Module, head: Head, batches: Batches, rows: Rows, weights: Tensor, at_once: int) -> float:
    """Return the mean loss over rows."""
    model.eval()
    total = count = 0.0
    for low in range(0, len(rows), at_once):
        part = rows[low : low + at_once]
        logits = model(batches.inputs(part), batches.extras(part))
        loss, weight = label_losses(head.config, logits, batches.labels(part), weights)
        total, count = total + float(loss.double().sum()), count + float(weight.double().sum())
    return total / max(count, 1e-9)


def fit_rows(
    model: nn.Module, head: Head, batches: Batches, train: Rows, validation: Rows, settings: TuneSettings, *,
    fold: int, weights: Tensor, at_once: int, folder: Path | None = None, identity: dict[str, Any] | None = None,
    save_every: float = 300.0, progress: Any = None,
) -> float:  # fmt: skip
    """Train on rows until the validation loss no longer falls, and leave the best weights in the model.

    Parameters
    ----------
    model
        A `Head` on features, or a `TunedModel` on windows.
    head
        The head in it.
    train, validation
        Numbers of rows.
    fold
        Number of the fold, which the order of rows depends on.
    weights
        (m,) of positives.
    at_once
        Rows that go through the model together.
    folder
        Where snapshots and a log are kept, from the last of which training goes on; None: not kept.
    identity
        What a snapshot must have been made with to be gone on from.

    Returns
    -------
    float
        The lowest validation loss.

    Raises
    ------
    NumericalError
        When a loss is not finite, naming the rows of the batch.
    """
    optimizer = torch.optim.AdamW(parameter_groups(model, settings), betas=(0.9, 0.99), eps=1e-8)
    per_epoch = -(-len(train) // settings.batch_size)
    steps = per_epoch * settings.epochs
    start, sums = 0, _Sums()
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        start = load_snapshot(folder, model, optimizer, identity or {}, more=sums)
    history = _History(None if folder is None else folder / _LOG, start)
    best = _Best(model, None if folder is None else folder / "best.pt.safetensors", bool(start))
    saved = time.monotonic()
    lowest = min((row[1] for row in history.rows), default=math.inf)
    since = len(history.rows) - 1 - int(np.argmin([row[1] for row in history.rows])) if history.rows else 0
    step = start
    while step < steps and since < settings.patience:
        epoch, at = divmod(step, per_epoch)
        order = np.random.Generator(np.random.Philox(key=[settings.seed, (fold << 32) | epoch])).permutation(train)
        rows = order[at * settings.batch_size : (at + 1) * settings.batch_size]
        rate = learning_rate(step, warmup=int(settings.warmup * steps), steps=steps, low=0.0, high=1.0)
        loss, weight = _step(model, head, batches, rows, weights, at_once, settings, optimizer, rate)
        sums.values += torch.tensor([loss, weight], dtype=torch.float64)
        step += 1
        if progress is not None:
            progress.update(len(rows))
        if step % per_epoch == 0:
            now = mean_loss(model, head, batches, validation, weights, at_once)
            if not math.isfinite(now):
                raise NumericalError(f"fold {fold + 1}, step {step}: the validation loss is {now}")
            since = 0 if now < lowest else since + 1
            history.add(step // per_epoch, step, sums.mean(), now, rate * settings.lr)
            if now < lowest:
                lowest = now
                best.keep()
            sums.values.zero_()
            if progress is not None:
                progress.set_postfix_str(f"fold {fold + 1}, validation loss {now:.4f}")
        if folder is not None and (step % per_epoch == 0 or time.monotonic() - saved > save_every):
            save_snapshot(folder, model, optimizer, identity or {}, step, sums)
            saved = time.monotonic()
    best.restore()
    return lowest


def _step(
    model: nn.Module, head: Head, batches: Batches, rows: Rows, weights: Tensor, at_once: int, settings: TuneSettings,
    optimizer: torch.optim.Optimizer, rate: float,
) -> tuple[float, float]:  # fmt: skip
    """Do one optimizer step; returns sums of loss and of weights."""
    model.train()
    optimizer.zero_grad(set_to_none=True)
    labels = batches.labels(rows)
    known = (~torch.isnan(labels)).flatten(1).sum(1)
    count = max(1.0, float(known.sum()))
    total = weight = 0.0
    for low in range(0, len(rows), at_once):
        part = rows[low : low + at_once]
        logits = model(batches.inputs(part), batches.extras(part))
        loss, weighed = label_losses(head.config, logits, labels[low : low + at_once], weights)
        (loss.sum() / count).backward()
        total, weight = total + float(loss.detach().double().sum()), weight + float(weighed.double().sum())
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), settings.clip))
    if not (math.isfinite(total) and math.isfinite(norm)):
        names = ", ".join([*(batches.name_of(int(row)) for row in rows[:8]), *(["..."] if len(rows) > 8 else [])])
        raise NumericalError(f"loss {total}, gradient norm {norm} in a batch of {len(rows)} rows ({names})")
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * rate
    optimizer.step()
    return total, weight


class _Sums:
    """Training loss of the epoch so far."""

    def __init__(self) -> None:
        self.values = torch.zeros(2, dtype=torch.float64)

    def mean(self) -> float:
        return float(self.values[0] / self.values[1].clamp_min(1e-9))

    def tensors(self) -> dict[str, Tensor]:
        return {"epoch": self.values}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        if tensors["epoch"].shape != self.values.shape:
            raise ModelError(f"training loss: expected epoch of shape {tuple(self.values.shape)}")
        self.values = tensors["epoch"].clone()


class _History:
    """The rows of a fold's log."""

    def __init__(self, path: Path | None, start: int) -> None:
        self._path = path
        self.rows: list[tuple[int, float]] = []
        """(step, validation loss)."""
        if path is None:
            return
        kept = []
        if start and path.is_file():
            with open(path, newline="", encoding="utf-8") as handle:
                kept = [row for row in csv.DictReader(handle, delimiter="\t") if int(row["step"]) <= start]
        self.rows = [(int(row["step"]), float(row["val_loss"])) for row in kept]
        lines = ["\t".join(_COLUMNS), *("\t".join(row[name] for name in _COLUMNS) for row in kept)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def add(self, epoch: int, step: int, train: float, validation: float, rate: float) -> None:
        self.rows.append((step, validation))
        if self._path is not None:
            with open(self._path, "a", encoding="utf-8") as handle:
                # All digits, so that a run that goes on compares with what this one did.
                handle.write(f"{epoch}\t{step}\t{train:.6g}\t{validation!r}\t{rate:.6g}\n")


class _Best:
    """The weights at the lowest validation loss, in memory or in a file."""

    def __init__(self, model: nn.Module, path: Path | None, resumed: bool) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        self._model, self._path = model, path
        self._kept: dict[str, Tensor] | None = None
        if resumed and path is not None and path.is_file():
            try:
                self._kept = load_file(path)
            except (OSError, SafetensorError) as error:
                raise ModelError(f"{path}: damaged or not safetensors ({error})") from error
            if {n: t.shape for n, t in self._kept.items()} != {n: t.shape for n, t in model.state_dict().items()}:
                raise ModelError(f"{path}: holds the weights of another model")

    def keep(self) -> None:
        from safetensors.torch import save_file

        self._kept = {name: t.detach().cpu().clone().contiguous() for name, t in self._model.state_dict().items()}
        if self._path is not None:
            partial = self._path.with_suffix(".partial")
            save_file(self._kept, partial)
            partial.replace(self._path)

    def restore(self) -> None:
        if self._kept is not None:
            self._model.load_state_dict(self._kept)


def identity_of(settings: TuneSettings, config: HeadConfig, **more: Any) -> dict[str, Any]:
    """Describe what training depends on, as JSON values, for the check on resuming."""
    return {"settings": dataclasses.asdict(settings), "head": config.to_json(), **more}


def rows_at_once(context: int, batch_size: int, sides: int, limit: int) -> int:
    """Return how many rows go through a model together: of about `limit` bases, at least one."""
    return max(1, min(batch_size, limit // (context * sides)))


def predict(
    model: nn.Module, head: Head, batches: Batches, rows: Sequence[int] | Rows, at_once: int
) -> npt.NDArray[np.float32]:
    """Return (n, [K,] m) predictions of rows."""
    model.eval()
    found = []
    array = np.asarray(rows, dtype=np.int64)
    with torch.no_grad():
        for low in range(0, len(array), at_once):
            part = array[low : low + at_once]
            logits = model(batches.inputs(part), batches.extras(part))
            found.append(head.predictions(logits).float().cpu().numpy())
    if not found:
        return np.zeros((0, len(head.config.outputs)), np.float32)
    return np.concatenate(found)


__all__ = [
    "Batches",
    "TuneSettings",
    "TunedModel",
    "Windows",
    "fit_rows",
    "identity_of",
    "label_losses",
    "mean_loss",
    "parameter_groups",
    "positive_weights",
    "predict",
    "rows_at_once",
]
