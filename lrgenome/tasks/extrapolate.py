"""`lrgenome extrapolate`: what models make of windows longer than those they were trained on."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lrgenome.config import NucleotideTransformerConfig
from lrgenome.engine.runners import AnyRunner
from lrgenome.errors import MemoryLimitError, UsageError
from lrgenome.glossary import format_length, parse_length
from lrgenome.io.atomic import write_at_once
from lrgenome.io.fasta import Fasta
from lrgenome.metrics import mean_interval
from lrgenome.models.checkpoint import LoadedModel
from lrgenome.models.families import Model
from lrgenome.models.nucleotide_transformer import NucleotideTransformer
from lrgenome.tasks.meter import Meter
from lrgenome.tasks.progress import Progress
from lrgenome.tasks.selection import Regions
from lrgenome.tasks.sites import Site, choose_sites, masked_window, target_losses

log = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]
RECURRENT, ATTENTION = ("exact", "forward", "none"), ("none", "plain", "pi", "ntk", "yarn", "self-extend")
"""Strategies of recurrent models (which states cross chunk edges), and of transformers (their positions)."""
PROBE_LONGEST = 131_072
"""Window of the probes, at most, bp."""


class Compared(NamedTuple):
    """A model to compare, and how to make its runners."""

    name: str
    loaded: LoadedModel
    trained: int | None
    """Longest window of its training, bp; None where it is not known."""
    make: Any
    """From a strategy to (LoadedModel, runner)."""


@dataclass
class LengthRow:
    """One number of the table: a model at a length."""

    model: str
    strategy: str
    length: int
    metric: str
    value: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    over: tuple[float, float, float] = (float("nan"),) * 3
    """How far from the value at the reference length, with its interval; paired."""
    n: int = 0
    """Masked bases, or rows."""
    seconds: float = float("nan")
    bases: int = 0
    """That were run."""
    host: int | None = None
    device: int | None = None
    trained: int | None = None
    status: str = "OK"
    """OK, or why there is no value."""


@dataclass(frozen=True)
class ExtrapolateSettings:
    """What is compared."""

    lengths: tuple[int, ...]
    transfers: tuple[str, ...] = ("exact",)
    extensions: tuple[str, ...] = ("none",)
    sites: int = 16
    """Places of masked-language-model evaluation."""
    target: int = 2_000
    """Bases around the centre whose masked ones are predicted, at most the shortest length."""
    seed: int = 0
    near: int | None = None
    """Bases that the context probe takes for near, bp; None: as many as a training window."""

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 8:
            raise UsageError(f"--lengths: got {self.lengths}, expected lengths of at least 8 bp")
        for name, of, known in (("--transfer", self.transfers, RECURRENT), ("--positions", self.extensions, ATTENTION)):
            if wrong := [word for word in of if word not in known]:
                raise UsageError(f"{name}: got {wrong[0]!r}, expected some of {', '.join(known)}")
        most = min(max(self.lengths), PROBE_LONGEST) // 2
        if self.near is not None and not 2 * self.masked <= self.near <= most:
            raise UsageError(
                f"--near: got {self.near} bp, expected at least {2 * self.masked} (twice --target) and at most {most} "
                f"(half of the longest window that is probed)"
            )
        if self.sites < 2:
            raise UsageError(f"--sites: got {self.sites}, expected at least 2")

    @property
    def masked(self) -> int:
        """Bases around the centre of which some are masked."""
        return max(1, min(self.target, *self.lengths))

    def strategies(self, model: Model) -> tuple[str, ...]:
        """Return the strategies of a model's kind."""
        return self.extensions if isinstance(model, NucleotideTransformer) else self.transfers


