"""What every numba kernel here needs: one thread pool with torch, a safe cache, bfloat16 and a fast exp.

* Torch and numba each bring an OpenMP pool; two pools on the same cores fight (an idle OpenMP thread spins
  before it sleeps). Torch's own runtime is therefore made the one that numba's OpenMP layer binds to.
* Results do not depend on how a kernel came to be compiled: the compiler may neither reassociate sums nor
  choose where to fuse a multiplication with an addition (it chose otherwise for code from the cache than for
  code just compiled). Where fusing is wanted, kernels call `intrinsics.fma`.
* bfloat16 is carried as uint16 and computed as float32.

Import this module before any kernel is defined.
"""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lrgenome.caches import cache_folder


def _loaded_openmp() -> str | None:
    """Path of the OpenMP runtime that torch has loaded, where the platform lets one see it."""
    try:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            paths = {line.split(None, 5)[5].strip() for line in maps if "/" in line and "libgomp" in line}
    except OSError:
        return None
    bundled = sorted(p for p in paths if "torch" in p)
    return bundled[0] if bundled else None


def _share_openmp() -> None:
    """Give torch's OpenMP symbols global scope, so that numba's layer resolves to the same runtime."""
    path = _loaded_openmp()
    if path is not None and "NUMBA_THREADING_LAYER" not in os.environ:
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        os.environ["NUMBA_THREADING_LAYER_PRIORITY"] = "omp tbb workqueue"


def _choose_cache_dir() -> bool:
    """Keep compiled kernels beside the package, or under TMPDIR when the install is read-only; never in HOME.

    Returns whether there is any place to keep them.
    """
    if "NUMBA_CACHE_DIR" in os.environ:
        return True
    here = Path(__file__).resolve().parent
    probe = here / "__pycache__"
    if os.access(probe if probe.is_dir() else here, os.W_OK):
        return True
    folder = cache_folder("numba")
    if folder is None:
        return False
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    return True


_share_openmp()
_cached = _choose_cache_dir()

import llvmlite.binding as llvm  # noqa: E402
import numba  # noqa: E402

# Somebody may have imported numba before, when it read its environment.
_config: Any = numba.config
_config.CACHE_DIR = os.environ.get("NUMBA_CACHE_DIR", "")
if "NUMBA_THREADING_LAYER_PRIORITY" in os.environ:
    _config.THREADING_LAYER_PRIORITY = os.environ["NUMBA_THREADING_LAYER_PRIORITY"].split()

# The kernels touch up to a dozen arrays in one loop. numba cannot promise that they do not overlap, and by default
# LLVM gives up vectorising when more than 8 run-time comparisons are needed to find out.
llvm.set_option("lrgenome", "-runtime-memory-check-threshold=256")
llvm.set_option("lrgenome", "-memory-check-merge-threshold=256")

FUSES = bool(llvm.get_host_cpu_features().get("fma", True))
"""Whether this CPU multiplies and adds in one rounding (some x86 of before 2013 do not)."""


_kernels: list[Any] = []


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a parallel kernel lazily, cached where that can be, with the division and overflow semantics of C."""
    made = numba.njit(function, parallel=True, cache=_cached, error_model="numpy", boundscheck=False)
    _kernels.append(made)
    return made


def compiled() -> tuple[int, str]:
    """Return how many kernels this process compiled, rather than found in the cache, and a folder they went to."""
    stats = [made.stats for made in _kernels]
    misses = [(sum(of.cache_misses.values()), of.cache_path) for of in stats]
    return sum(count for count, _ in misses), next((path for count, path in misses if count), "")


def set_threads(threads: int) -> None:
    """Let torch and numba use `threads` threads each, from the one pool."""
    numba.set_num_threads(max(1, min(threads, _config.NUMBA_NUM_THREADS)))
    # Last: numba gives the shared pool all its threads when it starts it, which is in its first call.
    torch.set_num_threads(threads)


def storage(tensor: torch.Tensor) -> Any:
    """View a contiguous CPU tensor as the numpy array that a kernel takes (bfloat16 as uint16)."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    return tensor.numpy()
