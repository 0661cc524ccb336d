"""The rows of `lrgenome score-vcf`: records in, text of the table out, from whole windows or from tiles."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from lrgenome.engine.runner import Runner
from lrgenome.engine.runners import AnyRunner
from lrgenome.errors import UsageError
from lrgenome.io.fasta import Fasta
from lrgenome.io.scores import ScoreRow, format_rows
from lrgenome.io.vcf import VcfRecord
from lrgenome.tasks.progress import Progress
from lrgenome.tasks.readout import Readout
from lrgenome.tasks.scoring import STRANDS, Scores, WindowScorer
from lrgenome.tasks.tiles import TileScorer, TileScores
from lrgenome.tasks.variants import AlleleEdit, AllelePlan, VariantPlanner
from lrgenome.tasks.verification import Verification

log = logging.getLogger(__name__)

_BLOCK_BASES = 4_000_000
_BLOCK_RECORDS = 64
_TILE_RECORDS = 2_048
_MOST_RECORDS = 65_536
"""Of a block, where variants are so dense that a tile is run more than once."""


@dataclass(frozen=True)
class ScoreSettings:
    """What decides the scores of a variant, and which variants are scored."""

    context: int = 12_000
    """Length of a window centred on each allele, or of a tile's core, bp."""
    strand: str = "both"
    """Average over both strands, or the forward strand only."""
    check_ref: str = "warn"
    """What to do where REF differs from the FASTA."""
    chrom_alias: str = "auto"
    """How contig names are matched: auto, none or a table's path."""
    regions: tuple[str, ...] = ()
    """Only records that overlap these."""
    regions_file: Path | None = None
    """Only records that overlap the intervals of this BED file."""
    shard: str | None = None
    """Only part I of N of the records."""
    tiles: bool = False
    """Score from boundary states of tiles rather than from whole windows."""
    region_size: int = 1_792
    """Least length of a region that is run for an allele, bp; of tiles."""
    state_every: int = 128
    """Grid that the edges of regions lie on, bp; of tiles."""
    tolerance: float | None = None
    """ERR_EST from which a region is doubled; of tiles; default by precision."""
    llr: str = "masked"
    """How substitutions are scored, as `TileScorer` takes it; of tiles."""
    verify: int = 0
    """How many alleles to score again on their whole tiles; of tiles."""
    seed: int = 0
    """Of the choice of these."""

    def __post_init__(self) -> None:
        if self.strand not in STRANDS:
            raise UsageError(f"--strand: got {self.strand!r}, expected one of {', '.join(STRANDS)}")


@dataclass
class Account:
    """What became of the alleles."""

    alleles: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    """Alleles by status; one allele may have several."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Alleles that were not scored, by their joined statuses."""

    def add(self, plans: Iterable[AllelePlan]) -> None:
        """Count alleles."""
        for plan in plans:
            self.alleles += 1
            self.statuses.update(plan.status)
            if not plan.scored:
                self.skipped["&".join(plan.status)] += 1


class Selected(NamedTuple):
    """The records of this run, re-iterable."""

    records: Callable[[], Iterator[VcfRecord]]
    total: int


Scored = list[tuple[VcfRecord, list[ScoreRow]]]
"""Records and the rows of their alleles."""
Scorer = Callable[["Selected", int, VariantPlanner, "Account"], Iterator[Scored]]
"""Yields the selected records after the first so many with their scores, and counts them."""
Rows = Callable[["Selected", int, VariantPlanner, "Account"], Iterator[str]]
"""The same as text of the table."""


def make_rows(
    runner: AnyRunner, reference: Fasta, settings: ScoreSettings, batch_size: int, readout: Readout | None = None
) -> Rows:
    """Return what scores records and yields the text of their rows; see `make_scorer`."""
    scorer = make_scorer(runner, reference, settings, batch_size, readout)

    def rows(selected: Selected, done: int, planner: VariantPlanner, account: Account) -> Iterator[str]:
        for block in scorer(selected, done, planner, account):
            yield "".join(format_rows(record, scores) for record, scores in block)

    return rows


def make_scorer(
    runner: AnyRunner, reference: Fasta, settings: ScoreSettings, batch_size: int, readout: Readout | None = None
) -> Scorer:
    """Return what scores records; the memory that it needs is asked for."""
    width = 0 if readout is None else len(readout.columns)
    longest = max(reference.contigs.values())
    if not settings.tiles:
        runner.plan(batch_size, min(settings.context, longest))
        scorer = WindowScorer(runner, strand=settings.strand, batch_size=batch_size, readout=readout)
        return lambda selected, done, planner, account: _windows(selected, done, planner, scorer, account, width)
    if not isinstance(runner, Runner) or runner.transfer != "exact":
        raise UsageError("boundary states are of recurrent models and --transfer exact; choose --exact-windows")
    runner.plan(1, min(2 * settings.context, longest))
    tiles = TileScorer(
        runner, reference, settings.context, strand=settings.strand, region_size=settings.region_size,
        state_every=settings.state_every, tolerance=settings.tolerance, llr=settings.llr, batch_size=batch_size,
        readout=readout,
    )  # fmt: skip
    check = Verification(tiles, settings.verify, settings.seed)
    return lambda selected, done, planner, account: _tiles(selected, done, planner, tiles, account, check, width)


