"""Scores of alleles from regions of one tile, on one strand."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from lrgenome.dna import COMPLEMENT, FIRST_BASE, IdArray
from lrgenome.engine.boundary import Passes, outside, run_region
from lrgenome.engine.runner import Runner
from lrgenome.engine.sweep import Chunk
from lrgenome.glossary import REVERSE
from lrgenome.ops.workspace import Workspace
from lrgenome.tasks.pass_sums import FloatArray, PassSums, Sum
from lrgenome.tasks.pooling import Pooled, distances
from lrgenome.tasks.regions import Layout, Piece, Spans
from lrgenome.tasks.variants import AlleleEdit

T = TypeVar("T")

_SHARED = 32
"""Results that alleles of one region share and that are held, over the number run together."""


_SHARED_BYTES = 1 << 29
"""Bytes of these results, over those of the number run together."""


class StrandScores(NamedTuple):
    """Scores of one allele on one strand."""

    values: FloatArray
    """(4,) LLR (0 where there is none), cosine distance, L2 distance, PLL difference."""
    change: float
    """Of LLR, or of PLL difference where there is no LLR, when what leaves the region comes back."""
    means: FloatArray
    """(2, w) mean hidden states of ALT and REF."""


class _Sums:
    """Running sums over a region, from which any span is pooled."""

    def __init__(self, hidden: Tensor, observed: FloatArray) -> None:
        self._hidden = torch.cumsum(hidden.double(), 0).cpu().numpy()
        self._observed = np.cumsum(observed)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._hidden.nbytes + self._observed.nbytes

    def pool(self, spans: Iterable[tuple[int, int]]) -> Sum:
        """Sum over stretches [low, high)."""
        total, likelihood, count = np.zeros(self._hidden.shape[1]), 0.0, 0
        for low, high in spans:
            total += self._hidden[high - 1]
            likelihood += float(self._observed[high - 1])
            if low:
                total -= self._hidden[low - 1]
                likelihood -= float(self._observed[low - 1])
            count += high - low
        return total, likelihood, count


class RegionScorer:
    """Scores alleles of one tile on one strand.

    Parameters
    ----------
    runner
        A recurrent model, ready.
    passes
        What was kept of the passes over the tile.
    strand
        FORWARD or REVERSE.
    batch_size
        Regions of one length that are run together. Batches are always full, so that a score does not depend on how
        many others there are.
    workspace
        Scratch buffers to use again.
    sums
        Of the pass on this strand. Without them regions of the reference are run again, which makes the same rounding
        errors as those of its edits: of use in bfloat16.
    """

    def __init__(
        self, runner: Runner, passes: Passes, strand: int, batch_size: int, workspace: Workspace,
        sums: PassSums | None = None,
    ) -> None:  # fmt: skip
        self._sums = sums
        self.runner, self.passes, self.strand, self.batch_size = runner, passes, strand, batch_size
        self._workspace = workspace
        self._references: OrderedDict[object, _Sums] = OrderedDict()
        self._masked: OrderedDict[object, tuple[FloatArray, FloatArray]] = OrderedDict()

    def score(self, work: Sequence[tuple[AlleleEdit, Layout]]) -> list[StrandScores]:
        """Score alleles, at most `batch_size`, whose layouts have one `shape`."""
        if self._sums is None:
            self._run_references([piece for _, layout in work for piece in layout.reference])
        plain, echoed = self._altered(work)
        found = []
        for i, ((edit, layout), llrs) in enumerate(zip(work, self._llrs(work), strict=True)):
            ref = self._reference(layout.reference)
            change = llrs[1] - llrs[0] if edit.substitution else echoed[i].log_likelihood - plain[i].log_likelihood
            values = llrs[0], *distances(ref.mean, plain[i].mean), plain[i].log_likelihood - ref.log_likelihood
            found.append(StrandScores(np.array(values), abs(change), np.stack([plain[i].mean, ref.mean])))
        return found

    # --- what is run
    def _run(
        self, pieces: Sequence[Piece], *, echo: bool, rows: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Run regions of one shape; returns hidden states (b, n, w), and those with the echo if that is wanted."""
        padded = [*pieces, *[pieces[-1]] * (self.batch_size - len(pieces))]
        ids = torch.from_numpy(np.stack([piece.ids for piece in padded])).to(self.runner.device)
        left, right = [piece.left for piece in padded], [piece.right for piece in padded]
        model = self.runner.model
        with torch.no_grad():
            reference = outside(model, self.passes, left, right) if echo else None
            hidden, _ = run_region(
                model, ids, self.passes, left, right, strand=self.strand, reference=reference, rows=rows,
                workspace=self._workspace,
            )  # fmt: skip
        count = len(padded)
        return hidden[: len(pieces)], hidden[count : count + len(pieces)] if echo else None

    def _rows(self, pieces: Sequence[Piece]) -> tuple[int, int] | None:
        """Return the positions that are wanted of a region that runs alone; in a batch, all."""
        if self.batch_size > 1:
            return None
        (piece,) = pieces
        return piece.spans[0][0], piece.spans[-1][1]

    def _observed(self, part: Chunk, row: int, ids: IdArray) -> FloatArray:
        """Return the log-probabilities of the bases of a region's row, 0 for what is no base."""
        bases = COMPLEMENT[ids] if self.strand == REVERSE else ids
        known = np.flatnonzero((bases >= FIRST_BASE) & (bases < FIRST_BASE + 4))
        result = np.zeros(len(bases))
        result[known] = self.runner.log_probabilities(part, row, 0, len(bases))[known, bases[known]]
        return result

    # --- reference
    def _run_references(self, pieces: Iterable[Piece]) -> None:
        """Run those regions of the reference that are not there yet: the alleles of a site share them."""
        missing = {(piece.left, piece.right): piece for piece in pieces}
        for key in list(missing):
            if key in self._references:
                self._references.move_to_end(key)
                del missing[key]
        for group in group_by_shape(missing.values(), lambda piece: _shape(piece, self.passes), self.batch_size):
            hidden, _ = self._run(group, echo=False)
            for row, piece in enumerate(group):
                part = Chunk(0, hidden.shape[1], hidden)
                self._references[piece.left, piece.right] = _Sums(hidden[row], self._observed(part, row, piece.ids))
        while len(self._references) > 2 * self.batch_size and (
            len(self._references) > _SHARED + 2 * self.batch_size
            or sum(sums.nbytes for sums in self._references.values()) > _SHARED_BYTES
        ):
            self._references.popitem(last=False)

    def _reference(self, pieces: Sequence[Piece]) -> Pooled:
        return _pooled([self._unedited(piece) for piece in pieces])

    def _unedited(self, piece: Piece) -> Sum:
        if self._sums is not None:
            return self._sums.pool(placed_spans(piece))
        return self._references[piece.left, piece.right].pool(piece.spans)

    # --- ALT
    def _altered(self, work: Sequence[tuple[AlleleEdit, Layout]]) -> tuple[list[Pooled], list[Pooled]]:
        """Return what is pooled over the ALT alleles; and with the echo, for alleles without an LLR."""
        plain: list[list[Sum]] = [[] for _ in work]
        echoed: list[list[Sum]] = [[] for _ in work]
        echo = work[0][1].masked is None
        for n in range(len(work[0][1].altered)):
            pieces = [layout.altered[n] for _, layout in work]
            if not pieces[0].new:
                for i, piece in enumerate(pieces):
                    plain[i].append(self._unedited(piece))
                    echoed[i].append(plain[i][-1])
                continue
            rows = self._rows(pieces)
            hidden, again = self._run(pieces, echo=echo, rows=rows)
            for i, piece in enumerate(pieces):
                plain[i].append(self._pool(hidden, i, piece, rows))
                if again is not None:
                    echoed[i].append(self._pool(again, i, piece, rows))
        return [_pooled(of) for of in plain], [_pooled(of) for of in echoed] if echo else []

    def _pool(
        self, hidden: Tensor, row: int, piece: Piece, rows: tuple[int, int] | None
    ) -> Sum:
        low, high = rows or (0, len(piece.ids))
        part = Chunk(low, high, hidden)
        spans = [(a - low, b - low) for a, b in piece.spans]
        return _Sums(hidden[row], self._observed(part, row, piece.ids[low:high])).pool(spans)

    # --- LLR
    def _llrs(self, work: Sequence[tuple[AlleleEdit, Layout]]) -> list[tuple[float, float]]:
        """Return the LLR of each allele, plain and with the echo; zeros where there is none."""
        missing = {}
        for _, layout in work:
            piece = layout.masked
            if piece is not None and piece.spans:
                key = _masked_key(piece)
                if key in self._masked:
                    self._masked.move_to_end(key)
                else:
                    missing[key] = piece
        if missing:
            pieces = list(missing.values())
            rows = self._rows(pieces)
            hidden, again = self._run(pieces, echo=True, rows=rows)
            for row, (key, piece) in enumerate(missing.items()):
                low = rows[0] if rows else 0
                self._masked[key] = (self._at_sites(hidden, row, piece, low), self._at_sites(again, row, piece, low))
        found = [self._llr(edit, layout.masked) for edit, layout in work]
        while len(self._masked) > _SHARED + 2 * self.batch_size:
            self._masked.popitem(last=False)
        return found

    def _at_sites(self, hidden: Tensor | None, row: int, piece: Piece, low: int) -> FloatArray:
        assert hidden is not None
        part = Chunk(low, low + hidden.shape[1], hidden)
        return np.concatenate([
            self.runner.log_probabilities(part, row, a - low, b - low) for a, b in piece.spans
        ])  # fmt: skip

    def _llr(self, edit: AlleleEdit, piece: Piece | None) -> tuple[float, float]:
        if piece is None or not piece.spans:
            return 0.0, 0.0
        refs, alts = edit.ref[list(edit.sites)], edit.alt[list(edit.sites)]
        if self.strand == REVERSE:
            refs, alts = COMPLEMENT[refs], COMPLEMENT[alts]
        which = np.arange(len(refs))
        plain, echoed = (
            float((log_p[which, alts] - log_p[which, refs]).sum()) for log_p in self._masked[_masked_key(piece)]
        )
        return plain, echoed


