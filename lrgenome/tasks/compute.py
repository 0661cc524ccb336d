"""Device, threads and precision of a run."""

from __future__ import annotations

import logging
import os
from typing import NamedTuple

import torch

from lrgenome.errors import DeviceError, UsageError
from lrgenome.io.resources import available_cpus, available_memory, used_memory
from lrgenome.ops.jit import set_threads

log = logging.getLogger(__name__)

PRECISIONS = ("auto", "float32", "bfloat16")


class Compute(NamedTuple):
    """Where and how to compute."""

    device: torch.device
    dtype: torch.dtype
    threads: int


def choose_device(gpu: int | None, device: str | None) -> torch.device:
    """Choose the device: what was asked for, or else the first GPU, or else the CPU, and say which.

    Raises
    ------
    DeviceError
        If a GPU was asked for and is not there.
    UsageError
        If both options are given, or the name is unknown.
    """
    if gpu is not None and device is not None:
        raise UsageError("--gpu and --device exclude each other; got both")
    if gpu is not None:
        device = f"cuda:{gpu}"
    if device is None:
        chosen = torch.device("cuda:0") if torch.cuda.is_available() else torch.device("cpu")
    else:
        try:
            chosen = torch.device(device)
        except RuntimeError as error:
            raise UsageError(f"--device: got {device!r}, expected cpu, cuda or cuda:N") from error
        if chosen.type not in ("cpu", "cuda"):
            raise UsageError(f"--device: got {device!r}, expected cpu, cuda or cuda:N")
        if chosen.type == "cuda":
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            if (chosen.index or 0) >= count:
                built = "" if torch.version.cuda else " (this torch is a CPU build)"
                raise DeviceError(f"{device}: expected a device of that index, this process sees {count}{built}")
    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else "CPU"
    log.info("device: %s (%s)", chosen, name)
    return chosen


def local_place() -> tuple[int, int]:
    """Return number and count of this process among those that ``torchrun`` started on this machine; (0, 1) alone."""
    return int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def share_machine(
    gpu: int | None, device: str | None, threads: int | None
) -> tuple[int | None, str | None, int | None]:
    """Return GPU, device and CPU threads of one of the processes of a machine.

    Each has a GPU of its own, and an equal share of the CPUs.

    Raises
    ------
    UsageError
        If one GPU is named for all of them.
    """
    here, count = local_place()
    if count == 1:
        return gpu, device, threads
    if gpu is not None or (device or "").startswith("cuda:"):
        raise UsageError(f"got {device or f'--gpu {gpu}'} for {count} processes; each takes a GPU of its own, hide "
                         "others by CUDA_VISIBLE_DEVICES")  # fmt: skip
    if device in (None, "cuda") and torch.cuda.is_available():
        gpu, device = here, None
    return gpu, device, threads or max(1, available_threads() // count)


def available_threads() -> int:
    """Return how many CPUs this process may use."""
    return available_cpus()


def choose_threads(threads: int | None) -> int:
    """Give torch and the CPU kernels `threads` threads together; default, and most, what this process may use."""
    most = available_threads()
    if threads is not None and threads > most:
        log.warning("--threads: got %d, but this process may use %d CPUs; %d threads are used", threads, most, most)
    threads = most if threads is None else min(threads, most)
    set_threads(threads)
    return threads


def free_memory(device: torch.device, limit: int | None = None) -> int:
    """Return the bytes that may be taken on the device, where `limit` is for all that this process holds there."""
    if device.type == "cuda":
        free, used = int(torch.cuda.mem_get_info(device)[0]), int(torch.cuda.memory_reserved(device))
    else:
        free, used = available_memory(), used_memory()
    return free if limit is None else max(0, min(free, limit - used))


def native_bfloat16(device: torch.device) -> bool:
    """Tell whether the device has bfloat16 matrix products of its own."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None), getattr(torch.cpu, "_is_amx_tile_supported", None)
    return any(p is not None and p() for p in probe)


def choose_compute(
    *, gpu: int | None, device: str | None, threads: int | None, precision: str, auto: torch.dtype | None = None
) -> Compute:
    """Choose device, precision and threads of a run.

    Parameters
    ----------
    gpu, device, threads, precision
        The options.
    auto
        What ``--precision auto`` means; default bfloat16 where the device has it.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"--precision: got {precision!r}, expected one of {', '.join(PRECISIONS)}")
    chosen = choose_device(gpu, device)
    count = choose_threads(threads)
    if precision == "auto":
        dtype = auto or (torch.bfloat16 if native_bfloat16(chosen) else torch.float32)
    else:
        dtype = getattr(torch, precision)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    log.info("precision: %s, threads: %d", str(dtype).removeprefix("torch."), count)
    return Compute(chosen, dtype, count)
