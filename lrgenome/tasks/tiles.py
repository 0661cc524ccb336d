"""Scores of alleles from boundary states: the context of a tile for the price of a region.

Tiles lie on an absolute grid of each contig: cores of `context` bp, with half of that on either side. A tile is run
once a strand and keeps the states at the edges of the regions of its alleles; each allele is then scored by running its
region alone, three times (reference, ALT, reference with the differing bases masked) and twice more for the error.
A score follows from genome, variant and settings; the other variants make no difference to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lrgenome.dna import COMPLEMENT, MASK, IdArray
from lrgenome.engine.boundary import Boundaries, Ends, boundary_bytes, differences, run_region
from lrgenome.engine.runner import Runner
from lrgenome.engine.sweep import Chunk
from lrgenome.errors import MemoryLimitError, NumericalError, UsageError
from lrgenome.glossary import REVERSE
from lrgenome.io.fasta import Fasta
from lrgenome.ops.workspace import Workspace
from lrgenome.tasks import variants
from lrgenome.tasks.pooling import Pooled, distances, pool
from lrgenome.tasks.scoring import STRANDS, WindowScorer
from lrgenome.tasks.variants import AlleleEdit, AlleleWindows

SAFETY = 10.0
"""ERR_EST over the change that the reflected echo makes to LLR, or to PLL_DIFF where there is no LLR."""
LEVELS = 2
"""Sizes of region whose edges one pass over a tile keeps: the first, and twice that."""
_LONGEST = 65_536
"""Length of a region, bp, from which the whole tile is run instead: regions are run in one piece."""
_SHARE = 0.25
"""Part of the free memory that states may take."""


class TileScores(NamedTuple):
    """Scores of one allele, averaged over strands; None is missing."""

    llr: float | None
    dist_cos: float
    dist_l2: float
    pll_diff: float
    err_est: float


class Region(NamedTuple):
    """A stretch of a tile around an allele; offsets from the tile's start."""

    left: int
    right: int
    at: int
    """Where the allele begins."""


