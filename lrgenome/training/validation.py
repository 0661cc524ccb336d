"""Masked loss on validation windows of several lengths: the paper's figure of loss against training step."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lrgenome.config import NucleotideTransformerConfig
from lrgenome.dna import IdArray
from lrgenome.engine.chunking import default_chunk
from lrgenome.errors import UsageError
from lrgenome.models.families import Model
from lrgenome.models.nucleotide_transformer import NucleotideTransformer
from lrgenome.training.data import Corpus, Window, sample_rng
from lrgenome.training.objective import Masked, masked_example, tokens_of
from lrgenome.training.parallel import ALONE, Group
from lrgenome.training.settings import PretrainSettings
from lrgenome.training.step import CPU_PASS, batch_loss

log = logging.getLogger(__name__)

_STEP = (1 << 39) - 1
"""Step number whose random numbers corrupt the validation windows; no run reaches it."""

Losses = dict[str, float]
"""By genome, nats per masked base."""


def places_by_length(corpus: Corpus, settings: PretrainSettings, model: Model) -> dict[int, list[Window]]:
    """Choose the places that windows of each length are cut from, `settings.window` first.

    They are as long as the longest length that a genome's regions hold, and the same for all shorter ones, so that
    losses at several lengths are of the same bases but for what is left over of a place.

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
    places: dict[int, list[Window]] = {}
    for length in sorted(lengths, reverse=True):
        count = max(1, round(settings.val_windows * settings.window / length))
        found = corpus.validation_windows(count, length)
        for source in {place.source for place in found} - set(places):
            places[source] = [place for place in found if place.source == source]
    every = [place for source in sorted(places) for place in places[source]]
    chosen = {length: [place for place in every if place.end - place.start >= length] for length in lengths}
    for length, of in chosen.items():
        if not of and corpus.has_validation:
            log.warning("no validation region holds a window of %d bp", length)
    return chosen


def _pieces(
    model: Model, ids: IdArray, length: int, fraction: float, rng: np.random.Generator
) -> Iterator[tuple[npt.NDArray[np.integer[Any]], Masked]]:
    """Cut a corrupted place into windows; its masks are the same whatever `length` is, except those of 6-mers."""
    if isinstance(model.config, NucleotideTransformerConfig) and model.config.kmers:
        for start in range(0, len(ids) - length + 1, length):
            yield masked_example(model.config, ids[start : start + length], rng, fraction)
    else:
        truth, (corrupted, targets) = masked_example(model.config, ids, rng, fraction)
        for start in range(0, len(ids) - length + 1, length):
            here = slice(start, start + length)
            yield truth[here], Masked(corrupted[here], targets[here])


@torch.no_grad()
def validate(
    model: Model, corpus: Corpus, places: list[Window], length: int, settings: PretrainSettings, group: Group = ALONE
) -> Losses:
    """Return the mean masked loss of each genome that has places, cut to `length`; the same masks every time."""
    device = model.embedding.device
    sums = np.zeros((len(corpus.names), 2))
    chunk = settings.chunk
    if not chunk and length > CPU_PASS and not isinstance(model, NucleotideTransformer):
        chunk = default_chunk(model, device.type)
    for index in group.share(len(places)):
        place = places[index]
        ids, rng = corpus.fetch(place), sample_rng(settings.seed, _STEP, index)
        for truth, masked in _pieces(model, ids, length, settings.mask_fraction, rng):
            if masked.targets.any():
                loss = batch_loss(model, [(truth, masked)], device, chunk)
                sums[place.source] += float(loss.double().sum()), len(loss)
    summed = np.array(group.total(sums.ravel().tolist())).reshape(sums.shape)
    return {
        name: float(total / count) for name, (total, count) in zip(corpus.names, summed, strict=True) if count
    }
