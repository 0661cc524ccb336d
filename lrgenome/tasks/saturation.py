"""Saturation mutagenesis: which changes of which regions are scored, and the track and figure of their effects."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lrgenome.dna import BASES, decode
from lrgenome.errors import UsageError
from lrgenome.io.atomic import check_writable, os_error_as_output_error
from lrgenome.io.fasta import Fasta
from lrgenome.io.heatmap import (
    REGION_LIMIT,
    Effects,
    check_figure_suffix,
    draw_saturation,
    mapped,
    score_of_deletions,
)
from lrgenome.io.saturation import SaturationSource, changed_bases
from lrgenome.io.scores import KEY_COLUMNS, SCORE_COLUMNS
from lrgenome.io.tracks import Stretch, check_track_suffix, write_track
from lrgenome.tasks.score_rows import Account, Rows, Selected
from lrgenome.tasks.selection import parse_regions
from lrgenome.tasks.variants import VariantPlanner

log = logging.getLogger(__name__)

TRACK_SCORES = ("llr", "dist_l2", "dist_cos", "pll_diff")
"""Scores that can be shown by base."""


@dataclass(frozen=True)
class Saturation:
    """Which changes are scored in place of a VCF's, and what is made of the scores beside the table."""

    regions: tuple[str, ...]
    """As ``20:1,000,001-1,002,000``, 1-based."""
    deletions: bool = False
    """Add every deletion of one base."""
    track: Path | None = None
    """bedGraph or bigWig of the mean over the SNVs of each base."""
    plot: Path | None = None
    """Figure of the scores."""
    score: str = "llr"
    """Which score track and plot show."""

    def __post_init__(self) -> None:
        if self.score not in TRACK_SCORES:
            raise UsageError(f"--track-score: got {self.score!r}, expected one of {', '.join(TRACK_SCORES)}")
        if self.track is not None:
            check_track_suffix(self.track)
        if self.plot is not None:
            check_figure_suffix(self.plot)

    def check(self, shard: tuple[int, int], no_clobber: bool) -> None:
        """Refuse, before any work is done, what could not be made at the end.

        Raises
        ------
        UsageError
            If a track or plot is wanted of a shard, which may hold only some of the changes of a base.
        LrgenomeError
            As `check_writable` raises it.
        """
        for name, path in (("track", self.track), ("plot", self.plot)):
            if path is None:
                continue
            if shard != (1, 1):
                raise UsageError(
                    f"--{name}: got --shard {shard[0]}/{shard[1]}, expected the whole: a shard may end within the "
                    "changes of a base. To divide the work, give each run a --saturate region of its own"
                )
            check_writable(path, no_clobber)

    def source(self, fasta: Fasta, alias: Mapping[str, str] | str) -> SaturationSource:
        """Make the records; what they leave out is logged.

        Raises
        ------
        UsageError
            If a region is not in the FASTA, or if there are too many to draw.
        """
        regions = parse_regions(self.regions, fasta.contigs, alias)
        source = SaturationSource(fasta, regions, self.deletions)
        if self.plot is not None and len(source.regions) > REGION_LIMIT:
            raise UsageError(f"--plot: got {len(source.regions)} regions, expected at most {REGION_LIMIT}")
        log.info("saturation of %d bp; %d of them are not A, C, G or T and left out", source.bases, source.ambiguous)
        return source


class _Region(NamedTuple):
    """Scores of a region as they come in."""

    contig: str
    start: int
    total: npt.NDArray[np.float64]
    """(t,) sum over the SNVs of each base."""
    number: npt.NDArray[np.uint8]
    """(t,) how many were added."""
    cells: npt.NDArray[np.float64] | None
    """(4 or 5, t) every score, where it is to be drawn."""

    def mean(self) -> npt.NDArray[np.float64]:
        """Return the mean score of each base, NaN where there is none."""
        return np.where(self.number > 0, self.total / np.maximum(self.number, 1), np.nan)


