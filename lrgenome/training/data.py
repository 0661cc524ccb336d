"""Windows for training and validation, drawn from the genomes of a manifest.

Every window is a function of (seed, step, index) alone, so a run that is killed and resumed sees the same windows
as one that was not, and nothing about the sampler has to be saved.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from lrgenome.dna import IdArray, N, reverse_complement
from lrgenome.errors import ManifestError
from lrgenome.io.encoded import open_genome
from lrgenome.io.manifest import Interval, ManifestEntry, read_manifest, split_intervals

MAX_N_FRACTION = 0.5
_TRIES = 100


class Window(NamedTuple):
    """A place in a genome."""

    source: int
    """Number of the manifest entry."""
    contig: str
    start: int
    """0-based, bp."""
    end: int


class _Places:
    """Where windows of one length fit into the training intervals of a genome."""

    def __init__(self, entry: ManifestEntry, intervals: list[Interval], window: int) -> None:
        self.intervals = [i for i in intervals if i[2] - i[1] >= window]
        if not self.intervals:
            raise ManifestError(
                f"{entry.path}: no training interval of {entry.name} is as long as the window of {window} bp"
            )
        places = np.array([end - start - window + 1 for _, start, end in self.intervals], dtype=np.int64)
        self.cumulative = np.cumsum(places)


class _Source:
    """One genome: where training windows fit, by their length, and its validation regions."""

    def __init__(self, entry: ManifestEntry, lengths: Sequence[int], cache: Path | None) -> None:
        self.entry = entry
        self.fasta = open_genome(entry.path, cache)
        try:
            splits = split_intervals(entry, self.fasta.contigs)
            self.places = {length: _Places(entry, splits.train, length) for length in lengths}
        except ManifestError:
            self.fasta.close()
            raise
        self.validation = splits.validation


class Corpus:
    """The genomes of a manifest, as a source of windows of some lengths, the first of them by default.

    Parameters
    ----------
    manifest
        As `read_manifest` reads it.
    window, more
        Lengths in bp.
    cache
        Folder of encoded genomes; None to read the FASTA files themselves.
    """

    def __init__(self, manifest: str | Path, window: int, *more: int, cache: Path | None = None) -> None:
        self.window = window
        self.entries = read_manifest(manifest)
        self._sources: list[_Source] = []
        with contextlib.ExitStack() as stack:
            for entry in self.entries:
                source = _Source(entry, (window, *more), cache)
                self._sources.append(source)
                stack.callback(source.fasta.close)
            self._stack = stack.pop_all()
        weights = np.array([entry.weight for entry in self.entries])
        self._cumulative_weight = np.cumsum(weights / weights.sum())

    def __enter__(self) -> Corpus:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()

    @property
    def names(self) -> list[str]:
        """Labels of the genomes."""
        return [entry.name for entry in self.entries]

    @property
    def has_validation(self) -> bool:
        """Whether any genome has validation regions."""
        return any(source.validation for source in self._sources)

    def fetch(self, window: Window) -> IdArray:
        """Read the bases of a window, (t,) uint8 ids."""
        return self._sources[window.source].fasta.fetch(window.contig, window.start, window.end)

    def fingerprint(self) -> list[str]:
        """Identify the genomes and splits, for the check on resuming."""
        return [
            f"{s.entry.name} {s.entry.weight!r} {s.fasta.fingerprint()} {s.entry.holdout} {s.entry.validation}"
            for s in self._sources
        ]

    def draw(self, rng: np.random.Generator, window: int | None = None) -> IdArray:
        """Draw one training window, on either strand; windows that are mostly N are drawn again."""
        length = window or self.window
        for _ in range(_TRIES):
            number = int(np.searchsorted(self._cumulative_weight, rng.random(), side="right"))
            source = self._sources[min(number, len(self._sources) - 1)]
            places = source.places[length]
            place = int(rng.integers(places.cumulative[-1]))
            which = int(np.searchsorted(places.cumulative, place, side="right"))
            contig, start, _ = places.intervals[which]
            start += place - (int(places.cumulative[which - 1]) if which else 0)
            ids = source.fasta.fetch(contig, start, start + length)
            flip = rng.random() < 0.5
            if np.count_nonzero(ids == N) <= MAX_N_FRACTION * length:
                return reverse_complement(ids) if flip else ids
        raise ManifestError(f"{_TRIES} windows in a row were mostly N; expected genomes with sequence in them")

    def validation_windows(self, per_source: int, window: int | None = None) -> list[Window]:
        """List evenly spaced validation windows of every genome that has validation regions."""
        length, windows = window or self.window, []
        for number, source in enumerate(self._sources):
            grid = [
                Window(number, contig, start, start + length)
                for contig, lo, hi in source.validation
                for start in range(lo, hi - length + 1, length)
            ]
            windows += [grid[i] for i in evenly(len(grid), per_source)]
        return windows


def evenly(count: int, wanted: int) -> Sequence[int]:
    """Choose `wanted` of `count` indices, evenly spaced."""
    return range(count) if count <= wanted else np.linspace(0, count - 1, wanted).round().astype(int).tolist()


def sample_rng(seed: int, step: int, index: int) -> np.random.Generator:
    """Return the random numbers of one window of one step."""
    return np.random.Generator(np.random.Philox(key=[seed, (step << 24) | index]))