def parse_lengths(text: str) -> tuple[int, ...]:
    """Read ``2kbp,12kbp,1Mbp``, or ``2kbp..1Mbp`` for doublings up to the last.

    Raises
    ------
    UsageError
        Naming the part that is none.
    """
    lengths: list[int] = []
    for part in text.split(","):
        first, dots, last = part.strip().partition("..")
        try:
            low = parse_length(first)
            high = parse_length(last) if dots else low
        except ValueError as error:
            raise UsageError(f"--lengths: {error}") from error
        while low < high:
            lengths.append(low)
            low *= 2
        lengths.append(high)
    return tuple(sorted(set(lengths)))


def trained_window(loaded: LoadedModel) -> int | None:
    """Return the longest window that a model was trained on, as far as its checkpoint or its kind says."""
    config = loaded.model.config
    if isinstance(config, NucleotideTransformerConfig):
        return (config.max_tokens - 1) * 6 if config.kmers else config.max_tokens
    try:
        return int(loaded.meta["training"]["settings"]["window"])
    except (KeyError, TypeError, ValueError):
        return None


def loss_name(model: Model) -> str:
    """Name the loss: a model that masks 6-mers is not compared with one that masks bases."""
    kmers = isinstance(model.config, NucleotideTransformerConfig) and model.config.kmers
    return "LOSS_6MER" if kmers else "LOSS"


