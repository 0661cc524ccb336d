"""Runs windows through the sweeps, with stores and buffers that are used again from window to window."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lrgenome.engine.chunking import default_chunk
from lrgenome.engine.memory import SPARE, Plan, plan
from lrgenome.engine.store import FileStore, MemoryStore, Store
from lrgenome.engine.sweep import TRANSFERS, Chunk, Recorder, stream
from lrgenome.errors import UsageError
from lrgenome.glossary import FORWARD
from lrgenome.models.base import RecurrentModel
from lrgenome.ops.workspace import Workspace

log = logging.getLogger(__name__)

_INDEX_LIMIT = 2**31 - 1


class Runner:
    """A model ready for inference.

    Parameters
    ----------
    model
        Frozen, on its device, with its dtypes chosen.
    device
        Where it is.
    chunk
        Positions at a time; default by model and device, see `chunking`.
    transfer
        One of `sweep.TRANSFERS`.
    store
        "auto", "ram" or "disk".
    tmpdir
        Folder of a disk store.
    free_ram, free_disk
        Functions that return the bytes that may be taken; asked once per window shape.
    """

    def __init__(
        self,
        model: RecurrentModel,
        device: torch.device,
        *,
        chunk: int | None = None,
        transfer: str = "exact",
        store: str = "auto",
        tmpdir: str | os.PathLike[str] | None = None,
        free_ram: Callable[[], int],
        free_disk: Callable[[], int],
    ) -> None:
        if transfer not in TRANSFERS:
            raise UsageError(f"--transfer: got {transfer!r}, expected one of {', '.join(TRANSFERS)}")
        self.model, self.device, self.transfer = model, device, transfer
        self.chunk = chunk or default_chunk(model, device.type)
        self._store_kind, self._tmpdir = store, tmpdir
        self._free_ram, self._free_disk = free_ram, free_disk
        self._plans: dict[tuple[int, int], Plan] = {}
        self._stores: dict[bool, Store] = {}
        self._workspace = Workspace()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the stores."""
        for store in self._stores.values():
            store.close()
        self._stores.clear()

    def plan(self, batch: int, length: int) -> Plan:
        """Return how windows of this shape will run; `MemoryLimitError` if they cannot."""
        key = (batch, length)
        if key not in self._plans:
            # What a window before it took will be used again, so only the largest shape counts.
            larger = [p for (b, t), p in self._plans.items() if b * t >= batch * length]
            if larger:
                self._plans[key] = larger[0]
            else:
                self.close()
                self._plans[key] = plan(
                    self.model, batch, length, self.chunk,
                    store=self._store_kind, free_ram=self._free_ram(), free_disk=self._free_disk(),
                )  # fmt: skip
                log.debug("windows of %d x %d bp: %s", batch, length, self._plans[key])
        return self._plans[key]

    def stream(
        self, ids: Tensor, *, strand: int = FORWARD, layers: int | None = None, recorder: Recorder | None = None
    ) -> Iterator[Chunk]:
        """Run windows of token ids (b, t) uint8 and yield chunks left to right; see `sweep.stream`."""
        how = self.plan(*ids.shape)
        store = self._stores.get(how.on_disk)
        if store is None:
            store = self._stores[how.on_disk] = FileStore(self._tmpdir) if how.on_disk else MemoryStore()
        widest = max(self.model.widest_step(), self.model.prepared_width()) * self.model.strands * ids.shape[0]
        # Public GPU kernels index with 32 bits and go wrong silently past that.
        chunk = min(self.chunk, _INDEX_LIMIT // widest) if self.device.type != "cpu" else self.chunk
        parts = stream(
            self.model, ids.to(self.device), chunk=chunk, transfer=self.transfer, strand=strand,
            layers=layers, store=store, keep_prepared=how.keep_prepared, workspace=self._workspace,
            recorder=recorder,
        )  # fmt: skip
        yield from self._without_gradients(parts)

    def room_for_states(self, length: int, share: float) -> tuple[int, int, Path]:
        """Return bytes of memory and of disk that may be taken beside a window of `length`, and the folder there.

        Of what is free in memory beside the window's own, `share`.
        """
        how, folder = self.plan(1, length), Path(self._tmpdir or tempfile.gettempdir())
        ram = 0 if self._store_kind == "disk" else int(max(0, self._free_ram() - how.ram) * share)
        disk = 0 if self._store_kind == "ram" else int(max(0, self._free_disk() - how.disk) * SPARE)
        return ram, disk, folder

    def log_probabilities(self, part: Chunk, row: int, low: int, high: int) -> npt.NDArray[np.float64]:
        """Return (high - low, v) float64 log-probabilities of the bases at positions `low` to `high` of a chunk's row.

        Over the token ids of `lrgenome.dna`, as the strand that was run reads them; offsets are from ``part.start``.
        """
        values = torch.log_softmax(self.model.logits(part.hidden[row, low:high]).double(), -1)
        return np.asarray(values.cpu().numpy(), dtype=np.float64)

    @staticmethod
    def _without_gradients(parts: Iterator[Chunk]) -> Iterator[Chunk]:
        while True:
            # Gradients are off inside the sweep only, not in the caller between two chunks.
            with torch.no_grad():
                part = next(parts, None)
            if part is None:
                return
            yield part
