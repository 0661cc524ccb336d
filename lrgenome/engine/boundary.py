"""Boundary states: any edit of a window for the price of a short region around it.

A pass over a reference window keeps, at chosen boundaries, what either direction of every block knows when it comes
there. To evaluate an edit, the positions of a region [a, b) around it are run alone: every left-to-right scan starts
from the state kept at a, every right-to-left scan from that kept at b. Unedited, this is the whole pass. Edited, the
only thing left out is that the edit's own echo comes back from outside the region: what leaves it to the right changes
the next block's states beyond b, which come back into the region from there.

The echo is estimated by reflection: the region is run again with each block's outgoing difference at one edge, edited
minus reference, added to what the next block takes in at the same edge.

The edges of a region need not be those of one stretch of the window. A deletion joins what lies before it to what lies
behind it, a tandem duplication its end to its beginning, and an inversion joins a stretch to the reverse complement of
another, whose states are those of the pass over the other strand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lrgenome.dna import COMPLEMENT
from lrgenome.engine.boundary_states import Boundaries
from lrgenome.engine.sweep import scratch_prepared, stream
from lrgenome.glossary import REVERSE
from lrgenome.models.base import DirectionState, Prepared, RecurrentModel
from lrgenome.ops.workspace import Workspace


class Ends(NamedTuple):
    """What leaves a region in each block: the state after its last position, either way."""

    right: list[DirectionState]
    """Of the left-to-right scans, at the region's right edge."""
    left: list[DirectionState]
    """Of the right-to-left scans, at its left edge."""


class Anchor(NamedTuple):
    """Where an edge of a region lies."""

    at: int
    """Boundary of the window; boundary p lies before position p."""
    flipped: bool = False
    """Whether the region reads the other strand there, as inside an inversion."""


class Passes(NamedTuple):
    """What is kept of the passes over a window."""

    own: Boundaries
    """Of the strand that is run."""
    other: Boundaries | None = None
    """Of the other strand, for what an inversion brings over."""


def anchored(passes: Passes, layer: int, way: int, anchors: Sequence[Anchor]) -> DirectionState:
    """Return the states of block `layer` (0-based) with which a direction comes to anchors, one a row.

    Inside an inversion the direction is the other one's of the other strand, whose inputs lie the other way round.
    """
    at, flipped = [anchor.at for anchor in anchors], {anchor.flipped for anchor in anchors}
    if flipped == {False}:
        return passes.own.states(layer, way, at)
    if flipped != {True} or passes.other is None:
        raise ValueError("flipped anchors go by themselves, and with a pass over the other strand")
    state = passes.other.states(layer, 1 - way, at)
    return DirectionState(state.h, state.halo.flip(1))


def outside(model: RecurrentModel, passes: Passes, left: Sequence[Anchor], right: Sequence[Anchor]) -> Ends:
    """Return what leaves regions at their edges where nothing is edited, from the states kept there."""
    layers = range(len(model.stack))
    return Ends([anchored(passes, n, 0, right) for n in layers], [anchored(passes, n, 1, left) for n in layers])


