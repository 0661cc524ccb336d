"""What `lrgenome finetune` is asked to do, and the head and labels that follow from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from lrgenome.config.head import HeadConfig
from lrgenome.errors import UsageError
from lrgenome.io.examples import Examples
from lrgenome.models.heads import Extras
from lrgenome.tasks.benchmarks import CENTRE, TASKS, VARIANT
from lrgenome.training.frozen import LINEAR
from lrgenome.training.stretches import stretches_of
from lrgenome.training.tuning import TuneSettings

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
TRAIN = ("full", "head", *LINEAR)


@dataclass(frozen=True)
class FinetuneSettings:
    """What is trained, on what, and how it is tested."""

    task: str = "table"
    """One of `benchmarks.TASKS`, or a user's table."""
    train: str = "head"
    """full: model and head; head: an MLP on the frozen model; or a linear head of scikit-learn."""
    context: int = 12_000
    """Window length, bp."""
    common: int | None = None
    """Only rows whose window fits at this length too."""
    max_n: float = 1.0
    """Largest share of N in a window."""
    low: int | None = None
    """First base that is pooled, from the centre, bp; default as in the benchmark."""
    high: int | None = None
    pool: str | None = None
    """mean or attention; default as in the benchmark, mean."""
    alleles: str = "both"
    """How a head of variants reads them; see `HeadConfig`."""
    bin_size: int = 32
    """Bases of a stretch that attention weighs."""
    hidden: tuple[int, ...] | None = None
    """Hidden layers; default as in the benchmark."""
    tissue: str | None = None
    """How tissues come in; default as in the benchmark, or one-hot for linear heads."""
    distance: bool = False
    """Whether the distance to the nearest transcription start comes in."""
    strand: str = "forward"
    test: tuple[str, ...] = ()
    """Contigs or regions to test on; default as the table says."""
    validation: tuple[str, ...] = ()
    folds: int = 5
    fold: int | None = None
    """One of them only, 1-based."""
    block: int | None = None
    """Held-out blocks of contigs, bp; default whole contigs."""
    max_rows: int | None = None
    """Train on so many rows, drawn by chance."""
    leaks: str = "stop"
    """stop, drop (training rows) or allow."""
    chrom_alias: str = "auto"
    tune: TuneSettings = TuneSettings()  # noqa: RUF009

    def __post_init__(self) -> None:
        if self.train not in TRAIN:
            raise UsageError(f"--train: got {self.train!r}, expected one of {', '.join(TRAIN)}")
        if self.pool is not None and self.pool not in ("mean", "attention"):
            raise UsageError(f"--pool: got {self.pool!r}, expected mean or attention")
        if self.pool == "attention" and self.train in LINEAR:
            raise UsageError(f"--pool attention: got --train {self.train}, expected full or head")
        if not 0 <= self.max_n <= 1:
            raise UsageError(f"--max-n: got {self.max_n}, expected a share from 0 to 1")
        if self.max_rows is not None and self.max_rows < 1:
            raise UsageError(f"--max-rows: got {self.max_rows}, expected at least 1")


def head_config(settings: FinetuneSettings, examples: Examples, width: int) -> HeadConfig:
    """Choose the head: the benchmark's for its tasks, the like of it for tables, but for what the settings say."""
    own = TASKS.get(settings.task)
    low, high = (own.low, own.high) if own else VARIANT if examples.variants else CENTRE
    if not own and not examples.variants:
        # An interval is pooled whole, if it is not longer than the window; all are pooled alike.
        # From its first base, which lies (context - length) // 2 bases into the window.
        length = max(1, int(np.median(examples.end - examples.start)))
        low = (settings.context - length) // 2 - settings.context // 2
        high = low + length
    pool = settings.pool or (own.pool if own else "mean")
    if own and own.pool == "bins" and (pool != "bins" or settings.train in LINEAR):
        raise UsageError(f"{settings.task} predicts bins: expected --train head or full, and no --pool")
    tissue = settings.tissue or (own.tissue if own else "embedding" if examples.tissues else "none")
    if settings.train in LINEAR and tissue in ("index", "embedding"):
        tissue = "onehot"
    if tissue != "none" and not examples.tissues:
        raise UsageError(f"--tissue-as {tissue}: the rows have no tissue")
    if settings.distance and examples.distance is None:
        raise UsageError("--distance-feature: the rows have no distance to a transcription start")
    hidden = () if settings.train in LINEAR else settings.hidden
    if hidden is None:
        hidden = own.hidden(width) if own else (2 * width,)
    return HeadConfig(
        kind=examples.kind, outputs=examples.outputs, width=width, variants=examples.variants,
        alleles=settings.alleles, context=settings.context,
        low=settings.low if settings.low is not None else low,
        high=settings.high if settings.high is not None else high, pool=pool,
        bin_size=own.bin_size if own and pool == "bins" else settings.bin_size if pool == "attention" else 0,
        hidden=hidden, tissue=tissue, tissues=examples.tissues if tissue != "none" else (),
        distance=settings.distance, strand=settings.strand, task=settings.task,
    )  # fmt: skip


def labels_for(examples: Examples, config: HeadConfig) -> Floats:
    """Return the labels as the head predicts them: counts as log(1 + x), as many bins as a window holds."""
    labels = examples.labels
    own = TASKS.get(config.task)
    if own is not None and own.log1p:
        if np.nanmin(labels, initial=0.0) < 0:
            raise UsageError(f"{config.task}: got counts below 0")
        labels = np.log1p(labels)
    if config.pool != "bins":
        return labels
    count = stretches_of(config, config.context).number
    have = labels.shape[1]
    if count <= have:
        first = (have - count) // 2
        return labels[:, first : first + count]
    out = np.full((len(labels), count, labels.shape[2]), np.nan, np.float32)
    first = (count - have) // 2
    out[:, first : first + have] = labels
    return out


def extras_of(
    examples: Examples, config: HeadConfig, device: torch.device
) -> Callable[[Rows], Extras]:
    """Return what gives the extras of rows."""
    tissue = None
    if config.tissue != "none":
        assert examples.tissue is not None
        place = {name: i for i, name in enumerate(config.tissues)}
        if unknown := [name for name in examples.tissues if name not in place]:
            raise UsageError(f"tissue {unknown[0]!r} is not one of the head's: {', '.join(config.tissues[:8])} ...")
        tissue = np.array([place[name] for name in examples.tissues])[examples.tissue]
    distance = examples.distance.astype(np.float32) if config.distance and examples.distance is not None else None

    def extras(rows: Rows) -> Extras:
        return Extras(
            None if tissue is None else torch.from_numpy(tissue[rows]).to(device),
            None if distance is None else torch.from_numpy(np.abs(distance[rows])).to(device),
        )

    return extras
