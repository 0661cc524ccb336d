"""Peak memory of a run, known before it begins."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from lrgenome.config import ModelConfig
from lrgenome.errors import MemoryLimitError, UsageError
from lrgenome.models.base import RecurrentModel

STORES = ("auto", "ram", "disk")
SPARE = 0.9
"""Share of the free memory that a plan may take; the rest is for the allocator and for what reads the output."""


class Plan(NamedTuple):
    """How the sweeps of a window will keep what lies between them."""

    on_disk: bool
    """Store in files rather than in RAM."""
    keep_prepared: bool
    """Keep the in-projections between sweeps rather than computing them twice."""
    ram: int
    """Bytes of host (or device) memory that the window takes beyond the model."""
    disk: int
    """Bytes of temporary files."""


def plan(
    model: RecurrentModel,
    batch: int,
    length: int,
    chunk: int,
    *,
    store: str,
    free_ram: int,
    free_disk: int,
) -> Plan:
    """Choose the fastest way to run windows (batch, length) that fits.

    Parameters
    ----------
    model
        A recurrent model with its dtypes chosen.
    chunk
        Positions at a time.
    store
        One of `STORES`.
    free_ram, free_disk
        Bytes that may be taken.

    Raises
    ------
    MemoryLimitError
        If nothing fits; the message says what was needed and what is free.
    """
    if store not in STORES:
        raise UsageError(f"--store: got {store!r}, expected one of {', '.join(STORES)}")
    item, res = model.compute_dtype.itemsize, model.residual_dtype.itemsize
    d, e = model.config.width, model.scan_width()
    batch *= model.strands
    rows = batch * min(length, chunk)
    scratch = rows * item * model.scratch_width()
    options = []
    for on_disk in (False, True):
        if (store == "ram" and on_disk) or (store == "disk" and not on_disk):
            continue
        for keep in (True, False):
            prepared = model.prepared_width() * item
            kept = batch * length * (d * res + e * item + (prepared if keep else 0))
            work = scratch + (0 if keep else rows * prepared)
            # A file store holds one chunk of each name for reading and one for writing.
            on_hand = 2 * rows * (d * res + e * item + (prepared if keep else 0))
            options.append(Plan(on_disk, keep, work + (on_hand if on_disk else kept), kept if on_disk else 0))
    for option in options:
        if option.ram <= free_ram * SPARE and option.disk <= free_disk * SPARE:
            return option
    least = [min((o for o in options if o.on_disk == on_disk), key=lambda o: o.ram, default=None)
             for on_disk in (False, True)]  # fmt: skip
    needs = [_size(o.ram) + " of memory" + (f" and {_size(o.disk)} of disk" if o.on_disk else "") for o in least if o]
    raise MemoryLimitError(
        f"a window of {length:,} bp needs {', or '.join(needs)}; free are {_size(free_ram)} of memory and "
        f"{_size(free_disk)} of disk. "
        "Use a shorter --context, --precision bfloat16, a smaller --batch-size, or --store disk with --tmpdir"
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10**7 else f"{count / 1e6:.2f} MB"


class Trainable(Protocol):
    """What is asked of a model to plan its training."""

    compute_dtype: torch.dtype
    residual_dtype: torch.dtype

    @property
    def config(self) -> ModelConfig:
        """Shape of the model."""

    @property
    def strands(self) -> int:
        """Rows of the residual stream for each window."""

    def graph_width(self) -> int:
        """Values per position and strand, without the residual stream's, that autograd keeps of a block."""

    def graph_norms(self) -> int:
        """Norms in a block, each of which keeps its input."""


def graph_bytes(model: Trainable, tokens: int, *, recompute: bool) -> int:
    """Estimate the bytes that the autograd graph of a forward pass over `tokens` positions keeps.

    With `recompute`, the inputs of all blocks and the inside of one.
    """
    item, res = model.compute_dtype.itemsize, model.residual_dtype.itemsize
    d, layers = model.config.width, model.config.layers
    inside = model.graph_norms() * d * res + model.graph_width() * item
    return tokens * model.strands * (layers * d * res + inside if recompute else layers * inside)
