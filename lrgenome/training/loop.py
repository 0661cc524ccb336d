"""The pre-training loop."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lrgenome.engine.memory import graph_bytes
from lrgenome.engine.sweep import hidden_states
from lrgenome.errors import MemoryLimitError, NumericalError, UsageError
from lrgenome.models.families import Model
from lrgenome.models.nucleotide_transformer import NucleotideTransformer
from lrgenome.training.data import Corpus, Window, sample_rng
from lrgenome.training.objective import Masked, masked_example, masked_losses, tokens_of
from lrgenome.training.optim import build_optimizer, learning_rate
from lrgenome.training.snapshot import last_step, load_snapshot, save_snapshot

log = logging.getLogger(__name__)

LOG_COLUMNS = ("step", "tokens", "train_loss", "lr", "grad_norm", "bp_per_s", "val_loss")
RECOMPUTE = ("auto", "always", "never")
CPU_PASS = 16_384
"""Positions that a CPU takes through the model at once, as far as whole windows allow: more are no faster."""
_GRAPH_SHARE = 0.6
"""Part of the free memory from which a graph is too large to be kept whole."""
_MOST = 0.9
"""Part of the free memory that training may be expected to take."""
_VALIDATION_STEP = (1 << 39) - 1
"""Step number whose random numbers corrupt the validation windows; no run reaches it."""


@dataclass(frozen=True)
class PretrainSettings:
    """What decides the weights that a run makes, besides model settings and manifest."""

    window: int = 12_000
    """Window length, bp."""
    batch_size: int = 8
    """Windows of a batch."""
    accumulate: int = 12
    """Batches per optimizer step; the paper's effective batch is 96."""
    steps: int = 260_417
    """Optimizer steps; the paper's 300 Gbp at 96 x 12 kbp."""
    warmup: int = 2_000
    """Steps of linear warm-up."""
    lr_min: float = 1e-8
    """Learning rate that the warm-up starts from and the cosine ends at."""
    lr: float = 1e-4
    """Highest learning rate."""
    weight_decay: float = 0.1
    """AdamW's, on matrices only."""
    beta1: float = 0.9
    """AdamW's decay of the mean."""
    beta2: float = 0.95
    """AdamW's decay of the square."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    mask_fraction: float = 0.15
    """Share of bases that are targets."""
    seed: int = 0
    """Of weights, windows and masks."""
    precision: str = "bfloat16"
    """Of matrix products and activations; weights and the residual stream are float32."""
    chunk: int = 0
    """Positions at a time in the sweeps; 0 is the whole window."""
    val_every: int = 1_000
    """Steps between validations."""
    val_windows: int = 16
    """Validation windows per genome."""

    def __post_init__(self) -> None:
        for field in ("window", "batch_size", "accumulate", "steps", "val_every", "val_windows"):
            if getattr(self, field) < 1:
                raise UsageError(f"--{field.replace('_', '-')}: got {getattr(self, field)}, expected at least 1")
        if not 0 <= self.warmup < self.steps:
            raise UsageError(f"--warmup: got {self.warmup}, expected 0 or more and fewer than --steps {self.steps}")
        if not 0 < self.mask_fraction < 1:
            raise UsageError(f"--mask-fraction: got {self.mask_fraction}, expected between 0 and 1")
        if not 0 <= self.lr_min <= self.lr or not math.isfinite(self.lr):
            raise UsageError(f"--lr: got {self.lr}, expected a finite number of at least --lr-min {self.lr_min}")
        if not 0 <= self.weight_decay < math.inf:
            raise UsageError(f"--weight-decay: got {self.weight_decay}, expected a finite number of at least 0")
        if not 0 < self.clip:
            raise UsageError(f"--clip: got {self.clip}, expected more than 0")
        if not 0 <= self.seed < 1 << 63:
            raise UsageError(f"--seed: got {self.seed}, expected a whole number from 0 to 2^63 - 1")
        if self.chunk < 0:
            raise UsageError(f"--chunk: got {self.chunk}, expected 0 (the whole window) or more")

    @property
    def tokens_per_step(self) -> int:
        """Bases that one optimizer step sees."""
        return self.window * self.batch_size * self.accumulate


def batch_loss(
    model: Model, batch: list[tuple[np.ndarray, Masked]], device: torch.device, chunk: int, *, recompute: bool = False
) -> Tensor:
    """Return the (n,) losses at the targets of a batch of (true ids, corrupted window)."""
    lengths = [len(truth) for truth, _ in batch]
    ids = _stacked([m.ids for _, m in batch]).to(device)
    targets = _stacked([m.targets for _, m in batch]).to(device)
    truth = _stacked([t for t, _ in batch]).to(device)
    if isinstance(model, NucleotideTransformer):
        hidden = model.encode(ids, lengths)
        return masked_losses(model.head(hidden[targets]), truth[targets])
    hidden = hidden_states(model, ids, chunk=chunk or None, recompute=recompute)
    return masked_losses(model.logits(hidden[targets]), truth[targets])


def _stacked(rows: list[np.ndarray]) -> Tensor:
    """Make one (b, n) tensor of rows; shorter ones (windows with N are of more tokens than others) end in zeros."""
    out = np.zeros((len(rows), max(len(row) for row in rows)), dtype=rows[0].dtype)
    for target, row in zip(out, rows, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(out)


def set_precision(model: Model, settings: PretrainSettings) -> None:
    """Choose the dtypes of training: matrix products in that of the settings, residual stream float32."""
    model.set_compute_dtype(getattr(torch, settings.precision), residual=torch.float32)


def windows_at_once(settings: PretrainSettings, device: torch.device) -> int:
    """Return how many windows of a batch go through the model together."""
    if device.type != "cpu":
        return settings.batch_size
    return min(settings.batch_size, max(1, CPU_PASS // settings.window))


def choose_recompute(model: Model, settings: PretrainSettings, recompute: str, free: int) -> bool:
    """Decide whether blocks are run again in the backward pass rather than kept; `free` is in bytes.

    Raises
    ------
    MemoryLimitError
        If one pass does not fit either way.
    """
    if recompute not in RECOMPUTE:
        raise UsageError(f"--recompute: got {recompute!r}, expected one of {', '.join(RECOMPUTE)}")
    if recompute == "always" and settings.chunk:
        raise UsageError(f"--recompute always: got --chunk {settings.chunk}, expected 0: it needs whole windows")
    if isinstance(model, NucleotideTransformer) and (recompute == "always" or settings.chunk):
        raise UsageError("--recompute always and --chunk are of recurrent models; this one runs whole windows")
    tokens = windows_at_once(settings, model.embedding.device) * tokens_of(model.config, settings.window)
    kept, least = (graph_bytes(model, tokens, recompute=again) for again in (False, True))
    possible = not settings.chunk and not isinstance(model, NucleotideTransformer)
    chosen = recompute == "always" or (recompute == "auto" and possible and kept > _GRAPH_SHARE * free)
    # Besides the graph: gradients, and AdamW's two moments.
    needed = (least if chosen else kept) + 3 * sum(p.nbytes for p in model.parameters())
    if needed > _MOST * free:
        raise MemoryLimitError(
            f"a pass over {tokens:,} bp needs about {needed / 1e9:.1f} GB, free are {free / 1e9:.1f} GB: use a shorter "
            "--window" + ("" if chosen else ", or --recompute always with --chunk 0")
        )
    log.info("%s bp at once, %s: about %.1f GB", f"{tokens:,}", "blocks run again" if chosen else "graph kept",
             needed / 1e9)  # fmt: skip
    return chosen


def gradients(
    model: Model, corpus: Corpus, settings: PretrainSettings, step: int, *, recompute: bool = False
) -> tuple[float, float]:
    """Leave the clipped gradients of one step in the model; returns the loss in nats per masked base and their norm."""
    device = model.embedding.device
    model.zero_grad(set_to_none=True)
    batches = []
    for micro in range(settings.accumulate):
        batch = []
        for i in range(settings.batch_size):
            rng = sample_rng(settings.seed, step, micro * settings.batch_size + i)
            ids = corpus.draw(rng)
            batch.append(masked_example(model.config, ids, rng, settings.mask_fraction))
        batches.append(batch)
    count = sum(int(masked.targets.sum()) for batch in batches for _, masked in batch)
    total, most = 0.0, windows_at_once(settings, device)
    for part in (batch[i : i + most] for batch in batches for i in range(0, len(batch), most)):
        # Divided by the targets of the whole step, so that accumulation equals one large batch.
        loss = batch_loss(model, part, device, settings.chunk, recompute=recompute).sum() / max(1, count)
        loss.backward()
        total += loss.item()
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip))
    if not (math.isfinite(total) and math.isfinite(norm)):
        raise NumericalError(f"step {step + 1}: loss {total}, gradient norm {norm}; expected finite numbers")
    return total, norm


def update(optimizer: torch.optim.Optimizer, settings: PretrainSettings, step: int) -> float:
    """Apply the gradients at the learning rate of the step, and return that."""
    rate = learning_rate(step, warmup=settings.warmup, steps=settings.steps, low=settings.lr_min, high=settings.lr)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return rate


@torch.no_grad()
def validate(model: Model, corpus: Corpus, windows: list[Window], settings: PretrainSettings) -> dict[str, float]:
    """Return the mean masked loss of each genome that has validation windows, the same masks every time."""
    losses: dict[str, list[Tensor]] = {}
    for index, window in enumerate(windows):
        ids = corpus.fetch(window)
        rng = sample_rng(settings.seed, _VALIDATION_STEP, index)
        truth, masked = masked_example(model.config, ids, rng, settings.mask_fraction)
        if masked.targets.any():
            loss = batch_loss(model, [(truth, masked)], model.embedding.device, settings.chunk)
            losses.setdefault(corpus.names[window.source], []).append(loss)
    return {name: torch.cat(parts).double().mean().item() for name, parts in losses.items()}


def fit(
    model: Model,
    corpus: Corpus,
    settings: PretrainSettings,
    run: Path,
    *,
    resume: bool,
    recompute: bool = False,
    save_every: float = 300.0,
    progress: object | None = None,
) -> dict[str, float]:
    """Train until `settings.steps`, logging to ``run/log.tsv`` and saving snapshots that resume exactly.

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

    Returns
    -------
    dict
        The last validation losses by genome.

    Raises
    ------
    NumericalError
        When the loss or the gradient is not finite, naming the step.
    """
    set_precision(model, settings)
    optimizer = build_optimizer(
        model, rate=settings.lr, betas=(settings.beta1, settings.beta2), weight_decay=settings.weight_decay
    )
    identity = {"settings": dataclasses.asdict(settings), "model": model.config.to_json(), "data": corpus.fingerprint()}
    windows = corpus.validation_windows(settings.val_windows)
    names = sorted({corpus.names[w.source] for w in windows})
    columns = LOG_COLUMNS + tuple(f"val_{name}" for name in names)
    start = load_snapshot(run, model, optimizer, identity) if resume else 0
    log_path = run / "log.tsv"
    trim_log(log_path, columns, start)
    saved = time.monotonic()
    scores: dict[str, float] = {}
    # `whole`: weights, optimizer and log all stand at `done` steps.
    done, whole = start, True
    try:
        with open(log_path, "a", encoding="utf-8") as table:
            for step in range(start, settings.steps):
                began = time.monotonic()
                model.train()
                loss, norm = gradients(model, corpus, settings, step, recompute=recompute)
                whole = False
                rate = update(optimizer, settings, step)
                speed = settings.tokens_per_step / (time.monotonic() - began)
                last = step + 1 == settings.steps
                checked: dict[str, float] = {}
                if windows and (last or (step + 1) % settings.val_every == 0):
                    scores = checked = validate(model, corpus, windows, settings)
                    log.info("step %d: train %.4f, validation %s", step + 1, loss,
                             ", ".join(f"{k} {v:.4f}" for k, v in scores.items()))  # fmt: skip
                row = [
                    str(step + 1), str((step + 1) * settings.tokens_per_step), f"{loss:.6g}", f"{rate:.6g}",
                    f"{norm:.6g}", f"{speed:.6g}", f"{np.mean(list(checked.values())):.6g}" if checked else "",
                ]  # fmt: skip
                # A genome whose validation regions are all N has windows but no score.
                row += [f"{checked[name]:.6g}" if name in checked else "" for name in names]
                table.write("\t".join(row) + "\n")
                table.flush()
                done = step + 1
                whole = True
                if progress is not None:
                    progress.update(1)  # type: ignore[attr-defined]
                    progress.set_postfix_str(f"loss {loss:.4f}, {speed:,.0f} bp/s")  # type: ignore[attr-defined]
                if last or time.monotonic() - saved > save_every:
                    save_snapshot(run, model, optimizer, identity, done)
                    saved = time.monotonic()
    except BaseException as error:
        # Interrupted or terminated, not failed: keep what was done since the last snapshot.
        if whole and done > last_step(run) and not isinstance(error, Exception):
            save_snapshot(run, model, optimizer, identity, done)
            log.info("stopped after step %d; snapshot saved", done)
        raise
    if not scores and windows:
        scores = validate(model, corpus, windows, settings)
    return scores


def trim_log(path: Path, columns: tuple[str, ...], steps: int) -> None:
    """Make the log hold the header and the first `steps` steps: what a killed run wrote after its snapshot goes."""
    kept = ["\t".join(columns)]
    if steps and path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines()[1:]:
            cells = line.split("\t")
            if len(cells) == len(columns) and cells[0].isdigit() and int(cells[0]) <= steps:
                kept.append(line)
    partial = path.with_name(path.name + ".partial")
    partial.write_text("\n".join(kept) + "\n", encoding="utf-8")
    partial.replace(path)
