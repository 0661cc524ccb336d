"""Alternating sweeps: exact bidirectional streaming in bounded memory.

Block l + 1 needs both directions of block l, so one chunk cannot go through all blocks before the next. With
blocks 1..L and sweeps 0..L, sweep k runs over the chunks in direction (L - k) mod 2, so the last one runs left to
right. At a chunk, sweep k runs the second scan of block k in this direction, combines it with the first scan that
the sweep before stored, and so has the input of block k + 1; it prepares block k + 1, runs its first scan in the
same direction, and stores it. Each operation is done once; working memory is one chunk plus the store.

The reverse strand runs in genomic order on complemented bases with the two directions' weights exchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lrgenome.dna import COMPLEMENT
from lrgenome.engine.store import GraphStore, MemoryStore, Store
from lrgenome.errors import UsageError
from lrgenome.glossary import FORWARD, REVERSE
from lrgenome.models.base import Block, DirectionState, Prepared, RecurrentModel, Saved
from lrgenome.ops.workspace import Workspace

TRANSFERS = ("exact", "forward", "none")
"""Which states cross chunk edges: both directions', only left to right, neither (the paper's figure is the second)."""


EdgeStates = Sequence[tuple[DirectionState, DirectionState]]
"""Of each block: what the direction to the right has at a window's left edge, and the other at its right edge."""

Ends = dict[tuple[int, bool], DirectionState]
"""By block (0-based) and direction (true: to the left), the state that has passed the whole window."""


class Chunk(NamedTuple):
    """A stretch of the output."""

    start: int
    """First position, 0-based in the window."""
    end: int
    """One past the last position."""
    hidden: Tensor
    """(b, end - start, d) final-norm hidden states (raw ones of an inner layer), 2d wide where the model runs both
    strands side by side; overwritten by the next chunk."""


def chunk_edges(length: int, chunk: int) -> list[tuple[int, int]]:
    """Cut `length` positions into chunks; the last may be short."""
    return [(start, min(length, start + chunk)) for start in range(0, length, chunk)]


class Recorder(Protocol):
    """Keeps states at boundaries inside a window."""

    def wanted(self, layer: int, reverse: bool, start: int, end: int) -> Saved | None:
        """Return where the states of a block (0-based) at boundaries in [start, end] go, or None if there are none."""


class _Lane:
    """State of one direction of one block as a sweep passes over the chunks."""

    def __init__(
        self, block: Block, batch: int, device: torch.device, *, carries: bool, start: DirectionState | None
    ) -> None:
        self._make = lambda: block.initial_state(batch, device)
        self._carries = carries
        self.knows = start is not None
        self.state: DirectionState = self._make() if start is None else start

    def enter(self, *, first: bool) -> DirectionState:
        """Return the state that enters a chunk."""
        return self.state if self._carries or first else self._make()


def scratch_prepared(
    ws: Workspace, shape: tuple[int, int], e: int, dtype: torch.dtype, device: torch.device
) -> Prepared | None:
    """Return memory for what is prepared and not kept, since products that allocate their result round otherwise."""
    branch, gate = (ws.get(name, (*shape, e), dtype, device) for name in ("branch", "gate"))
    return None if branch is None or gate is None else Prepared(branch, gate)


