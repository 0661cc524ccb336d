"""Data-parallel training: processes that share the windows of a step and add up their gradients.

Started by ``torchrun``, which names each process by environment variables. A step's windows are those of one process
that accumulates them all, whatever the number of processes, so a run may go on with another number of them.

For ``torchrun --max-restarts``, set ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1``: else processes that are started again
find the addresses of those before them (pytorch issue 135712).
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import torch
from torch import Tensor, distributed

from lrgenome.errors import PeerLostError, UsageError

_BUCKET = 1 << 24
"""Values that are added up in one message."""


@dataclass(frozen=True)
class Group:
    """The processes of a run, seen from one of them."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether this process writes what the run writes."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Return which of `count` things are this process's: a run of them, as even as can be."""
        return range(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def total(self, values: Iterable[float]) -> list[float]:
        """Add up numbers over the processes, in float64."""
        mine = list(values)
        if self.size == 1:
            return mine
        summed = torch.tensor(mine, dtype=torch.float64, device=self.device)
        _exchange(summed)
        return [float(value) for value in summed.cpu()]

    def agree(self, value: int, what: str) -> None:
        """Raise `UsageError`, in every process, unless all have the same number."""
        total, squares = self.total([float(value), float(value) ** 2])
        if total**2 != self.size * squares:
            raise UsageError(f"{what}: process {self.rank} has {value}, others have another; is the folder shared?")

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Add up tensors over the processes, in place."""
        if self.size > 1:
            for tensor in tensors:
                moved = tensor.to(self.device)
                _exchange(moved)
                tensor.copy_(moved)

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add up gradients over the processes, in place; a parameter without one counts as zeros."""
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            bucket.append(parameter.grad)
            if sum(grad.numel() for grad in bucket) >= _BUCKET:
                _add(bucket)
                bucket = []
        if bucket:
            _add(bucket)


ALONE = Group()


def _add(gradients: list[Tensor]) -> None:
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    _exchange(flat)
    for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))


def _exchange(values: Tensor) -> None:
    try:
        distributed.all_reduce(values)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise PeerLostError(f"another process of this run was lost: {error}") from error


@contextlib.contextmanager
def join(device: torch.device) -> Iterator[Group]:
    """Join the processes that ``torchrun`` started, by NCCL on GPUs and gloo on CPUs; alone where it did not."""
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", 1)) < 2:
        yield Group(device=device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # The optimizer imports it, and its functions have the group of that moment as a default: a group it holds is never
    # freed, and its threads abort the interpreter at its end.
    importlib.import_module("torch.distributed.nn.functional")
    # Long enough for the first one to encode genomes that the others wait for.
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=2))
    try:
        yield Group(distributed.get_rank(), distributed.get_world_size(), device)
    finally:
        distributed.destroy_process_group()
