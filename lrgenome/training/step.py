"""One optimizer step: the loss of a step's windows, its gradients, and their application."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lrgenome.engine.memory import graph_bytes
from lrgenome.engine.sweep import EdgeStates, Ends, hidden_states
from lrgenome.errors import MemoryLimitError, NumericalError, UsageError
from lrgenome.models.families import Model
from lrgenome.models.nucleotide_transformer import NucleotideTransformer
from lrgenome.training.data import Corpus, sample_rng
from lrgenome.training.objective import Masked, masked_losses, tokens_of, training_example
from lrgenome.training.optim import learning_rate
from lrgenome.training.parallel import ALONE, Group
from lrgenome.training.settings import PretrainSettings
from lrgenome.training.states import InitialStates

log = logging.getLogger(__name__)

RECOMPUTE = ("auto", "always", "never")
CPU_PASS = 16_384
"""Positions that a CPU takes through the model at once, as far as whole windows allow: more are no faster."""
GPU_PASS = 131_072
"""The same for a GPU, which this many keep busy."""
_GRAPH_SHARE = 0.6
"""Part of the free memory from which a graph is too large to be kept whole."""
_MOST = 0.9
"""Part of the free memory that training may be expected to take."""
_PROBE_BASES = 4_096
"""Of a window by which the speed of a recurrent model is measured; its time is linear in the length."""


def batch_loss(
    model: Model, batch: Sequence[tuple[np.ndarray, Masked]], device: torch.device, chunk: int, *,
    recompute: bool = False, start: EdgeStates | None = None, ends: Ends | None = None,
) -> Tensor:  # fmt: skip
    """Return the (n,) losses at the targets of a batch of (true ids, corrupted window).

    `start` and `ends` are those of `engine.sweep.stream`.
    """
    lengths = [len(truth) for truth, _ in batch]
    ids = _stacked([m.ids for _, m in batch]).to(device)
    targets = _stacked([m.targets for _, m in batch]).to(device)
    truth = _stacked([t for t, _ in batch]).to(device)
    if isinstance(model, NucleotideTransformer):
        hidden = model.encode(ids, lengths)
        return masked_losses(model.head(hidden[targets]), truth[targets])
    hidden = hidden_states(model, ids, chunk=chunk or None, recompute=recompute, start=start, ends=ends)
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


def windows_at_once(settings: PretrainSettings, device: torch.device, window: int) -> int:
    """Return how many windows of a batch go through the model together."""
    most = CPU_PASS if device.type == "cpu" else GPU_PASS
    return min(settings.batch_size, max(1, most // window))


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
    tokens = max(
        windows_at_once(settings, model.embedding.device, window) * tokens_of(model.config, window)
        for window, _ in settings.phases
    )
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
    model: Model, corpus: Corpus, settings: PretrainSettings, step: int, *, recompute: bool = False,
    group: Group = ALONE, states: InitialStates | None = None,
) -> tuple[float, float]:  # fmt: skip
    """Leave the clipped gradients of one step in the model; returns the loss in nats per masked base and their norm.

    Each process takes its share of the step's windows; loss and gradients are of all of them. Windows begin as `states`
    says, which collects how they end.
    """
    device, window = model.embedding.device, settings.window_at(step)
    model.zero_grad(set_to_none=True)
    states = states or InitialStates(model, "zero", settings.windows_per_step)
    examples: list[tuple[np.ndarray, Masked]] = []
    begun: list[Tensor | None] = []
    mine = group.share(settings.windows_per_step)
    for index in mine:
        rng = sample_rng(settings.seed, step, index)
        bases = corpus.draw(rng, window)
        examples.append(training_example(model.config, bases, rng, settings.mask_fraction, settings.repeats))
        begun.append(states.draw(rng, index))
    (count,) = group.total([sum(int(masked.targets.sum()) for _, masked in examples)])
    total, most = 0.0, windows_at_once(settings, device, window)
    finals: dict[int, Tensor] = {}
    for numbers in _parts(begun, settings.batch_size, most):
        part, rows = [examples[i] for i in numbers], [row for i in numbers if (row := begun[i]) is not None]
        start = states.start_of(rows) if rows else None
        ends: Ends | None = None if states.kind == "zero" else {}
        # Divided by the targets of the whole step, so that accumulation equals one large batch.
        loss = batch_loss(model, part, device, settings.chunk, recompute=recompute, start=start, ends=ends)
        loss = loss.sum() / max(1, count)
        if ends:
            finals |= {mine[i]: row for i, row in zip(numbers, states.flat_of(ends), strict=True)}
        loss.backward()
        total += loss.item()
    (total,) = group.total([total])
    group.add_gradients(model.parameters())
    states.collect(finals)
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip))
    if not (math.isfinite(total) and math.isfinite(norm)):
        raise NumericalError(f"step {step + 1}: loss {total}, gradient norm {norm}; expected finite numbers")
    return total, norm


def measure_step(model: Model, settings: PretrainSettings, window: int, *, recompute: bool, windows: int) -> float:
    """Measure how long a step's gradients of so many windows take, in seconds, on random bases."""
    short = window if isinstance(model, NucleotideTransformer) else min(window, _PROBE_BASES)
    device = model.embedding.device
    rng = sample_rng(settings.seed, 0, 0)
    at_once = min(windows, windows_at_once(settings, device, window))
    batch = [
        training_example(model.config, rng.integers(7, 11, short, dtype=np.uint8), rng, settings.mask_fraction, 0.0)
        for _ in range(at_once)
    ]
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        began = time.perf_counter()
        batch_loss(model, batch, device, settings.chunk, recompute=recompute).mean().backward()
        # Waits for a GPU.
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip).item()
        seconds = time.perf_counter() - began
    model.zero_grad(set_to_none=True)
    return seconds * window / short * windows / at_once


def _parts(begun: Sequence[Tensor | None], batch: int, most: int) -> list[list[int]]:
    """Group windows as they go through the model: of one batch, at most `most`, all with a state or all without."""
    parts = []
    for low in range(0, len(begun), batch):
        numbers = range(low, min(low + batch, len(begun)))
        for alike in ([i for i in numbers if begun[i] is None], [i for i in numbers if begun[i] is not None]):
            parts += [alike[i : i + most] for i in range(0, len(alike), most)]
    return parts


def update(optimizer: torch.optim.Optimizer, settings: PretrainSettings, step: int) -> float:
    """Apply the gradients at the learning rate of the step, and return that."""
    rate = learning_rate(step, warmup=settings.warmup, steps=settings.steps, low=settings.lr_min, high=settings.lr)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return rate
