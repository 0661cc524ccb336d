"""Which stretches of a tile are run to score an allele from boundary states."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lrgenome.dna import MASK, IdArray, reverse_complement
from lrgenome.engine.boundary import Anchor
from lrgenome.tasks.variants import AlleleEdit, scored_spans

LONGEST = 65_536
"""Length of a region, bp, past which the whole tile is run instead: regions are run in one piece."""

_FAR = 4
"""Sizes of region from which an inversion is run from its junctions: the states there know what lay beyond its other
end before it was turned round."""

Spans = tuple[tuple[int, int], ...]


class Tile(NamedTuple):
    """A stretch of a contig that is run once."""

    contig: str
    start: int
    """0-based."""
    end: int
    ids: IdArray
    """(end - start,) its bases."""


class Piece(NamedTuple):
    """A region that is run: its bases, and between which boundaries of the tile they belong."""

    ids: IdArray
    left: Anchor
    right: Anchor
    spans: Spans
    """Positions of `ids` that count, half-open."""
    new: bool = True
    """Whether it differs from the reference."""


class Layout(NamedTuple):
    """Everything that is run for one allele at one size of region."""

    reference: tuple[Piece, ...]
    altered: tuple[Piece, ...]
    masked: Piece | None
    """Reference with the differing bases masked, whose spans are these bases one by one; of substitutions."""

    def pieces(self) -> tuple[Piece, ...]:
        """Return all of them."""
        return (*self.reference, *self.altered, *(() if self.masked is None else (self.masked,)))


class _Grid(NamedTuple):
    """The grid of the edges, in a tile."""

    tile: Tile
    every: int

    def left(self, position: int, reach: int) -> int:
        """Return the edge at least `reach` before a position, both as offsets in the tile."""
        start = self.tile.start
        return max(0, (position + start - reach) // self.every * self.every - start)

    def right(self, position: int, reach: int) -> int:
        """Return the edge at least `reach` behind a position."""
        start = self.tile.start
        return min(len(self.tile.ids), -(-(position + start + reach) // self.every) * self.every - start)


def lay_out(edit: AlleleEdit, tile: Tile, size: int, every: int) -> Layout | None:
    """Place the regions of an allele.

    Parameters
    ----------
    edit
        The allele.
    tile
        The tile of its core.
    size
        Least length of a region, bp, with the allele in its middle. That in which an LLR is read, at its middle,
        is half as long.
    every
        Grid that edges lie on, bp from the contig's start; a tile's ends are edges too.

    Returns
    -------
    Layout or None
        None if nothing less than the whole tile will do.
    """
    grid, half = _Grid(tile, every), size // 2
    start, r, a = edit.start - tile.start, len(edit.ref), len(edit.alt)
    if edit.kind == "DUP" and a > size:
        layout = _duplication(edit, grid, start, half)
    elif r > (_FAR * size if edit.kind == "INV" else size):
        layout = _between(edit, grid, start, half)
    else:
        left, right = grid.left(start, half), grid.right(start + r, half)
        if left == 0 and right == len(tile.ids):
            return None
        reference = _stretch(tile.ids, left, right, start, r)
        ids = np.concatenate([tile.ids[left:start], edit.alt, tile.ids[start + r : right]])
        altered = Piece(ids, Anchor(left), Anchor(right), scored_spans(start - left, a, len(ids)))
        layout = Layout((reference,), (altered,), _masked(edit, grid, start, half // 2))
    return None if any(len(piece.ids) > LONGEST for piece in layout.pieces()) else layout


def _stretch(ids: IdArray, left: int, right: int, start: int, length: int) -> Piece:
    """Return a region of the reference around bases that are scored."""
    spans = scored_spans(start - left, length, right - left)
    return Piece(ids[left:right], Anchor(left), Anchor(right), spans, new=False)


def _masked(edit: AlleleEdit, grid: _Grid, start: int, half: int) -> Piece | None:
    if not edit.substitution:
        return None
    left, right = grid.left(start, half), grid.right(start + len(edit.ref), half)
    ids = grid.tile.ids[left:right].copy()
    sites = [start - left + site for site in edit.sites]
    ids[sites] = MASK
    return Piece(ids, Anchor(left), Anchor(right), tuple((site, site + 1) for site in sites))


def _between(edit: AlleleEdit, grid: _Grid, start: int, half: int) -> Layout:
    """Lay out what replaces more of the reference than is run: its two ends."""
    ids, end = grid.tile.ids, start + len(edit.ref)
    left, in_left = grid.left(start, half), grid.right(start, half)
    in_right, right = grid.left(end, half), grid.right(end, half)
    reference = _stretch(ids, left, in_left, start, 0), _stretch(ids, in_right, right, end, 0)
    if edit.kind == "INV":
        first = np.concatenate([ids[left:start], reverse_complement(ids[in_right:end])])
        second = np.concatenate([reverse_complement(ids[start:in_left]), ids[end:right]])
        altered = (
            Piece(first, Anchor(left), Anchor(in_right, True), scored_spans(start - left, 0, len(first))),
            Piece(second, Anchor(in_left, True), Anchor(right), scored_spans(in_left - start, 0, len(second))),
        )
        return Layout(reference, altered, None)
    joined = np.concatenate([ids[left:start], edit.alt, ids[end:right]])
    spans = scored_spans(start - left, len(edit.alt), len(joined))
    return Layout(reference, (Piece(joined, Anchor(left), Anchor(right), spans),), None)


def _duplication(edit: AlleleEdit, grid: _Grid, end: int, half: int) -> Layout:
    """Lay out a second copy of the bases before `end` that is longer than what is run.

    The end of the first copy meets the beginning of the second; that the second is followed by what followed the
    first changes nothing there that is nearer than the copy is long.
    """
    ids, start = grid.tile.ids, end - len(edit.alt)
    left, right = grid.left(end, half), grid.right(end, half)
    after = grid.right(start, half)
    reference = _stretch(ids, left, right, end, 0)
    joined = np.concatenate([ids[left:end], ids[start:after]])
    spans = scored_spans(end - left, 0, len(joined))
    return Layout((reference,), (Piece(joined, Anchor(left), Anchor(after), spans), reference), None)
