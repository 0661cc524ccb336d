"""Positions at a time, by the size of the CPU's last cache.

A chunk is a matter of speed only. What one step of a block reads and writes should stay in the last cache until
the next step has read it, and larger products run faster; so a chunk is the largest power of two whose widest step
fits. It follows from the machine and the model alone and is never timed, since timings on a busy machine would make
equal settings give unequal last digits.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

from lrgenome.models.base import RecurrentModel

GPU_CHUNK = 100_000
_SMALLEST, _LARGEST = 256, 16_384
_UNKNOWN_CACHE = 16 << 20
_SYSTEM = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def read_cache_bytes(folder: Path = _SYSTEM) -> int:
    """Return the bytes of the largest cache that holds data, as Linux tells; 16 MiB where nothing does."""
    sizes = [0]
    for index in folder.glob("index*"):
        try:
            kind, size = ((index / name).read_text().strip() for name in ("type", "size"))
            if kind in ("Data", "Unified"):
                sizes.append(int(size.rstrip("KMG")) * _UNITS.get(size[-1:], 1))
        except (OSError, ValueError):
            continue
    return max(sizes) or _UNKNOWN_CACHE


@functools.cache
def cache_bytes() -> int:
    """Return what `read_cache_bytes` read the first time."""
    return read_cache_bytes()


def default_chunk(model: RecurrentModel, device_type: str) -> int:
    """Return the positions at a time for a model with its dtypes chosen, on "cpu" or another kind of device."""
    if device_type != "cpu":
        return GPU_CHUNK
    fits = cache_bytes() / (model.widest_step() * model.compute_dtype.itemsize)
    return min(_LARGEST, max(_SMALLEST, 2 ** math.floor(math.log2(max(1.0, fits)))))