def _tile_blocks(
    records: Iterator[VcfRecord], planner: VariantPlanner
) -> Iterator[list[tuple[VcfRecord, list[AllelePlan]]]]:
    """Cut records into blocks that are scored together: where a tile begins, if it can be, so that each is run once."""
    block: list[tuple[VcfRecord, list[AllelePlan]]] = []
    bases, last = 0, None
    for record in records:
        plans = planner.plan(record)
        cores = [plan.edit.core(planner.context) for plan in plans if plan.edit is not None]
        full = len(block) >= _TILE_RECORDS and cores and cores[0] != last
        if block and (full or len(block) >= _MOST_RECORDS or bases >= _BLOCK_BASES):
            yield block
            block, bases = [], 0
        # Genotypes of thousands of samples are not wanted again.
        block.append((record._replace(line=""), plans))
        bases += sum(len(plan.edit.ref) + len(plan.edit.alt) for plan in plans if plan.edit is not None)
        last = cores[-1] if cores else last
    if block:
        yield block


def _tiles(
    selected: Selected, done: int, planner: VariantPlanner, scorer: TileScorer, account: Account, check: Verification,
    width: int,
) -> Iterator[Scored]:  # fmt: skip
    """Yield the records after the first `done`, as soon as all records before them are scored."""
    said: set[str] = set()
    with Progress("score-vcf", selected.total, "records", done=done) as progress:
        for block in _tile_blocks(islice(selected.records(), done, None), planner):
            work: list[tuple[AlleleEdit, str]] = []
            ready = []
            for record, alleles in block:
                for plan, alt in zip(alleles, record.alts or (".",), strict=True):
                    if plan.edit is not None:
                        work.append((plan.edit, f"{record.chrom}:{record.pos + 1} {record.ref[:20]}>{alt[:20]}"))
                ready.append(len(work))
            scores: list[TileScores | None] = [None] * len(work)
            known = given = 0
            for found in chain(scorer.score(work), (None,)):
                if found is not None:
                    scores[found[0]] = found[1]
                    check.see(*work[found[0]], found[1])
                    while known < len(work) and scores[known] is not None:
                        known += 1
                last = given
                while last < len(block) and ready[last] <= known:
                    last += 1
                # Where a pass over a tile ends, whatever is ready goes out.
                if last - given >= _BLOCK_RECORDS or (found is None and last > given):
                    used = ready[given - 1] if given else 0
                    yield _tile_scores(block[given:last], iter(scores[used:]), planner, said, account, width)
                    progress.update(last - given)
                    given = last
    check.report()


def _tile_scores(
    block: list[tuple[VcfRecord, list[AllelePlan]]], scores: Iterator[TileScores | None], planner: VariantPlanner,
    said: set[str], account: Account, width: int,
) -> Scored:  # fmt: skip
    """Return the rows of a block of records; `width` is the number of extra columns."""
    scored = []
    for record, alleles in block:
        _say_contig(record.chrom, planner, said)
        account.add(alleles)
        rows = []
        for plan in alleles:
            found = next(scores) if plan.edit is not None else None
            llr, cosine, l2, pll, error, extra = found or (None, None, None, None, None, ())
            rows.append(ScoreRow(llr, cosine, l2, pll, error, plan.status, extra or (None,) * width))
        scored.append((record, rows))
    return scored


def _windows(
    selected: Selected, done: int, planner: VariantPlanner, scorer: WindowScorer, account: Account, width: int
) -> Iterator[Scored]:
    """Yield the records after the first `done`, a block of records at a time."""
    size = max(1, min(_BLOCK_RECORDS, _BLOCK_BASES // planner.context))
    records = islice(selected.records(), done, None)
    said: set[str] = set()
    with Progress("score-vcf", selected.total, "records", done=done) as progress:
        while block := list(islice(records, size)):
            plans = [planner.plan(record) for record in block]
            work = [
                (plan.windows, f"{record.chrom}:{record.pos + 1} {record.ref[:20]}>{alt[:20]}")
                for record, alleles in zip(block, plans, strict=True)
                for plan, alt in zip(alleles, record.alts or (".",), strict=True)
                if plan.windows is not None
            ]
            scores = iter(scorer.score(work))
            scored = []
            for record, alleles in zip(block, plans, strict=True):
                _say_contig(record.chrom, planner, said)
                account.add(alleles)
                rows = [_row(plan, next(scores) if plan.windows is not None else None, width) for plan in alleles]
                scored.append((record, rows))
            yield scored
            progress.update(len(block))


def _row(plan: AllelePlan, scores: Scores | None, width: int) -> ScoreRow:
    if scores is None:
        return ScoreRow(None, None, None, None, None, plan.status, (None,) * width)
    return ScoreRow(scores.llr, scores.dist_cos, scores.dist_l2, scores.pll_diff, None, plan.status, scores.extra)


def _say_contig(name: str, planner: VariantPlanner, said: set[str]) -> None:
    if name not in said:
        said.add(name)
        contig = planner.contig(name)
        if contig is None:
            log.warning("contig %s of the VCF is not in %s", name, planner.fasta.path.name)
        elif contig != name:
            log.info("contig %s of the VCF is %s in %s", name, contig, planner.fasta.path.name)
