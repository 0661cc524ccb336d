"""Time and peak memory of a piece of work."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Meter:
    """Measures a block: seconds, and peak bytes on host and device; a context manager.

    The host's peak is of the block alone where the kernel can be asked to forget earlier ones (Linux), else unknown.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds = 0.0
        self.host: int | None = None
        """Peak resident bytes of this process."""
        self.gpu: int | None = None
        """Peak bytes of tensors on the GPU, where there is one."""

    def __enter__(self) -> Meter:
        # Else memory that earlier work gave back stays the process's.
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
        self._forgot = False
        with contextlib.suppress(OSError):
            _CLEAR.write_text("5", encoding="ascii")
            self._forgot = True
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self.gpu = torch.cuda.max_memory_allocated(self._device)
        self.seconds = time.monotonic() - self._began
        if self._forgot:
            with contextlib.suppress(OSError, ValueError, StopIteration):
                line = next(s for s in _STATUS.read_text(encoding="ascii").splitlines() if s.startswith("VmHWM:"))
                self.host = int(line.split()[1]) * 1024