class _Collector:
    """Scores by base, collected from rows of the table."""

    def __init__(self, saturation: Saturation, source: SaturationSource) -> None:
        score = saturation.score.upper()
        self._column, self._deletion_column = (
            len(KEY_COLUMNS) + SCORE_COLUMNS.index(name) for name in (score, score_of_deletions(score))
        )
        lengths = [end - start for _, start, end in source.regions]
        drawn = mapped(lengths) if saturation.plot is not None else [False] * len(lengths)
        rows = 5 if saturation.deletions else 4
        self.regions = [
            _Region(contig, start, np.zeros(end - start), np.zeros(end - start, np.uint8),
                    np.full((rows, end - start), np.nan) if draw else None)
            for (contig, start, end), draw in zip(source.regions, drawn, strict=True)
        ]  # fmt: skip
        self._of_contig: dict[str, list[_Region]] = {}
        for region in self.regions:
            self._of_contig.setdefault(region.contig, []).append(region)

    def add(self, rows: Iterable[str]) -> None:
        """Add rows of the table."""
        for row in rows:
            cells = row.rstrip("\n").split("\t")
            ref, alt = cells[3], cells[4]
            deletion = len(ref) > 1
            text = cells[self._deletion_column if deletion else self._column]
            if text == ".":
                continue
            for base in changed_bases(int(cells[1]) - 1, ref, alt):
                self._add_one(cells[0], base, 4 if deletion else BASES.index(alt), float(text))

    def _add_one(self, contig: str, base: int, row: int, value: float) -> None:
        regions = self._of_contig[contig]
        region = regions[bisect_right(regions, base, key=lambda region: region.start) - 1]
        offset = base - region.start
        if not 0 <= offset < len(region.total):
            return
        if row < 4:
            region.total[offset] += value
            region.number[offset] += 1
        if region.cells is not None:
            region.cells[row, offset] = value


def with_pictures(
    rows: Rows, saturation: Saturation, source: SaturationSource, fasta: Fasta, journal: Path, caption: str
) -> Rows:
    """Return `rows` such that track and plot are written after the last row.

    The table has not got its name by then, so that whatever an interruption leaves is made by ``--resume``.

    Parameters
    ----------
    rows
        What yields the rows of the table.
    saturation
        What is wanted.
    source
        The records.
    fasta
        The reference.
    journal
        Where the rows of an interrupted run are.
    caption
        What made the scores: model and context.
    """
    if saturation.track is None and saturation.plot is None:
        return rows

    def watched(selected: Selected, done: int, planner: VariantPlanner, account: Account) -> Iterator[str]:
        collector = _Collector(saturation, source)
        if done:
            collector.add(islice(_rows_of(journal), done))
        for text in rows(selected, done, planner, account):
            collector.add(text.removesuffix("\n").split("\n"))
            yield text
        _write(collector.regions, saturation, fasta, caption)

    return watched


def _rows_of(journal: Path) -> Iterator[str]:
    with os_error_as_output_error(journal), open(journal, encoding="utf-8", errors="surrogateescape") as lines:
        yield from (line for line in lines if not line.startswith("#"))


def _write(regions: list[_Region], saturation: Saturation, fasta: Fasta, caption: str) -> None:
    score = saturation.score.upper()
    if not any(region.number.any() for region in regions):
        log.warning("no base has a %s: track and plot are empty", score)
    if saturation.track is not None:
        stretches = (Stretch(region.contig, region.start, region.mean()) for region in regions)
        what = f"{score}, mean over the SNVs of each base; {caption}"
        write_track(saturation.track, stretches, fasta.contigs, f"lrgenome {score}", what)
        log.info("track: %s", saturation.track)
    if saturation.plot is not None:
        effects = [
            Effects(
                region.contig, region.start,
                decode(fasta.fetch(region.contig, region.start, region.start + len(region.total)))
                if region.cells is not None else "",
                region.mean(), region.cells,
            )
            for region in regions
        ]  # fmt: skip
        draw_saturation(saturation.plot, effects, score, caption)
        log.info("plot: %s", saturation.plot)
