"""Masked loss on validation windows of several lengths: the paper's figure of loss against training step."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
import torch

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


class Piece(NamedTuple):
    """A validation window, which is cut from a place."""

    place: Window
    number: int
    """Of the place, whatever the window's length; it decides the masks."""
    offset: int
    """Where it begins in its place, bp."""


def windows_by_length(corpus: Corpus, settings: PretrainSettings, model: Model) -> dict[int, list[Piece]]:
    """Choose the validation windows of each length, `settings.window` first.

    All are cut from the same places, as long as the longest length that a genome's regions hold, so that losses at
    several lengths are of the same bases, but for what is left over at the end of a place.

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
    numbered = list(enumerate(place for source in sorted(places) for place in places[source]))
    chosen = {}
    for length in lengths:
        chosen[length] = [
            Piece(place, number, offset)
            for number, place in numbered
            for offset in range(0, place.end - place.start - length + 1, length)
        ]
        if not chosen[length] and corpus.has_validation:
            log.warning("no validation region holds a window of %d bp", length)
    return chosen


@torch.no_grad()
def validate(
    model: Model, corpus: Corpus, windows: list[Piece], length: int, settings: PretrainSettings, group: Group = ALONE
) -> Losses:
    """Return the mean masked loss of each genome that has windows of `length`, the same masks every time.

    A place is corrupted as a whole, so that its masks are the same at every length; those of 6-mers are drawn anew for
    each window, since their tokens begin elsewhere.
    """
    device, fraction = model.embedding.device, settings.mask_fraction
    whole = not (isinstance(model, NucleotideTransformer) and model.config.kmers)
    chunk = settings.chunk
    if not chunk and length > CPU_PASS and not isinstance(model, NucleotideTransformer):
        chunk = default_chunk(model, device.type)
    sums = np.zeros((len(corpus.names), 2))
    last = -1
    for index in group.share(len(windows)):
        place, number, offset = windows[index]
        if number != last:
            bases, last = corpus.fetch(place), number
            if whole:
                truth, (ids, targets) = masked_example(
                    model.config, bases, sample_rng(settings.seed, _STEP, number), fraction
                )
        here = slice(offset, offset + length)
        if whole:
            example = truth[here], Masked(ids[here], targets[here])
        else:
            rng = sample_rng(settings.seed, _STEP, number + (offset // length << 12))
            example = masked_example(model.config, bases[here], rng, fraction)
        if example[1].targets.any():
            loss = batch_loss(model, [example], device, chunk)
            sums[place.source] += float(loss.double().sum()), len(loss)
    summed = np.array(group.total(sums.ravel().tolist())).reshape(sums.shape)
    return {
        name: float(total / count) for name, (total, count) in zip(corpus.names, summed, strict=True) if count
    }
