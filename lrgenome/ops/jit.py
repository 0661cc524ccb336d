"""What every numba kernel here needs: one thread pool with torch, a safe cache, bfloat16 and a fast exp.

* Torch and numba each bring an OpenMP pool; two pools on the same cores fight (an idle OpenMP thread spins
  before it sleeps). Torch's own runtime is therefore made the one that numba's OpenMP layer binds to.
* numba vectorises ``exp`` only with Intel's SVML, so `exp` and `expm1` are polynomials of our own (within
  2 units in the last place in float32), which LLVM vectorises for whatever the CPU has.
* bfloat16 is carried as uint16 and computed as float32.

Import this module before any kernel is defined.
"""

import ctypes
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


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


def _is_private(folder: Path) -> bool:
    """Make `folder` where it is not there; tell whether nobody else can write to it: numba runs what it finds."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return False
    mine = not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)
    return stat.S_ISDIR(status.st_mode) and mine


def _choose_cache_dir() -> None:
    """Keep compiled kernels beside the package, or under TMPDIR when the install is read-only; never in HOME."""
    if "NUMBA_CACHE_DIR" in os.environ:
        return
    here = Path(__file__).resolve().parent
    probe = here / "__pycache__"
    if os.access(probe if probe.is_dir() else here, os.W_OK):
        return
    cache = Path(tempfile.gettempdir()) / f"lrgenome-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
    if not _is_private(cache):
        cache = Path(tempfile.mkdtemp(prefix="lrgenome-numba-"))
    os.environ["NUMBA_CACHE_DIR"] = str(cache / "numba")


_share_openmp()
_choose_cache_dir()

import llvmlite.binding as llvm  # noqa: E402
import numba  # noqa: E402
import numpy as np  # noqa: E402
from numba import types  # noqa: E402
from numba.extending import intrinsic, overload, register_jitable  # noqa: E402

# Somebody may have imported numba before, when it read its environment.
_config: Any = numba.config
_config.CACHE_DIR = os.environ.get("NUMBA_CACHE_DIR", "")
if "NUMBA_THREADING_LAYER_PRIORITY" in os.environ:
    _config.THREADING_LAYER_PRIORITY = os.environ["NUMBA_THREADING_LAYER_PRIORITY"].split()

# The kernels touch up to a dozen arrays in one loop. numba cannot promise that they do not overlap, and by default
# LLVM gives up vectorising when more than 8 run-time comparisons are needed to find out.
llvm.set_option("lrgenome", "-runtime-memory-check-threshold=256")
llvm.set_option("lrgenome", "-memory-check-merge-threshold=256")

FLAGS = {"contract", "nsz"}
"""Fused multiply-add, but no reassociation: the range reduction of `exp` depends on the order of additions."""


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a parallel kernel lazily, cached, with the division and overflow semantics of C."""
    return numba.njit(function, parallel=True, cache=True, fastmath=FLAGS, error_model="numpy", boundscheck=False)


def set_threads(threads: int) -> None:
    """Let torch and numba use `threads` threads each, from the one pool."""
    numba.set_num_threads(max(1, min(threads, _config.NUMBA_NUM_THREADS)))
    # Last: numba gives the shared pool all its threads when it starts it, which is in its first call.
    torch.set_num_threads(threads)


def _bits_of_f32_code(typingctx: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.int32))

    return types.int32(types.float32), codegen


def _f32_of_bits_code(typingctx: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.int32), codegen


_bits_of_f32: Any = intrinsic(_bits_of_f32_code)
_f32_of_bits: Any = intrinsic(_f32_of_bits_code)


def to_f32(value: Any) -> Any:
    """Read a stored number (float32, or bfloat16 as uint16) as float32; inside kernels only."""
    raise NotImplementedError("only inside a compiled kernel")


@overload(to_f32, inline="never")
def _to_f32(value: Any) -> Any:
    # numba wants the implementation's annotations to equal the stub's.
    def float32(value: Any) -> Any:
        return np.float32(value)

    def bfloat16(value: Any) -> Any:
        return _f32_of_bits(np.int32(np.int32(value) << np.int32(16)))

    return float32 if isinstance(value, types.Float) else bfloat16


def from_f32(value: Any, like: Any) -> Any:
    """Round a float32 to the storage type of the array `like` (to nearest even); inside kernels only."""
    raise NotImplementedError("only inside a compiled kernel")


@overload(from_f32, inline="never")
def _from_f32(value: Any, like: Any) -> Any:
    def float32(value: Any, like: Any) -> Any:
        return value

    def bfloat16(value: Any, like: Any) -> Any:
        bits = np.uint32(_bits_of_f32(np.float32(value)))
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        # A NaN must stay one: rounding its mantissa up could carry into the sign.
        keep = value == value
        return np.uint16(rounded >> np.uint32(16)) if keep else np.uint16(0x7FC0)

    return float32 if isinstance(like.dtype, types.Float) else bfloat16


@register_jitable
def _exp_parts(x: Any) -> Any:
    """Return (p, s) with exp(x) = s * (1 + p), s a power of two, p = expm1 of the reduced argument."""
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    shifted = x * np.float32(1.4426950408889634) + np.float32(12582912.0)
    n = shifted - np.float32(12582912.0)
    r = x - n * np.float32(0.693359375)
    r = r + n * np.float32(2.12194440e-4)
    q = np.float32(1.9875691500e-4)
    q = q * r + np.float32(1.3981999507e-3)
    q = q * r + np.float32(8.3334519073e-3)
    q = q * r + np.float32(4.1665795894e-2)
    q = q * r + np.float32(1.6666665459e-1)
    q = q * r + np.float32(5.0000001201e-1)
    p = q * (r * r) + r
    s = _f32_of_bits((_bits_of_f32(shifted) - np.int32(0x4B400000) + np.int32(127)) << np.int32(23))
    return p, s


@register_jitable
def exp(x: Any) -> Any:
    """exp(x) in float32, clamped to the range of normal numbers."""
    p, s = _exp_parts(x)
    return s + s * p


@register_jitable
def expm1(x: Any) -> Any:
    """exp(x) - 1 in float32 without cancellation near zero."""
    p, s = _exp_parts(x)
    return s * p + (s - np.float32(1.0))


@register_jitable
def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)) in float32."""
    return np.float32(1.0) / (np.float32(1.0) + exp(-x))


@register_jitable
def u(index: Any) -> Any:
    """Make an index unsigned: numba then leaves out the test for negative ones, which keeps loops from vectorising."""
    return np.uint64(index)


_GELU_1 = np.float32(1.5957691216057308)
_GELU_3 = np.float32(1.5957691216057308 * 0.044715)


@register_jitable
def gelu(x: Any) -> Any:
    """GELU, tanh form: x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 x^3)), as RecurrentGemma uses it."""
    return x * sigmoid(x * (_GELU_1 + _GELU_3 * x * x))


@register_jitable
def gelu_and_slope(x: Any) -> Any:
    """Return (gelu(x), d gelu / dx)."""
    square = x * x
    s = sigmoid(x * (_GELU_1 + _GELU_3 * square))
    slope = s + x * s * (np.float32(1.0) - s) * (_GELU_1 + np.float32(3.0) * _GELU_3 * square)
    return x * s, slope


def storage(tensor: torch.Tensor) -> Any:
    """View a contiguous CPU tensor as the numpy array that a kernel takes (bfloat16 as uint16)."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    return tensor.numpy()
