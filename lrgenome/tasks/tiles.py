"""Scores of alleles from boundary states: the context of a tile for the price of a region.

Tiles lie on an absolute grid of each contig: cores of `context` bp, with half of that on either side. A tile is run
once a strand and keeps the states at the edges of the regions of its alleles; each allele is then scored by running its
regions alone. A score follows from genome, variant and settings; the other variants make no difference to it.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lrgenome.dna import MASK
from lrgenome.engine.boundary import Passes
from lrgenome.engine.boundary_states import Boundaries, boundary_bytes
from lrgenome.engine.runner import Runner
from lrgenome.errors import MemoryLimitError, NumericalError, UsageError
from lrgenome.glossary import FORWARD, REVERSE
from lrgenome.io import alleles
from lrgenome.io.fasta import Fasta, format_region
from lrgenome.ops.workspace import Workspace
from lrgenome.tasks.pass_sums import PassSums
from lrgenome.tasks.readout import Readout
from lrgenome.tasks.region_scores import RegionScorer, StrandScores, group_by_shape, placed_spans, shape
from lrgenome.tasks.regions import Layout, Tile, lay_out
from lrgenome.tasks.scoring import STRANDS, WindowScorer
from lrgenome.tasks.variants import AlleleEdit, AlleleWindows, scored_spans
from lrgenome.tasks.wildtype import WildtypeTable

log = logging.getLogger(__name__)

SAFETY = 10.0
"""ERR_EST over the change that the reflected echo makes to LLR, or to PLL_DIFF where there is no LLR."""
PLL_SHARE = 50.0
"""Tolerance of a PLL_DIFF of 0, which sums over some 1,537 bases, over that of LLR; it grows by 1 for each nat."""
LLRS = ("masked", "wildtype")
_EXACT_BASES = 16_000_000
"""Of whole tiles that are held at a time."""
_TOGETHER = 512
"""Alleles of a tile that are scored to the end before the next ones: what an interruption may cost."""
_LONG_PASS = 200_000
"""Bases of a tile from which a pass is worth a line of the log: no score comes before it has ended."""
_SHARE = 0.25
"""Part of the free memory that states may take; beyond it, they go to disk."""

_Work = Sequence[tuple[AlleleEdit, str]]


def default_tolerance(dtype: torch.dtype) -> float:
    """Return the ERR_EST from which a region is doubled: more where rounding alone makes as much of a difference."""
    return 0.5 if dtype == torch.bfloat16 else 0.01


class TileScores(NamedTuple):
    """Scores of one allele, averaged over strands; None is missing."""

    llr: float | None
    dist_cos: float | None
    dist_l2: float | None
    pll_diff: float | None
    err_est: float
    extra: tuple[float, ...] = ()
    """What the readout says."""


class _Needs(NamedTuple):
    """What an allele needs of the passes over its tile."""

    boundaries: tuple[int, ...]
    """Where states are kept."""
    spans: tuple[int, ...]
    """Ends of what is pooled of the reference."""
    other: bool
    """Whether it needs the other strand's pass too."""


