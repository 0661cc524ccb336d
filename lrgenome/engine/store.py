"""What is kept between two sweeps: in RAM, or in unlinked files read and written with pread and pwrite.

Not a memory map: pages of a map that were touched count as resident memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from lrgenome.errors import OutputError
from lrgenome.ops.workspace import Workspace

Shape = tuple[int, ...]


class Store(Protocol):
    """Tensors by name and chunk number."""

    def buffer(self, name: str, chunk: int, shape: Shape, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """Return memory to compute the tensor in before `put`, or None to let the ops allocate."""

    def put(self, name: str, chunk: int, tensor: Tensor) -> None:
        """Keep a tensor."""

    def get(self, name: str, chunk: int) -> Tensor:
        """Return a kept tensor; it may be overwritten until the next `get` of that name."""

    def close(self) -> None:
        """Free everything."""


class GraphStore:
    """Keeps the tensors themselves, with their autograd graph."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int], Tensor] = {}

    def buffer(self, name: str, chunk: int, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        """Return None: autograd needs fresh tensors."""
        return None

    def put(self, name: str, chunk: int, tensor: Tensor) -> None:
        """Keep a reference."""
        self._kept[name, chunk] = tensor

    def get(self, name: str, chunk: int) -> Tensor:
        """Return and forget it: each tensor is read once."""
        return self._kept.pop((name, chunk))

    def close(self) -> None:
        """Forget everything."""
        self._kept.clear()


class MemoryStore:
    """One buffer a name and chunk, computed in and read in place, used again by every sweep and window."""

    def __init__(self) -> None:
        self._memory: dict[tuple[str, int], Tensor] = {}
        self._kept: dict[tuple[str, int], Tensor] = {}

    def buffer(self, name: str, chunk: int, shape: Shape, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return the tensor's own memory; sweeps alternate direction, so the old content has been read by then."""
        key, size = (name, chunk), prod(shape)
        memory = self._memory.get(key)
        if memory is None or memory.dtype != dtype or memory.device != device or memory.numel() < size:
            memory = self._memory[key] = torch.empty(size, dtype=dtype, device=device)
        return memory[:size].view(shape)

    def put(self, name: str, chunk: int, tensor: Tensor) -> None:
        """Keep a reference; nothing is copied when the tensor was computed in its `buffer`."""
        self._kept[name, chunk] = tensor

    def get(self, name: str, chunk: int) -> Tensor:
        """Return the tensor itself."""
        return self._kept[name, chunk]

    def close(self) -> None:
        """Free everything."""
        self._kept.clear()
        self._memory.clear()


class FileStore:
    """One unlinked file a name under `folder`; one chunk of each name in memory."""

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = os.fspath(folder) if folder is not None else tempfile.gettempdir()
        self._files: dict[str, int] = {}
        self._ends: dict[str, int] = {}
        self._rooms: dict[tuple[str, int], tuple[int, int]] = {}
        self._kept: dict[tuple[str, int], tuple[Shape, torch.dtype, torch.device]] = {}
        self._scratch = Workspace()

    def buffer(self, name: str, chunk: int, shape: Shape, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return scratch memory that is shared by all chunks of the name."""
        buffer = self._scratch.get("write " + name, shape, dtype, device)
        assert buffer is not None
        return buffer

    def put(self, name: str, chunk: int, tensor: Tensor) -> None:
        """Write the tensor; `OutputError` when the disk is full."""
        host = tensor.detach().to("cpu").contiguous()
        nbytes = host.numel() * host.element_size()
        offset, room = self._rooms.get((name, chunk), (0, 0))
        if room < nbytes:
            offset = self._ends.get(name, 0)
            self._ends[name] = offset + nbytes
            self._rooms[name, chunk] = (offset, nbytes)
        self._kept[name, chunk] = (tuple(host.shape), host.dtype, tensor.device)
        self._transfer(os.pwritev, name, host, offset)

    def get(self, name: str, chunk: int) -> Tensor:
        """Read the tensor into scratch memory of the name."""
        shape, dtype, device = self._kept[name, chunk]
        host = self._scratch.get("read " + name, shape, dtype, torch.device("cpu"))
        assert host is not None
        self._transfer(os.preadv, name, host, self._rooms.get((name, chunk), (0, 0))[0])
        return host.to(device)

    def _transfer(self, call: Callable[..., int], name: str, host: Tensor, offset: int) -> None:
        if host.numel() == 0:
            return
        view = host.reshape(-1).view(torch.uint8).numpy().data
        done = 0
        try:
            if name not in self._files:
                fd, path = tempfile.mkstemp(prefix="lrgenome-store-", dir=self.folder)
                os.unlink(path)
                self._files[name] = fd
            while done < len(view):
                moved = call(self._files[name], [view[done:]], offset + done)
                if moved == 0:
                    raise OSError("the file ended early")
                done += moved
        except OSError as error:
            raise OutputError(
                f"temporary store in {self.folder}: {error.strerror or error} after {done} of {len(view)} bytes of "
                f"{name}; give --tmpdir a folder with more space"
            ) from error

    def close(self) -> None:
        """Close the files, which frees their space."""
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()
        self._rooms.clear()
        self._kept.clear()
        self._ends.clear()
        self._scratch = Workspace()