class KeptLosses:
    """What is computed, in a folder, so that an interrupted run goes on: a file a model, strategy and length, or probe.

    Parameters
    ----------
    folder
        Made when the first is kept; None: nothing is kept.
    resume
        Whether to take what is there.
    """

    def __init__(self, folder: Path | None, *, resume: bool) -> None:
        self._folder, self._resume = folder, resume

    @staticmethod
    def key(sha256: str, name: str, strategy: str, length: int, runner: AnyRunner, fasta: Fasta, sites: Any) -> str:
        """Name all that losses depend on."""
        places = [(site.contig, site.centre, site.targets.tobytes()) for site in sites]
        how = name, strategy, length, runner.chunk, str(runner.model.compute_dtype)
        return hashlib.sha256(repr((sha256, how, fasta.fingerprint(), places)).encode()).hexdigest()[:24]

    def load(self, key: str) -> dict[str, Any] | None:
        """Return what is kept under a key, if that is wanted and whole."""
        if self._folder is None or not self._resume:
            return None
        try:
            found = json.loads((self._folder / f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def save(self, key: str, found: dict[str, Any]) -> None:
        """Keep it."""
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_at_once(self._folder / f"{key}.json", json.dumps(found, default=_plain).encode(), 0o644)

    def clear(self) -> None:
        """Forget all, once the report is written."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _plain(value: Any) -> Any:
    """Return NumPy's numbers as Python's."""
    return value.item()


@dataclass
class Study:
    """All rows so far, and losses by site for what is computed of them."""

    rows: list[LengthRow] = field(default_factory=list)
    losses: dict[tuple[str, str, int], FloatArray] = field(default_factory=dict)
    """By model, strategy and length: (sites, 2) sums of losses and numbers of masked bases."""
    probes: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Rows of each probe's table."""


def masked_losses(
    models: Sequence[Compared], fasta: Fasta, regions: Regions | None, settings: ExtrapolateSettings, study: Study,
    kept: KeptLosses,
) -> None:  # fmt: skip
    """Add the loss at the same masked bases of the same sites, at every length, of every model and strategy.

    What is `kept` of a run before is not computed again.
    """
    longest = max(settings.lengths)
    sites = choose_sites(
        fasta, regions, longest=longest, target=settings.masked, count=settings.sites, seed=settings.seed
    )
    log.info("%d sites, %d masked bases among %d bp around each", len(sites), sum(len(s.targets) for s in sites),
             settings.masked)  # fmt: skip
    work = sum(
        len(settings.strategies(one.loaded.model)) * len(sites) * sum(settings.lengths) for one in models
    )
    with Progress("extrapolate", work, "bp", scale=True) as progress:
        for one in models:
            for strategy in settings.strategies(one.loaded.model):
                loaded, runner = one.make(strategy)
                with runner:
                    for length in settings.lengths:
                        _add(study, one, strategy, length, sites, loaded, runner, fasta, kept)
                        progress.update(len(sites) * length)
    for one in models:
        for strategy in settings.strategies(one.loaded.model):
            reference = reference_length(one.trained, settings.lengths)
            _compare(study, one.name, strategy, reference)


def reference_length(trained: int | None, lengths: Sequence[int]) -> int:
    """Return the length that others are compared with: the longest that is not beyond training, else the shortest."""
    within = [length for length in lengths if trained is not None and length <= trained]
    return max(within, default=min(lengths))


def _add(
    study: Study, one: Compared, strategy: str, length: int, sites: Sequence[Site], loaded: LoadedModel,
    runner: AnyRunner, fasta: Fasta, kept: KeptLosses,
) -> None:  # fmt: skip
    row = LengthRow(one.name, strategy, length, loss_name(loaded.model), trained=one.trained)
    study.rows.append(row)
    key = kept.key(loaded.sha256, one.name, strategy, length, runner, fasta, sites)
    try:
        found = kept.load(key)
        if found is None:
            runner.plan(1, length)
            sums = []
            with Meter(runner.device) as meter:
                for site in sites:
                    low, high = site.window(length)
                    truth = fasta.fetch(site.contig, low, high)
                    at = site.targets + length // 2
                    losses = target_losses(runner, masked_window(truth, site.targets, length // 2), truth[at], at)
                    sums.append((float(losses.sum()), float(len(losses))))
            found = {"sums": sums, "seconds": meter.seconds, "host": meter.host, "device": meter.gpu}
            kept.save(key, found)
    except (UsageError, MemoryLimitError) as error:
        # Marked, never left out silently.
        row.status = f"{type(error).__name__}: {error}"
        log.warning("%s, %s, %s: %s", one.name, strategy, format_length(length), error)
        return
    values = np.array(found["sums"])
    study.losses[one.name, strategy, length] = values
    row.value, row.low, row.high = mean_interval(values[:, 0], values[:, 1])
    row.n, row.seconds, row.bases = int(values[:, 1].sum()), found["seconds"], length * len(sites)
    row.host, row.device = found["host"], found["device"]
    log.info("%s, %s, %s: %.4f nats/bp (%.4f - %.4f), %.0f bp/s", one.name, strategy, format_length(length), row.value,
             row.low, row.high, row.bases / max(row.seconds, 1e-9))  # fmt: skip


def _compare(study: Study, name: str, strategy: str, reference: int) -> None:
    base = study.losses.get((name, strategy, reference))
    for row in study.rows:
        own = study.losses.get((name, strategy, row.length))
        if (row.model, row.strategy) == (name, strategy) and own is not None and base is not None:
            row.over = tuple(mean_interval(own[:, 0] - base[:, 0], own[:, 1]))  # type: ignore[assignment]


def gains(study: Study) -> Iterator[dict[str, Any]]:
    """Yield how much the loss falls from each length to the next, nats/bp and per doubling, paired."""
    keys: dict[tuple[str, str], list[int]] = {}
    for name, strategy, length in study.losses:
        keys.setdefault((name, strategy), []).append(length)
    for (name, strategy), lengths in keys.items():
        lengths.sort()
        for short, long in pairwise(lengths):
            a, b = study.losses[name, strategy, short], study.losses[name, strategy, long]
            gain = mean_interval(a[:, 0] - b[:, 0], a[:, 1])
            doublings = float(np.log2(long / short))
            yield {"model": name, "strategy": strategy, "from": short, "to": long, "gain": gain.value, "low": gain.low,
                   "high": gain.high, "per_doubling": gain.value / doublings}  # fmt: skip


def check_models(models: Sequence[Compared]) -> None:
    """Raise `UsageError` if two models have one name."""
    names = [one.name for one in models]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"--model: got {sorted(doubled)[0]!r} more than once, expected folders of different names")