def stream(
    model: RecurrentModel,
    ids: Tensor,
    *,
    chunk: int,
    transfer: str = "exact",
    strand: int = FORWARD,
    layers: int | None = None,
    store: Store | None = None,
    keep_prepared: bool = True,
    workspace: Workspace | None = None,
    recorder: Recorder | None = None,
    start: EdgeStates | None = None,
    ends: Ends | None = None,
) -> Iterator[Chunk]:
    """Run the model over whole windows and yield its output chunk by chunk, left to right.

    Parameters
    ----------
    model
        A recurrent model.
    ids
        (b, t) token ids of b windows, forward strand, on the model's device.
    chunk
        Positions at a time: a matter of speed only, unless `transfer` is not "exact".
    transfer
        One of `TRANSFERS`.
    strand
        FORWARD, or REVERSE to run the reverse complement in genomic order.
    layers
        Stop after this many blocks and yield their raw output; default all, with the final norm.
    store
        Where to keep what lies between sweeps; default RAM, or the autograd graph where gradients are enabled.
    keep_prepared
        Keep ``prepare``'s result between sweeps, rather than computing it twice.
    workspace
        Scratch buffers to use again.
    recorder
        Receives states at the boundaries that it names; for inference.
    start
        States that the window begins with, in the forward strand's sense; default those before anything was seen.
    ends
        Receives the states that have passed the whole window, once all chunks were taken.

    Yields
    ------
    Chunk
        Chunks in genomic order, of both strands.

    Raises
    ------
    UsageError
        For settings out of range.
    """
    if transfer not in TRANSFERS:
        raise UsageError(f"--transfer: got {transfer!r}, expected one of {', '.join(TRANSFERS)}")
    if chunk < 1:
        raise UsageError(f"--chunk: got {chunk}, expected at least 1")
    stack = model.stack
    count = len(stack) if layers is None else layers
    if not 1 <= count <= len(stack):
        raise UsageError(f"--layer: got {layers}, expected 1 to {len(stack)}")
    with_graph = torch.is_grad_enabled()
    store = store or (GraphStore() if with_graph else MemoryStore())
    workspace = workspace or Workspace()
    ws = workspace if workspace.enabled and not with_graph else Workspace(enabled=False)
    batch, length = ids.shape[0] * model.strands, ids.shape[1]
    if length == 0:
        return
    if strand == REVERSE:
        ids = torch.from_numpy(COMPLEMENT).to(ids.device)[ids.long()]
    edges = chunk_edges(length, chunk)
    e, dtype, device = model.scan_width(), model.compute_dtype, ids.device
    d = model.config.width

    def wanted(layer: int, reverse: bool, start: int, end: int) -> Saved | None:
        return None if recorder is None else recorder.wanted(layer, reverse, start, end)

    def begun(layer: int, reverse: bool) -> DirectionState | None:
        return None if start is None else start[layer][int(reverse)]

    for sweep in range(count + 1):
        reverse = (count - sweep) % 2 == 1
        weights = int(reverse) ^ strand
        carries = transfer == "exact" or (transfer == "forward" and not reverse)
        old = stack[sweep - 1] if sweep > 0 else None
        new = stack[sweep] if sweep < count else None
        old_lane, new_lane = (
            None if block is None else _Lane(block, batch, device, carries=carries, start=begun(layer, reverse))
            for layer, block in ((sweep - 1, old), (sweep, new))
        )
        order = range(len(edges))
        for position, c in enumerate(reversed(order) if reverse else order):
            low, end = edges[c]
            shape, first = (batch, end - low), position == 0
            if old is None or old_lane is None:
                x = model.embed(ids[:, low:end])
            else:
                x = store.get("x", c)
                if keep_prepared:
                    u = Prepared(store.get("branch", c), store.get("gate", c))
                else:
                    u = old.prepare(x, ws, scratch_prepared(ws, shape, e, dtype, device))
                y2, old_lane.state = old.scan(
                    u, old_lane.enter(first=first), weights=weights, reverse=reverse,
                    reset=first and not old_lane.knows, ws=ws,
                    out=ws.get("y2", (*shape, e), dtype, device), saved=wanted(sweep - 1, reverse, low, end),
                )  # fmt: skip
                x = old.combine(x, u, store.get("y", c), y2, ws)
            if new is None or new_lane is None:
                yield Chunk(low, end, model.finish(x, norm=count == len(stack)))
                continue
            if sweep == 0:
                kept = store.buffer("x", c, (*shape, d), model.residual_dtype, device)
                x = x if kept is None else kept.copy_(x)
            store.put("x", c, x)
            out = None if keep_prepared else scratch_prepared(ws, shape, e, dtype, device)
            if keep_prepared:
                branch = store.buffer("branch", c, (*shape, e), dtype, device)
                gate = store.buffer("gate", c, (*shape, e), dtype, device)
                out = None if branch is None or gate is None else Prepared(branch, gate)
            u = new.prepare(x, ws, out)
            y, new_lane.state = new.scan(
                u, new_lane.enter(first=first), weights=weights, reverse=reverse,
                reset=first and not new_lane.knows, ws=ws,
                out=store.buffer("y", c, (*shape, e), dtype, device), saved=wanted(sweep, reverse, low, end),
            )  # fmt: skip
            if keep_prepared:
                store.put("branch", c, u.branch)
                store.put("gate", c, u.gate)
            store.put("y", c, y)
        if ends is not None:
            for layer, lane in ((sweep - 1, old_lane), (sweep, new_lane)):
                if lane is not None:
                    ends[layer, reverse] = lane.state


def hidden_states(
    model: RecurrentModel,
    ids: Tensor,
    *,
    chunk: int | None = None,
    transfer: str = "exact",
    strand: int = FORWARD,
    recompute: bool = False,
    start: EdgeStates | None = None,
    ends: Ends | None = None,
) -> Tensor:
    """Run windows of token ids (b, t) and return all final hidden states (b, t, d), differentiably.

    With `recompute`, the graph keeps only the inputs of blocks, and runs each block again in the backward pass: the
    same bits for a fraction of the memory and a third more time. It needs windows that are run whole. `start` and
    `ends` are those of `stream`.
    """
    size = ids.shape[1] if chunk is None else chunk
    if recompute and torch.is_grad_enabled():
        if size < ids.shape[1]:
            raise UsageError(f"--recompute: got --chunk {size}, expected 0: blocks are run again on whole windows")
        return _recomputed(model, ids, strand, start, ends)
    parts = [
        part.hidden if torch.is_grad_enabled() else part.hidden.clone()
        for part in stream(model, ids, chunk=size, transfer=transfer, strand=strand, start=start, ends=ends)
    ]
    return torch.cat(parts, 1) if len(parts) != 1 else parts[0]


def _recomputed(
    model: RecurrentModel, ids: Tensor, strand: int, start: EdgeStates | None, ends: Ends | None
) -> Tensor:
    """Do what `stream` does to one chunk, a block at a time and forgetting what is inside the block."""
    if strand == REVERSE:
        ids = torch.from_numpy(COMPLEMENT).to(ids.device)[ids.long()]
    count, ws = len(model.stack), Workspace(enabled=False)

    def run(block: Block, number: int, x: Tensor) -> Tensor:
        u = block.prepare(x, ws)
        zero = block.initial_state(x.shape[0], x.device)
        begun = (zero, zero) if start is None else start[number]
        # In the order of the sweeps, so that sums are the same to the last bit.
        reverse = (count - number) % 2 == 1
        (y1, end1), (y2, end2) = (
            block.scan(u, begun[int(back)], weights=int(back) ^ strand, reverse=back, reset=start is None, ws=ws)
            for back in (reverse, not reverse)
        )
        if ends is not None:
            # Of the backward pass too, which must not hold on to its graph.
            ends[number, reverse], ends[number, not reverse] = (
                DirectionState(*(part.detach() for part in end)) for end in (end1, end2)
            )
        return block.combine(x, u, y1, y2, ws)

    x = model.embed(ids)
    for number, block in enumerate(model.stack):
        x = checkpoint(
            partial(run, block, number), x, use_reentrant=False, preserve_rng_state=False, determinism_check="none"
        )
    return model.finish(x)