class _Tile(NamedTuple):
    contig: str
    start: int
    end: int


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
        That grid, bp.
    tolerance
        ERR_EST from which a region is run again at twice the size, up to the whole tile.
    """

    def __init__(
        self, runner: Runner, fasta: Fasta, context: int, *,
        strand: str, region_size: int, state_every: int, tolerance: float,
    ) -> None:  # fmt: skip
        if region_size < 2 * variants.FLANK + 2 * state_every:
            raise UsageError(
                f"--region-size: got {region_size}, expected at least {2 * variants.FLANK + 2 * state_every}: the "
                f"allele's {variants.FLANK} bp flanks, and {state_every} bp beyond them"
            )
        if not tolerance > 0:
            raise UsageError(f"--tolerance: got {tolerance}, expected more than 0")
        self.runner, self.fasta, self.context = runner, fasta, context
        self.strand, self.strands = strand, STRANDS[strand]
        self.region_size, self.state_every, self.tolerance = region_size, state_every, tolerance
        self._workspace = Workspace()
        self._last: dict[tuple[str, int], tuple[object, tuple[Chunk, Ends]]] = {}

    def _bounds(self, tile: tuple[str, int]) -> _Tile:
        contig, core = tile
        half = self.context // 2
        length = self.fasta.contigs[contig]
        return _Tile(contig, max(0, core * self.context - half), min(length, (core + 1) * self.context + half))

    def region(self, edit: AlleleEdit, tile: _Tile, level: int) -> Region:
        """Place the region of an allele: its edges on the absolute grid, or at the tile's ends."""
        half, every = (self.region_size << level) // 2, self.state_every
        left = (edit.start - half) // every * every
        right = -(-(edit.start + len(edit.ref) + half) // every) * every
        left, right = max(tile.start, left), min(tile.end, right)
        return Region(left - tile.start, right - tile.start, edit.start - tile.start)

    def score(self, work: Sequence[tuple[AlleleEdit, str]]) -> Iterator[tuple[int, TileScores] | None]:
        """Score alleles, given with labels; yields (index, scores), tile by tile, and None between passes."""
        tiles: dict[tuple[str, int], list[int]] = {}
        for i, (edit, _) in enumerate(work):
            tiles.setdefault(edit.core(self.context), []).append(i)
        for tile, members in tiles.items():
            bounds = self._bounds(tile)
            ids = self.fasta.fetch(bounds.contig, bounds.start, bounds.end)
            level = 0
            while members:
                again: list[int] = []
                for part in self._parts(members, work, bounds, level):
                    yield from self._run(part, work, bounds, ids, level, again)
                    yield None
                members, level = again, level + LEVELS

    def _parts(
        self, members: list[int], work: Sequence[tuple[AlleleEdit, str]], tile: _Tile, level: int
    ) -> Iterator[list[int]]:
        """Cut the alleles of a tile into runs whose states fit."""
        free = max(0, self.runner.free_memory() - self.runner.plan(1, tile.end - tile.start).ram)
        each = boundary_bytes(self.runner.model) * len(self.strands)
        most = int(free * _SHARE) // max(1, each)
        if most < 2 * LEVELS:
            raise MemoryLimitError(
                f"states at the edges of a region take {2 * LEVELS * each / 1e6:.1f} MB, free are {free / 1e6:.1f} MB"
            )
        part: list[int] = []
        edges: set[int] = set()
        for i in members:
            own = set(self._edges(work[i][0], tile, level))
            if part and len(edges | own) > most:
                yield part
                part, edges = [], set()
            part.append(i)
            edges |= own
        yield part

    def _edges(self, edit: AlleleEdit, tile: _Tile, level: int) -> Iterator[int]:
        for more in range(LEVELS):
            region = self.region(edit, tile, level + more)
            yield from (region.left, region.right)

    def _run(
        self, members: list[int], work: Sequence[tuple[AlleleEdit, str]], tile: _Tile, ids: IdArray, level: int,
        again: list[int],
    ) -> Iterator[tuple[int, TileScores]]:  # fmt: skip
        edges = sorted({edge for i in members for edge in self._edges(work[i][0], tile, level)})
        kept = [self._reference_pass(ids, edges, strand) for strand in self.strands]
        self._last.clear()
        for i in members:
            edit, label = work[i]
            for more in range(LEVELS):
                region = self.region(edit, tile, level + more)
                if (region.left == 0 and region.right == len(ids)) or region.right - region.left > _LONGEST:
                    yield i, self._whole(edit, region.at, ids, label)
                    break
                found = [self._one(edit, region, ids, states, strand)
                         for states, strand in zip(kept, self.strands, strict=True)]  # fmt: skip
                scores = self._average(edit, found, label)
                if scores.err_est <= self.tolerance:
                    yield i, scores
                    break
            else:
                again.append(i)

    def _reference_pass(self, ids: IdArray, edges: list[int], strand: int) -> Boundaries:
        kept = Boundaries(self.runner.model, len(ids), edges)
        for _ in self.runner.stream(torch.from_numpy(ids)[None], strand=strand, recorder=kept):
            pass
        return kept

    def _whole(self, edit: AlleleEdit, at: int, ids: IdArray, label: str) -> TileScores:
        """Score an allele by running the whole tile, which is exact."""
        flank, r, a = variants.FLANK, len(edit.ref), len(edit.alt)
        altered = np.concatenate([ids[:at], edit.alt, ids[at + r :]])
        masked, sites = None, at + np.array(edit.sites, dtype=np.int64)
        if edit.substitution:
            masked = ids.copy()
            masked[sites] = MASK
        low = max(0, at - flank)
        windows = AlleleWindows(
            ids, altered, masked, tuple(sites.tolist()), ids[sites], altered[sites] if edit.substitution else ids[:0],
            (low, min(len(ids), at + r + flank)), (low, min(len(altered), at + a + flank)),
        )  # fmt: skip
        (scores,) = WindowScorer(self.runner, strand=self.strand, batch_size=1).score([(windows, label)])
        return TileScores(*scores, err_est=0.0)

    def _one(
        self, edit: AlleleEdit, region: Region, ids: IdArray, kept: Boundaries, strand: int
    ) -> tuple[npt.NDArray[np.float64], float]:
        """Score an allele on one strand: (LLR, cosine, L2, PLL difference), and the error of the first or the last."""
        flank, r, a = variants.FLANK, len(edit.ref), len(edit.alt)
        at = region.at - region.left
        reference = ids[region.left : region.right]
        altered = np.concatenate([reference[:at], edit.alt, reference[at + r :]])
        low = max(0, at - flank)
        ref_span, alt_span = (low, min(len(reference), at + r + flank)), (low, min(len(altered), at + a + flank))
        before, ends = self._again(("reference", reference.tobytes(), region), reference, region, kept, strand)
        ref = self._pool(before, reference, ref_span, strand)
        after, alt_ends = self._states(altered, region, kept, strand)
        results = [self._compare(ref, self._pool(after, altered, alt_span, strand))]
        echoed, _ = self._states(altered, region, kept, strand, differences(alt_ends, ends))
        results.append(self._compare(ref, self._pool(echoed, altered, alt_span, strand)))
        llrs = [0.0, 0.0]
        if edit.sites:
            masked = reference.copy()
            sites = at + np.array(edit.sites)
            masked[sites] = MASK
            key = masked.tobytes(), region
            hidden, masked_ends = self._again(("masked", *key), masked, region, kept, strand)
            llrs = [self._llr(hidden, edit, sites, strand)]
            echo = differences(masked_ends, ends)
            hidden, _ = self._again(("masked, echoed", *key), masked, region, kept, strand, echo)
            llrs.append(self._llr(hidden, edit, sites, strand))
        rows = np.array([[llr, *row] for llr, row in zip(llrs, results, strict=True)])
        change = np.abs(rows[-1] - rows[0])
        return rows[0], SAFETY * float(change[0] if edit.substitution else change[3])

    def _again(
        self, key: tuple[str, bytes, Region], region_ids: IdArray, region: Region, kept: Boundaries, strand: int,
        echo: Ends | None = None,
    ) -> tuple[Chunk, Ends]:  # fmt: skip
        """Run a region, or return what the allele before made of it: those of a site share all but their own bases."""
        slot = (key[0], strand)
        found = self._last.get(slot)
        if found is None or found[0] != (key, id(kept)):
            found = self._last[slot] = ((key, id(kept)), self._states(region_ids, region, kept, strand, echo))
        return found[1]

    def _states(
        self, region_ids: IdArray, region: Region, kept: Boundaries, strand: int, echo: Ends | None = None
    ) -> tuple[Chunk, Ends]:
        tensor = torch.from_numpy(region_ids)[None].to(self.runner.device)
        with torch.no_grad():
            hidden, ends = run_region(
                self.runner.model, tensor, kept, [region.left], [region.right], strand=strand, echo=echo,
                workspace=self._workspace,
            )  # fmt: skip
        return Chunk(0, hidden.shape[1], hidden), ends

    def _pool(self, part: Chunk, region_ids: IdArray, span: tuple[int, int], strand: int) -> Pooled:
        observed = COMPLEMENT[region_ids] if strand == REVERSE else region_ids
        low, high = span
        log_p = self.runner.log_probabilities(part, 0, low, high)
        return pool(part.hidden[0, low:high], log_p, observed[low:high])

    @staticmethod
    def _compare(ref: Pooled, alt: Pooled) -> tuple[float, float, float]:
        return (*distances(ref.mean, alt.mean), alt.log_likelihood - ref.log_likelihood)

    def _llr(self, part: Chunk, edit: AlleleEdit, sites: npt.NDArray[np.int64], strand: int) -> float:
        total = 0.0
        for site, offset in zip(sites.tolist(), edit.sites, strict=True):
            log_p = self.runner.log_probabilities(part, 0, site, site + 1)[0]
            ref, alt = edit.ref[offset], edit.alt[offset]
            if strand == REVERSE:
                ref, alt = COMPLEMENT[ref], COMPLEMENT[alt]
            total += float(log_p[alt] - log_p[ref])
        return total

    @staticmethod
    def _average(
        edit: AlleleEdit, found: Iterable[tuple[npt.NDArray[np.float64], float]], label: str
    ) -> TileScores:
        rows, errors = zip(*found, strict=True)
        mean = np.mean(rows, 0)
        if not np.isfinite(mean).all():
            raise NumericalError(f"{label}: the model gave scores that are not finite numbers: {mean.tolist()}")
        llr, cosine, l2, pll = (float(value) for value in mean)
        return TileScores(llr if edit.substitution else None, cosine, l2, pll, float(np.mean(errors)))
