"""From hidden states of windows to the means of stretches that a head reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lrgenome import kmers
from lrgenome.config.head import HeadConfig
from lrgenome.engine.runners import AnyRunner
from lrgenome.engine.sweep import hidden_states
from lrgenome.errors import UsageError
from lrgenome.glossary import FORWARD, REVERSE
from lrgenome.io.alleles import FLANK
from lrgenome.models.base import RecurrentModel
from lrgenome.models.families import Model
from lrgenome.models.nucleotide_transformer import NucleotideTransformer

AnyModel = Model | RecurrentModel
_STRANDS = {"forward": (FORWARD,), "both": (FORWARD, REVERSE)}


Spans = Sequence[tuple[tuple[int, int], ...]]
"""Of each window, what is pooled: 0-based half-open stretches."""


class Stretches(NamedTuple):
    """Where they are in a window."""

    low: int
    """First base of the first, 0-based."""
    number: int
    """How many."""
    size: int
    """Bases of each."""

    @property
    def high(self) -> int:
        """One past the last base of the last."""
        return self.low + self.number * self.size


def stretches_of(config: HeadConfig, length: int) -> Stretches:
    """Return the stretches that a head pools in windows of `length` bp.

    Raises
    ------
    UsageError
        If no stretch fits into such a window.
    """
    if config.pool == "bins":
        low, high = 0, length
    else:
        low, high = (max(0, min(length, length // 2 + offset)) for offset in (config.low, config.high))
    size = config.bin_size or high - low
    count = (high - low) // size if size > 0 else 0
    if config.pool == "bins":
        # An even number, so that the middle of the window is an edge between two, as that of the labels is.
        count -= count % 2
    if count < 1:
        raise UsageError(f"--context: got {length} bp, too short for what is pooled ({config.low} to {config.high} bp)")
    return Stretches(low + ((high - low) - count * size) // 2, count, size)


def pools_alleles(config: HeadConfig) -> bool:
    """Say whether a head reads the mean over each allele and its flanks, as `score-vcf` takes it."""
    return config.variants and config.pool == "mean" and (config.low, config.high) == (-FLANK, FLANK + 1)


def width_of(model: AnyModel) -> int:
    """Return the values of a pooled stretch: of a model that runs both strands, their sum."""
    return model.hidden_width() // model.strands


def pooled_states(
    model: Model, ids: Tensor, config: HeadConfig, spans: Spans | None = None, *,
    chunk: int | None = None, recompute: bool = False,
) -> Tensor:  # fmt: skip
    """Return (b, K, d) means over stretches of windows of base ids (b, t), differentiably.

    With `spans`, they are (b, 1, d) means over those of each window.
    """
    where = stretches_of(config, ids.shape[1])
    total = None
    strands = _STRANDS[config.strand]
    for strand in strands:
        if isinstance(model, NucleotideTransformer):
            hidden = _by_base(model, ids, strand)
        else:
            hidden = hidden_states(model, ids, chunk=chunk, recompute=recompute, strand=strand)
        if spans is None:
            mean = hidden[:, where.low : where.high].float().unflatten(1, (where.number, where.size)).mean(2)
        else:
            mean = torch.stack([
                torch.cat([states[low:high] for low, high in own]).float().mean(0, keepdim=True)
                for states, own in zip(hidden, spans, strict=True)
            ])  # fmt: skip
        if model.strands == 2:
            mean = mean[..., : mean.shape[-1] // 2] + mean[..., mean.shape[-1] // 2 :]
        total = mean if total is None else total + mean
    assert total is not None
    return total / len(strands)


def _by_base(model: NucleotideTransformer, ids: Tensor, strand: int) -> Tensor:
    """Return (b, t, d) hidden states of the token of each base, in genomic order."""
    from lrgenome.dna import reverse_complement

    bases = ids.cpu().numpy()
    cut = kmers.tokenize if model.config.kmers else kmers.single_bases
    rows = [cut(reverse_complement(row) if strand == REVERSE else row) for row in bases]
    longest = max(len(row.ids) for row in rows)
    tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
    for target, row in zip(tokens, rows, strict=True):
        target[: len(row.ids)] = torch.from_numpy(row.ids)
    hidden = model.encode(tokens.to(ids.device), [len(row.ids) for row in rows])
    places = torch.stack([torch.from_numpy(row.token) for row in rows]).to(ids.device)
    found = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
    return found.flip(1) if strand == REVERSE else found


def streamed_means(runner: AnyRunner, ids: Tensor, config: HeadConfig, spans: Spans | None = None) -> Tensor:
    """Return what `pooled_states` does, (b, K, d) float32 on the CPU, without a graph and in bounded memory."""
    where = stretches_of(config, ids.shape[1])
    model = runner.model
    sums = torch.zeros(ids.shape[0], 1 if spans else where.number, model.hidden_width(), dtype=torch.float64)
    for strand in _STRANDS[config.strand]:
        for part in runner.stream(ids, strand=strand):
            if spans is not None:
                for row, own in enumerate(spans):
                    for a, b in own:
                        low, high = max(part.start, a), min(part.end, b)
                        if low < high:
                            states = part.hidden[row, low - part.start : high - part.start]
                            sums[row, 0] += states.double().sum(0).cpu()
                continue
            low, high = max(part.start, where.low), min(part.end, where.high)
            if low >= high:
                continue
            stretch = (torch.arange(low, high) - where.low) // where.size
            rows = part.hidden[:, low - part.start : high - part.start].double().cpu()
            sums.index_add_(1, stretch, rows)
    sizes = torch.full((len(ids),), where.size) if spans is None else torch.tensor([
        max(1, sum(b - a for a, b in own)) for own in spans
    ])  # fmt: skip
    means = sums / (sizes[:, None, None] * len(_STRANDS[config.strand]))
    if model.strands == 2:
        means = means[..., : means.shape[-1] // 2] + means[..., means.shape[-1] // 2 :]
    return means.float()
