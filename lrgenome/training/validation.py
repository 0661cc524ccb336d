"""Masked loss on validation windows of several lengths: the paper's figure of loss against training step."""

from __future__ import annotations

import logging

import numpy as np
import torch

from lrgenome.engine.chunking import default_chunk
from lrgenome.errors import UsageError
from lrgenome.models.families import Model
from lrgenome.models.nucleotide_transformer import NucleotideTransformer
from lrgenome.training.data import Corpus, Window, sample_rng
from lrgenome.training.objective import masked_example, tokens_of
from lrgenome.training.parallel import ALONE, Group
from lrgenome.training.settings import PretrainSettings
from lrgenome.training.step import CPU_PASS, batch_loss

log = logging.getLogger(__name__)

_STEP = (1 << 39) - 1
"""Step number whose random numbers corrupt the validation windows; no run reaches it."""

Losses = dict[str, float]
"""By genome, nats per masked base."""


def windows_by_length(corpus: Corpus, settings: PretrainSettings, model: Model) -> dict[int, list[Window]]:
    """Choose the validation windows of each length, `settings.window` first; of any length about as many bases.

    Raises
    ------
    UsageError
        If a transformer is asked for windows of more tokens than it was made for.
    """
    lengths = dict.fromkeys((settings.window, *settings.val_lengths))
    if isinstance(model, NucleotideTransformer):
        for length, tokens in ((length, tokens_of(model.config, length)) for length in lengths):
            if tokens > model.config.max_tokens:
                raise UsageError(
                    f"--val-lengths: got {length} bp, which is {tokens} tokens, expected at most "
                    f"{model.config.max_tokens}"
                )
    chosen = {}
    for length in lengths:
        count = max(1, round(settings.val_windows * settings.window / length))
        chosen[length] = corpus.validation_windows(count, length)
        if not chosen[length] and corpus.has_validation:
            log.warning("no validation region holds a window of %d bp", length)
    return chosen


@torch.no_grad()
def validate(
    model: Model, corpus: Corpus, windows: list[Window], settings: PretrainSettings, group: Group = ALONE
) -> Losses:
    """Return the mean masked loss of each genome that has validation windows, the same masks every time."""
    device = model.embedding.device
    sums = np.zeros((len(corpus.names), 2))
    for index in group.share(len(windows)):
        window = windows[index]
        ids = corpus.fetch(window)
        rng = sample_rng(settings.seed, _STEP, index)
        truth, masked = masked_example(model.config, ids, rng, settings.mask_fraction)
        if masked.targets.any():
            chunk = settings.chunk
            if not chunk and len(ids) > CPU_PASS and not isinstance(model, NucleotideTransformer):
                chunk = default_chunk(model, device.type)
            loss = batch_loss(model, [(truth, masked)], device, chunk)
            sums[window.source] += float(loss.double().sum()), len(loss)
    summed = np.array(group.total(sums.ravel().tolist())).reshape(sums.shape)
    return {
        name: float(total / count) for name, (total, count) in zip(corpus.names, summed, strict=True) if count
    }
