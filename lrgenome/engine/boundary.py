"""Boundary states: any edit of a window for the price of a short region around it.

A pass over a reference window keeps, at chosen boundaries, what either direction of every block knows when it comes
there. To evaluate an edit, the positions of a region [a, b) around it are run alone: every left-to-right scan starts
from the state kept at a, every right-to-left scan from that kept at b. Unedited, this is the whole pass. Edited, the
only thing left out is that the edit's own echo comes back from outside the region: what leaves it to the right changes
the next block's states beyond b, which come back into the region from there.

The echo is estimated by reflection: the region is run again with each block's outgoing difference at one edge, edited
minus reference, added to what the next block takes in at the same edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lrgenome.dna import COMPLEMENT
from lrgenome.engine.sweep import scratch_prepared, stream
from lrgenome.errors import UsageError
from lrgenome.glossary import FORWARD, REVERSE
from lrgenome.models.base import DirectionState, RecurrentModel, Saved
from lrgenome.ops.workspace import Workspace


class Ends(NamedTuple):
    """What leaves a region in each block: the state after its last position, either way."""

    right: list[DirectionState]
    """Of the left-to-right scans, at the region's right edge."""
    left: list[DirectionState]
    """Of the right-to-left scans, at its left edge."""


class Boundaries:
    """States of one pass over a window, at boundaries that were named beforehand.

    Parameters
    ----------
    model
        A recurrent model ready for inference.
    length
        Positions of the window.
    at
        Boundaries 0..length, rising; boundary p lies before position p.
    """

    def __init__(self, model: RecurrentModel, length: int, at: Sequence[int]) -> None:
        self.length, self.at = length, list(at)
        if any(p >= q for p, q in zip(self.at, self.at[1:], strict=False)) or not all(0 <= p <= length for p in at):
            raise UsageError(f"boundaries: expected rising numbers from 0 to {length}")
        self._index = {p: i for i, p in enumerate(self.at)}
        device = next(iter(model.parameters())).device
        self._kept: list[list[tuple[Tensor, Tensor]]] = []
        for block in model.stack:
            zero = block.initial_state(model.strands, device)
            self._kept.append([
                tuple(part.new_zeros(part.shape[0], len(self.at), *part.shape[1:]) for part in zero)  # type: ignore[misc]
                for _ in (FORWARD, REVERSE)
            ])  # fmt: skip
        self._edges = torch.tensor(self.at, dtype=torch.int64)

    def wanted(self, layer: int, reverse: bool, start: int, end: int) -> Saved | None:
        """Return where the boundaries in [start, end) go, the window's end included; see `sweep.Recorder`."""
        low, high = (int(v) for v in torch.searchsorted(self._edges, torch.tensor([start, end])))
        if end == self.length:
            high = len(self.at)
        if low == high:
            return None
        h, halo = self._kept[layer][int(reverse)]
        return Saved(self._edges[low:high] - start, h[:, low:high], halo[:, low:high])

    def states(self, layer: int, way: int, at: Sequence[int]) -> DirectionState:
        """Return the states of block `layer` (0-based) that a direction has at boundaries `at`, one a row.

        A model that runs both strands side by side has rows of the first strand first.
        """
        rows = torch.tensor([self._index[p] for p in at])
        return DirectionState(*(part[:, rows].flatten(0, 1) for part in self._kept[layer][way]))

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(part.numel() * part.element_size() for of in self._kept for pair in of for part in pair)


def boundary_bytes(model: RecurrentModel) -> int:
    """Return the bytes that one boundary of one pass takes."""
    total = 0
    for block in model.stack:
        zero = block.initial_state(model.strands, torch.device("meta"))
        total += 2 * sum(part.numel() * part.element_size() for part in zero)
    return total


def run_region(
    model: RecurrentModel,
    ids: Tensor,
    boundaries: Boundaries,
    left: Sequence[int],
    right: Sequence[int],
    *,
    strand: int,
    echo: Ends | None = None,
    workspace: Workspace | None = None,
) -> tuple[Tensor, Ends]:
    """Run regions of a window from the states at their edges.

    Parameters
    ----------
    model
        The model of the pass that made `boundaries`.
    ids
        (b, r) token ids of b regions, edited or not, forward strand; r need not be ``right - left``.
    boundaries
        States of the pass over the reference window, on the same strand.
    left, right
        Edges of each region in the window: boundaries that were kept. All regions touch the window's first base or
        none does, and so for its last.
    strand
        As in `sweep.stream`.
    echo
        Differences of outgoing states, which are added to what the next block takes in at the same edge.
    workspace
        Scratch buffers to use again.

    Returns
    -------
    hidden : Tensor
        (b, r, w) final-norm hidden states.
    ends : Ends
        States that leave the regions.
    """
    at_start, at_end = {p == 0 for p in left}, {p == boundaries.length for p in right}
    if len(at_start) != 1 or len(at_end) != 1:
        raise ValueError("regions at an end of the window go by themselves")
    if strand == REVERSE:
        ids = torch.from_numpy(COMPLEMENT).to(ids.device)[ids.long()]
    ws = workspace or Workspace(enabled=False)
    x = model.embed(ids)
    ends = Ends([], [])
    shape, e, dtype = (x.shape[0], x.shape[1]), model.scan_width(), model.compute_dtype
    for layer, block in enumerate(model.stack):
        u = block.prepare(x, ws, scratch_prepared(ws, shape, e, dtype, x.device))
        outputs = []
        for way, edges, first, out in ((0, left, at_start, ends.right), (1, right, at_end, ends.left)):
            state = boundaries.states(layer, way, edges)
            if echo is not None and layer and not first == {True}:
                # What came out of the block before to the right comes back from the right, and so to the left.
                back = (echo.right if way else echo.left)[layer - 1]
                state = DirectionState(state.h + back.h, state.halo + back.halo)
            y, end = block.scan(
                u, state, weights=way ^ strand, reverse=bool(way), reset=first == {True}, ws=ws,
                out=ws.get(f"region y{way}", (*shape, e), dtype, x.device),
            )  # fmt: skip
            outputs.append(y)
            # Not a view of all states of the region.
            out.append(DirectionState(end.h.clone(), end.halo.clone()))
        x = block.combine(x, u, outputs[0], outputs[1], ws)
    return model.finish(x), ends


def differences(edited: Ends, reference: Ends) -> Ends:
    """Subtract what leaves a reference region from what leaves the edited one, block by block."""
    def minus(a: list[DirectionState], b: list[DirectionState]) -> list[DirectionState]:
        return [DirectionState(p.h - q.h, p.halo - q.halo) for p, q in zip(a, b, strict=True)]

    return Ends(minus(edited.right, reference.right), minus(edited.left, reference.left))


def reference_pass(
    model: RecurrentModel, ids: Tensor, at: Sequence[int], *, chunk: int, strand: int, **options: object
) -> Boundaries:
    """Run a reference window (1, t) whole and keep the states at boundaries `at`; `options` are `sweep.stream`'s."""
    kept = Boundaries(model, ids.shape[1], at)
    for _ in stream(model, ids, chunk=chunk, strand=strand, recorder=kept, **options):  # type: ignore[arg-type]
        pass
    return kept