def run_region(
    model: RecurrentModel,
    ids: Tensor,
    passes: Passes,
    left: Sequence[Anchor],
    right: Sequence[Anchor],
    *,
    strand: int,
    reference: Ends | None = None,
    rows: tuple[int, int] | None = None,
    workspace: Workspace | None = None,
) -> tuple[Tensor, Ends]:
    """Run regions of a window from the states at their edges.

    Parameters
    ----------
    model
        The model of the passes.
    ids
        (b, r) token ids of b regions, edited or not, forward strand; r need not be ``right - left``.
    passes
        States of the pass over the reference window on the same strand, and of the other where anchors are flipped.
    left, right
        Edges of each region: boundaries that were kept. All regions touch the window's first base or none does, and
        so for its last.
    strand
        As in `sweep.stream`.
    reference
        What leaves the unedited regions. Each region is then run a second time beside the first, with the differences
        that leave each block added to what the next one takes in at the same edge.
    rows
        Positions [low, high) of the regions that are wanted of the last block; default all.
    workspace
        Scratch buffers to use again.

    Returns
    -------
    hidden : Tensor
        (b, r, w) final-norm hidden states, of `rows` only; (2b, r, w) with `reference`, the plain ones first. They lie
        in scratch memory only where the model's last steps put them there.
    ends : Ends
        States that leave the (plain) regions.
    """
    at_start = {anchor == Anchor(0) for anchor in left}
    at_end = {anchor == Anchor(passes.own.length) for anchor in right}
    if len(at_start) != 1 or len(at_end) != 1:
        raise ValueError("regions at an end of the window go by themselves")
    if strand == REVERSE:
        ids = torch.from_numpy(COMPLEMENT).to(ids.device)[ids.long()]
    ws = workspace or Workspace(enabled=False)
    x = model.embed(ids)
    ends = Ends([], [])
    single, strands = x.shape[0], model.strands
    copies = 1 if reference is None else 2
    e, dtype = model.scan_width(), model.compute_dtype
    for layer, block in enumerate(model.stack):
        if layer == 1 and copies == 2:
            # Both runs are the same up to here.
            x = _beside(x, x, strands)
        shape = (x.shape[0], x.shape[1])
        u = block.prepare(x, ws, scratch_prepared(ws, shape, e, dtype, x.device))
        outputs = []
        for way, edges, first, out in ((0, left, at_start, ends.right), (1, right, at_end, ends.left)):
            state = anchored(passes, layer, way, edges)
            if reference is not None and layer:
                echoed = state
                if first != {True}:
                    # What came out of the block before to the right comes back from the right, and so to the left.
                    of, plain = (ends.right, reference.right) if way else (ends.left, reference.left)
                    echoed = DirectionState(*(
                        s + (p - q) for s, p, q in zip(state, of[layer - 1], plain[layer - 1], strict=True)
                    ))  # fmt: skip
                state = DirectionState(*(_beside(a, b, strands) for a, b in zip(state, echoed, strict=True)))
            y, end = block.scan(
                u, state, weights=way ^ strand, reverse=bool(way), reset=first == {True}, ws=ws,
                out=ws.get(f"region y{way}", (*shape, e), dtype, x.device),
            )  # fmt: skip
            outputs.append(y)
            # Not a view of all states of the region.
            out.append(DirectionState(*(_plain(part, single, strands).clone() for part in end)))
        if rows is not None and layer == len(model.stack) - 1:
            low, high = rows
            x, u = x[:, low:high].contiguous(), Prepared(*(part[:, low:high].contiguous() for part in u))
            outputs = [part[:, low:high].contiguous() for part in outputs]
        x = block.combine(x, u, outputs[0], outputs[1], ws)
    if copies == 2 and len(model.stack) == 1:
        x = _beside(x, x, strands)
    return model.finish(x), ends


def _beside(a: Tensor, b: Tensor, strands: int) -> Tensor:
    """Put two batches beside each other, strand by strand."""
    return torch.cat([part for pair in zip(a.chunk(strands), b.chunk(strands), strict=True) for part in pair])


def _plain(part: Tensor, single: int, strands: int) -> Tensor:
    """Take what `_beside` had first."""
    if part.shape[0] == single:
        return part
    return torch.cat([both.chunk(2)[0] for both in part.chunk(strands)])


def reference_pass(
    model: RecurrentModel, ids: Tensor, at: Sequence[int], *, chunk: int, strand: int, **options: object
) -> Boundaries:
    """Run a reference window (1, t) whole and keep the states at boundaries `at`; `options` are `sweep.stream`'s."""
    kept = Boundaries(model, ids.shape[1], at)
    for _ in stream(model, ids, chunk=chunk, strand=strand, recorder=kept, **options):  # type: ignore[arg-type]
        pass
    return kept