def placed_spans(piece: Piece) -> Spans:
    """Return what counts of a region of the reference, as positions in its tile."""
    return tuple((piece.left.at + low, piece.left.at + high) for low, high in piece.spans)


def _masked_key(piece: Piece) -> object:
    return piece.left, piece.right, piece.spans


def _shape(piece: Piece, passes: Passes) -> tuple[object, ...]:
    ends = piece.left.at == 0, piece.right.at == passes.own.length
    return (len(piece.ids), piece.left.flipped, piece.right.flipped, piece.new, len(piece.spans), *ends)


def shape(layout: Layout, passes: Passes) -> tuple[object, ...]:
    """Return what layouts that are run together have in common."""
    parts = (*layout.altered, *((layout.masked,) if layout.masked is not None else ()))
    return (len(layout.altered), layout.masked is None, *(_shape(piece, passes) for piece in parts))


def group_by_shape(items: Iterable[T], key: Callable[[T], object], size: int) -> Iterator[list[T]]:
    """Yield lists of at most `size` items of one key: full ones as soon as they are, the rest at the end."""
    waiting: dict[object, list[T]] = {}
    for item in items:
        group = waiting.setdefault(key(item), [])
        group.append(item)
        if len(group) == size:
            del waiting[key(item)]
            yield group
    yield from waiting.values()


def _pooled(parts: Sequence[Sum]) -> Pooled:
    count = sum(n for _, _, n in parts)
    return Pooled(np.sum([total for total, _, _ in parts], 0) / max(1, count), sum(value for _, value, _ in parts))

