"""Kernels for a GPU, trusted on a device after they agreed there with the definition, else left out."""

import importlib
import logging
import os
from collections.abc import Callable
from functools import cache, wraps
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor

from lrgenome.caches import cache_folder

log = logging.getLogger(__name__)

Result = TypeVar("Result")

TRITON_ROWS = "lrgenome.ops.triton_rows"
TOLERANCE = 1e-4
"""Largest difference from the definition, on inputs of about 1, with which kernels are trusted."""


@cache
def trusted(name: str, device: str) -> ModuleType | None:
    """Import the module `name` and let its ``worst_error(device)`` compare it with the definition, once a device.

    Where it cannot be imported, fails or differs, a warning says so and plain torch is to run instead; a device
    that is out of memory says nothing of the kernels, and its error is passed on.
    """
    _choose_cache_dir()
    log.info("%s: checking (at first compiling) the kernels of %s", device, name.rpartition(".")[2])
    try:
        module = importlib.import_module(name)
        # The first call may be under no_grad, where there would be no gradients to compare.
        with torch.inference_mode(False), torch.enable_grad():
            worst = module.worst_error(device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compiled code fails to import and to run in many ways
        log.warning("%s is not usable on %s (%s: %s): plain torch runs", name, device, type(error).__name__, error)
        return None
    if not worst <= TOLERANCE:  # not a number either
        log.warning("%s differs by %.2g on %s in its self-check: plain torch runs", name, worst, device)
        return None
    return module


def _choose_cache_dir() -> None:
    """Let Triton keep what it compiles under TMPDIR, never in HOME."""
    if "TRITON_CACHE_DIR" not in os.environ and (folder := cache_folder("triton")) is not None:
        os.environ["TRITON_CACHE_DIR"] = str(folder)


def largest_difference(got: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest difference of two lists of tensors in units of the larger of 1 and the tensor's largest."""
    # One tensor, since max() of Python numbers may lose a NaN.
    return torch.stack([
        (one - other).abs().max() / other.abs().max().clamp(min=1.0) for one, other in zip(got, expected, strict=True)
    ]).max().item()  # fmt: skip


def on_its_device(function: Callable[..., Result]) -> Callable[..., Result]:
    """Run `function` on the GPU of its first argument, a tensor: Triton takes the current one, whatever it is given."""

    @wraps(function)
    def run(x: Tensor, *arguments: object, **named: object) -> Result:
        if not x.is_cuda:
            return function(x, *arguments, **named)
        with torch.cuda.device(x.device):
            return function(x, *arguments, **named)

    return run