class TileScorer:
    """Scores alleles by running regions of tiles.

    Parameters
    ----------
    runner
        A recurrent model, ready.
    fasta
        The reference.
    context
        Length C of a core, bp; a tile has C/2 more on each side.
    strand
        "both" or "forward".
    region_size
        Least length of a region, bp; the edges lie on a grid of `state_every` bp.
    state_every
        That grid, bp; it widens with the region.
    tolerance
        ERR_EST of an LLR from which a region is run again at twice the size, up to the whole tile; of a PLL_DIFF,
        `PLL_SHARE + |PLL_DIFF|` times that. Default by precision.
    llr
        "masked": of substitutions, with the differing bases masked; "wildtype": read off the pass over the tile, where
        nothing is masked, and then substitutions have no other score.
    batch_size
        Regions of one length that are run together.
    readout
        Of a fine-tuned head.
    """

    def __init__(
        self, runner: Runner, fasta: Fasta, context: int, *,
        strand: str, region_size: int, state_every: int, tolerance: float | None = None, llr: str = "masked",
        batch_size: int = 1, readout: Readout | None = None,
    ) -> None:  # fmt: skip
        if state_every < 1:
            raise UsageError(f"--state-every: got {state_every}, expected at least 1")
        if region_size < 2 * alleles.FLANK + 2 * state_every:
            raise UsageError(
                f"--region-size: got {region_size}, expected at least {2 * alleles.FLANK + 2 * state_every}: the "
                f"allele's {alleles.FLANK} bp flanks, and {state_every} bp beyond them"
            )
        if tolerance is not None and not tolerance > 0:
            raise UsageError(f"--tolerance: got {tolerance}, expected more than 0")
        if llr not in LLRS:
            raise UsageError(f"--llr: got {llr!r}, expected one of {', '.join(LLRS)}")
        self.runner, self.fasta, self.context = runner, fasta, context
        self.strand, self.strands, self.llr, self.batch_size = strand, STRANDS[strand], llr, batch_size
        self.region_size, self.state_every, self.readout = region_size, state_every, readout
        self.tolerance = tolerance or default_tolerance(runner.model.compute_dtype)
        self._workspace = Workspace()
        self._tile: Tile | None = None
        self._table: WildtypeTable | None = None

    # --- tiles
    def tile(self, edit: AlleleEdit) -> Tile:
        """Return the tile of an allele's core."""
        contig, core = edit.core(self.context)
        half, length = self.context // 2, self.fasta.contigs[contig]
        start, end = max(0, core * self.context - half), min(length, (core + 1) * self.context + half)
        last = self._tile
        if last is None or (last.contig, last.start, last.end) != (contig, start, end):
            self._tile = last = Tile(contig, start, end, self.fasta.fetch(contig, start, end))
        return last

    def score(self, work: _Work) -> Iterator[tuple[int, TileScores] | None]:
        """Score alleles, given with labels; yields (index, scores), tile by tile, and None between passes."""
        tiles: dict[tuple[str, int], list[int]] = {}
        for i, (edit, _) in enumerate(work):
            tiles.setdefault(edit.core(self.context), []).append(i)
        for members in tiles.values():
            tile = self.tile(work[members[0]][0])
            if self.llr == "wildtype":
                members, found = self._wildtype(members, work, tile)
                yield from found
                yield None
            # Neighbours share regions; and as a VCF is sorted, by where records begin, so that rows do not wait.
            members.sort(key=lambda i: (_position(work[i][0]), i))
            # Alleles of one place and one length need the same.
            same: dict[tuple[object, ...], _Needs] = {}
            needs: dict[int, _Needs] = {}
            for i in members:
                edit = work[i][0]
                key = edit.start, len(edit.ref), len(edit.alt), edit.kind, edit.substitution
                needs[i] = same[key] = same.get(key) or self._needs(edit, tile)
            for part, folder in self._parts(needs, tile):
                yield from self._run(part, work, tile, folder)

    def exact(self, work: _Work) -> Iterator[TileScores]:
        """Score alleles of one tile by running it whole, edited and not: what regions come close to."""
        if not work:
            return
        tile = self.tile(work[0][0])
        scorer = WindowScorer(self.runner, strand=self.strand, batch_size=1, readout=self.readout)
        # Those that are scored together share what is run of the reference.
        size = max(1, _EXACT_BASES // len(tile.ids))
        for low in range(0, len(work), size):
            windows = [(self._whole(edit, tile), label) for edit, label in work[low : low + size]]
            yield from (TileScores(*scores[:4], 0.0, scores.extra) for scores in scorer.score(windows))

    @staticmethod
    def _whole(edit: AlleleEdit, tile: Tile) -> AlleleWindows:
        at, ids, r, a = edit.start - tile.start, tile.ids, len(edit.ref), len(edit.alt)
        altered = np.concatenate([ids[:at], edit.alt, ids[at + r :]])
        masked, sites = None, at + np.array(edit.sites, dtype=np.int64)
        if edit.substitution:
            masked = ids.copy()
            masked[sites] = MASK
        return AlleleWindows(
            ids, altered, masked, tuple(sites.tolist()), ids[sites], altered[sites] if edit.substitution else ids[:0],
            scored_spans(at, r, len(ids)), scored_spans(at, a, len(altered)),
        )  # fmt: skip

    # --- passes
    def _lay_out(self, edit: AlleleEdit, tile: Tile, level: int) -> Layout | None:
        # The larger the region, the less its place matters, and the fewer edges there are to keep states at.
        return lay_out(edit, tile, self.region_size << level, self.state_every << level)

    def _layouts(self, edit: AlleleEdit, tile: Tile) -> Iterator[Layout]:
        for level in count():
            layout = self._lay_out(edit, tile, level)
            if layout is None:
                return
            yield layout

    def _needs(self, edit: AlleleEdit, tile: Tile) -> _Needs:
        # Of all sizes, since another pass over a tile would cost as much as many alleles.
        layouts = list(self._layouts(edit, tile))
        anchors = {anchor for layout in layouts for piece in layout.pieces() for anchor in (piece.left, piece.right)}
        spans = {span for layout in layouts for piece in layout.reference for span in placed_spans(piece)}
        return _Needs(
            tuple({anchor.at for anchor in anchors}),
            tuple({edge for span in spans for edge in span}),
            any(anchor.flipped for anchor in anchors),
        )

    def _parts(self, needs: dict[int, _Needs], tile: Tile) -> Iterator[tuple[dict[int, _Needs], Path | None]]:
        """Cut the alleles of a tile into runs whose states fit in memory or else, given as a folder, on disk."""
        if not needs:
            return
        # An inversion needs both strands' passes even where one is scored.
        each = boundary_bytes(self.runner.model) * 2
        ram, disk, folder = self.runner.room_for_states(tile.end - tile.start, _SHARE)
        together = set[int]().union(*(own.boundaries for own in needs.values()))
        least = max(len(own.boundaries) for own in needs.values())
        in_ram = len(together) * each <= ram or disk <= ram
        most = (ram if in_ram else disk) // each
        if most < least:
            raise MemoryLimitError(
                f"states at the edges of a region take {least * each / 1e6:.3g} MB, of free memory and disk there are "
                f"{max(ram, disk) / 1e6:.3g} MB to use"
            )
        where = None if in_ram else folder
        part: dict[int, _Needs] = {}
        edges: set[int] = set()
        for i, own in needs.items():
            if part and len(edges.union(own.boundaries)) > most:
                yield part, where
                part, edges = {}, set()
            part[i] = own
            edges.update(own.boundaries)
        yield part, where

    def _pass(self, kept: Boundaries, tile: Tile, strand: int, spans: set[int]) -> PassSums | None:
        """Run a tile, keeping states, and sums up to the edges of `spans` where rounding allows for it."""
        sums = None
        if self.runner.model.compute_dtype != torch.bfloat16 and strand in self.strands:
            sums = PassSums(self.runner, tile.ids, strand, spans)
        if kept.at:
            if len(tile.ids) >= _LONG_PASS:
                log.info("pass over %s, %s strand", format_region(tile.contig, tile.start, tile.end),
                         "reverse" if strand == REVERSE else "forward")  # fmt: skip
            for part in self.runner.stream(torch.from_numpy(tile.ids)[None], strand=strand, recorder=kept):
                if sums is not None:
                    sums.take(part)
        return sums

    def _run(
        self, needs: dict[int, _Needs], work: _Work, tile: Tile, folder: Path | None
    ) -> Iterator[tuple[int, TileScores] | None]:
        """Score alleles after one pass a strand over their tile."""
        edges = sorted(set[int]().union(*(own.boundaries for own in needs.values())))
        spans = set[int]().union(*(own.spans for own in needs.values()))
        strands = (FORWARD, REVERSE) if any(own.other for own in needs.values()) else self.strands
        kept: dict[int, Boundaries] = {}
        try:
            for strand in strands:
                kept[strand] = Boundaries(self.runner.model, len(tile.ids), edges, folder)
            sums = {strand: self._pass(kept[strand], tile, strand, spans) for strand in strands}
            scorers = [
                RegionScorer(self.runner, Passes(kept[strand], kept.get(1 - strand)), strand, self.batch_size,
                             self._workspace, sums[strand])
                for strand in self.strands
            ]  # fmt: skip
            order = list(needs)
            for low in range(0, len(order), _TOGETHER):
                members = order[low : low + _TOGETHER]
                for level in count():
                    if not members:
                        break
                    members = yield from self._run_level(members, work, tile, level, scorers)
                yield None
        finally:
            for states in kept.values():
                states.close()

    def _run_level(
        self, members: list[int], work: _Work, tile: Tile, level: int, scorers: list[RegionScorer]
    ) -> Generator[tuple[int, TileScores], None, list[int]]:
        """Score alleles at one size; returns those whose error is over the tolerance."""
        passes = scorers[0].passes
        again: list[int] = []
        whole: list[int] = []
        placed: list[tuple[int, Layout]] = []
        for i in members:
            layout = self._lay_out(work[i][0], tile, level)
            if layout is None:
                whole.append(i)
            else:
                placed.append((i, layout))
        yield from zip(whole, self.exact([work[i] for i in whole]), strict=True)
        for group in group_by_shape(placed, lambda one: shape(one[1], passes), self.batch_size):
            pairs = [(work[i][0], layout) for i, layout in group]
            found = [scorer.score(pairs) for scorer in scorers]
            for n, (i, _) in enumerate(group):
                scores = self._average(*work[i], [of[n] for of in found])
                if scores.err_est <= self._tolerated(scores):
                    yield i, scores
                else:
                    again.append(i)
        return again

    def _tolerated(self, scores: TileScores) -> float:
        """Return how large an ERR_EST may be."""
        if scores.llr is not None or scores.pll_diff is None:
            return self.tolerance
        return self.tolerance * (PLL_SHARE + abs(scores.pll_diff))

    def _average(self, edit: AlleleEdit, label: str, found: list[StrandScores]) -> TileScores:
        mean: npt.NDArray[np.float64] = np.mean([one.values for one in found], 0)
        change = float(np.mean([one.change for one in found]))
        if not np.isfinite([*mean, change]).all():
            raise NumericalError(f"{label}: the model gave scores that are not finite numbers: {mean.tolist()}")
        llr, cosine, l2, pll = (float(value) for value in mean)
        extra = () if self.readout is None else self.readout.read([one.means for one in found])
        return TileScores(llr if edit.substitution else None, cosine, l2, pll, SAFETY * change, extra)

    # --- wildtype
    def _wildtype(
        self, members: list[int], work: _Work, tile: Tile
    ) -> tuple[list[int], list[tuple[int, TileScores]]]:
        """Score the substitutions from one pass; returns the other alleles, and those scored."""
        single = [i for i in members if work[i][0].substitution]
        if not single:
            return members, []
        if self._table is None or not self._table.is_of(tile):
            self._table = WildtypeTable(self.runner, tile, self.context, self.strands)
        table, found = self._table, []
        for i in single:
            edit, label = work[i]
            llr = table.llr(edit)
            if not np.isfinite(llr):
                raise NumericalError(f"{label}: the model gave a score that is not a finite number: {llr}")
            found.append((i, TileScores(llr, None, None, None, 0.0)))
        return [i for i in members if not work[i][0].substitution], found


def _position(edit: AlleleEdit) -> int:
    """Return where the record of an allele begins; a duplication is an insertion behind what it doubles."""
    return edit.start - len(edit.alt) if edit.kind == "DUP" else edit.start
