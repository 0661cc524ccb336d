"""States that a pass over a window leaves at chosen boundaries, in memory or in an unlinked file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence

import torch
from torch import Tensor

from lrgenome.errors import OutputError, UsageError
from lrgenome.models.base import DirectionState, RecurrentModel, Saved


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
    folder
        Keep them in a file there, which has no name and goes with the object; default in memory.
    """

    def __init__(
        self, model: RecurrentModel, length: int, at: Sequence[int], folder: str | os.PathLike[str] | None = None
    ) -> None:
        self.length, self.at = length, list(at)
        if any(p >= q for p, q in zip(self.at, self.at[1:], strict=False)) or not all(0 <= p <= length for p in at):
            raise UsageError(f"boundaries: expected rising numbers from 0 to {length}")
        self._index = {p: i for i, p in enumerate(self.at)}
        device = next(iter(model.parameters())).device
        self._like = [tuple(block.initial_state(model.strands, device)) for block in model.stack]
        self._edges = torch.tensor(self.at, dtype=torch.int64)
        self._file = None if folder is None else _StateFile(folder, self._like, len(self.at))
        self._kept: list[list[tuple[Tensor, ...]]] = [] if self._file else [
            [tuple(part.new_zeros(part.shape[0], len(self.at), *part.shape[1:]) for part in like) for _ in range(2)]
            for like in self._like
        ]  # fmt: skip

    def wanted(self, layer: int, reverse: bool, start: int, end: int) -> Saved | None:
        """Return where the boundaries in [start, end) go, the window's end included; see `sweep.Recorder`."""
        low, high = (int(v) for v in torch.searchsorted(self._edges, torch.tensor([start, end])))
        if end == self.length:
            high = len(self.at)
        if low == high:
            return None
        if self._file:
            h, halo = self._file.room(layer, int(reverse), low, high)
        else:
            h, halo = (part[:, low:high] for part in self._kept[layer][int(reverse)])
        return Saved(self._edges[low:high] - start, h, halo)

    def states(self, layer: int, way: int, at: Sequence[int]) -> DirectionState:
        """Return the states of block `layer` (0-based) that a direction has at boundaries `at`, one a row.

        A model that runs both strands side by side has rows of the first strand first.
        """
        rows = [self._index[p] for p in at]
        if self._file:
            return DirectionState(*self._file.read(layer, way, rows))
        return DirectionState(*(part[:, rows].flatten(0, 1) for part in self._kept[layer][way]))

    @property
    def nbytes(self) -> int:
        """Bytes held, in memory or in the file."""
        return len(self.at) * sum(2 * part.numel() * part.element_size() for like in self._like for part in like)

    def close(self) -> None:
        """Free them."""
        self._kept = []
        if self._file:
            self._file.close()


class _StateFile:
    """States in an unlinked file, of each block, direction and part one after the other.

    Not a memory map, whose touched pages count as resident memory.
    """

    def __init__(self, folder: str | os.PathLike[str], like: list[tuple[Tensor, ...]], count: int) -> None:
        self._like, self._folder = like, folder
        self._offsets: dict[tuple[int, int, int], int] = {}
        size = 0
        for layer, parts in enumerate(like):
            for way in range(2):
                for i, part in enumerate(parts):
                    self._offsets[layer, way, i] = size
                    size += count * part.numel() * part.element_size()
        self._pending: tuple[int, int, int, list[Tensor]] | None = None
        try:
            self._handle = tempfile.TemporaryFile(dir=folder, buffering=0)
        except OSError as error:
            raise OutputError(f"{folder}: states could not be kept there: {error}") from error

    def room(self, layer: int, way: int, low: int, high: int) -> list[Tensor]:
        """Return memory for the states of boundaries low .. high, which is written out when more is asked for."""
        self._flush()
        parts = [part.new_zeros(part.shape[0], high - low, *part.shape[1:]) for part in self._like[layer]]
        self._pending = layer, way, low, parts
        return parts

    def _flush(self) -> None:
        if self._pending is None:
            return
        layer, way, low, parts = self._pending
        self._pending = None
        for i, part in enumerate(parts):
            rows = part.transpose(0, 1).contiguous().cpu().view(torch.uint8).numpy()
            view, offset = memoryview(rows.tobytes()), self._offsets[layer, way, i] + low * rows[:1].nbytes
            try:
                while view:
                    written = os.pwrite(self._handle.fileno(), view, offset)
                    view, offset = view[written:], offset + written
            except OSError as error:
                raise OutputError(f"{self._folder}: states could not be kept there: {error}") from error

    def read(self, layer: int, way: int, rows: list[int]) -> list[Tensor]:
        self._flush()
        found = []
        for i, like in enumerate(self._like[layer]):
            size = like.numel() * like.element_size()
            raw = bytearray(size * len(rows))
            view = memoryview(raw)
            for n, row in enumerate(rows):
                got = os.preadv(
                    self._handle.fileno(), [view[n * size : (n + 1) * size]], self._offsets[layer, way, i] + row * size
                )
                if got != size:
                    raise OutputError(f"{self._folder}: the file of states is short: got {got} bytes, expected {size}")
            # In the file, boundaries are outermost.
            kept = torch.frombuffer(raw, dtype=like.dtype).view(len(rows), *like.shape)
            found.append(kept.transpose(0, 1).flatten(0, 1).to(like.device))
        return found

    def close(self) -> None:
        self._handle.close()


def boundary_bytes(model: RecurrentModel) -> int:
    """Return the bytes that one boundary of one pass takes."""
    total = 0
    for block in model.stack:
        zero = block.initial_state(model.strands, torch.device("meta"))
        total += 2 * sum(part.numel() * part.element_size() for part in zero)
    return total
