"""What the engine asks of a recurrent model: blocks of three functions, and states as data.

A block is ``prepare`` (per token), ``scan`` (the only part with memory) and ``combine`` (per token); see
docs/streaming.md. Every direction-dependent weight is in ``scan``; the other two are shared by both directions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lrgenome.config import RecurrentConfig
from lrgenome.ops.workspace import Workspace


class DirectionState(NamedTuple):
    """What one direction of one block remembers of everything it has passed."""

    h: Tensor
    """(b, e) float32 recurrent state (float64 for float64 models); (b, e, n) where channels have a state of n."""
    halo: Tensor
    """(b, k-1, e) last inputs of the convolution, in genomic order, in the compute dtype."""


class Saved(NamedTuple):
    """States of one direction of one block at chosen boundaries of a chunk, and the memory that they are written to."""

    at: Tensor
    """(m,) int64, rising, boundaries 0..t of the chunk; boundary p lies before position p."""
    h: Tensor
    """(b, m, e) or (b, m, e, n), in the dtype of the state."""
    halo: Tensor
    """(b, m, k-1, e), in the compute dtype."""


class Prepared(NamedTuple):
    """What ``prepare`` makes of a chunk."""

    branch: Tensor
    """(b, t, e) input of the convolution and recurrence."""
    gate: Tensor
    """(b, t, e) gate branch before its GELU or SiLU."""


class Block(Protocol):
    """One residual block of a recurrent model."""

    def prepare(self, x: Tensor, ws: Workspace, out: Prepared | None = None) -> Prepared:
        """Compute what both scans and ``combine`` need from the block's input `x` (b, t, d), in `out` if given."""

    def scan(
        self,
        u: Prepared,
        state: DirectionState,
        *,
        weights: int,
        reverse: bool,
        reset: bool,
        ws: Workspace,
        out: Tensor | None = None,
        saved: Saved | None = None,
    ) -> tuple[Tensor, DirectionState]:
        """Run one direction over a chunk, with that direction's `weights`; returns y (b, t, e) and the state.

        `saved` receives states at boundaries inside the chunk; it is for inference.
        """

    def decay_rates(self, u: Prepared, *, weights: int, reverse: bool) -> Tensor:
        """Return -log a, what a state loses at each position of a window: (b, t, e) or (b, t, e, n) float32."""

    def combine(self, x: Tensor, u: Prepared, y1: Tensor, y2: Tensor, ws: Workspace) -> Tensor:
        """Join both scans; returns the next block's input (b, t, d), in the memory of `x` where it may."""

    def initial_state(self, batch: int, device: torch.device) -> DirectionState:
        """Return the state before anything was seen."""


class RecurrentModel(Protocol):
    """A stack of blocks between an embedding and a masked-language-model head."""

    compute_dtype: torch.dtype
    residual_dtype: torch.dtype

    @property
    def config(self) -> RecurrentConfig:
        """Shape of the model."""

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Every weight."""

    @property
    def strands(self) -> int:
        """Rows of the residual stream for each window: 2 where both strands run side by side."""

    @property
    def stack(self) -> list[Block]:
        """The blocks in order."""

    def embed(self, ids: Tensor) -> Tensor:
        """Embed token ids (b, t) as (s*b, t, d) in the residual dtype, s strands outermost."""

    def finish(self, x: Tensor, *, norm: bool = True) -> Tensor:
        """Make the output (b, t, s*d) of a block's (s*b, t, d): with the final norm, in the compute dtype."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute (..., v) float32 logits from final hidden states (..., s*d)."""

    def hidden_width(self) -> int:
        """Values per position in the output."""

    def prepared_width(self) -> int:
        """Values per position in `Prepared`."""

    def scan_width(self) -> int:
        """Values per position in a scan's y."""

    def widest_step(self) -> int:
        """Values per position and strand that the widest step reads and writes."""

    def scratch_width(self) -> int:
        """Values per position and strand that a sweep works in, besides what it stores."""

    def graph_width(self) -> int:
        """Values per position and strand, without the residual stream's, that autograd keeps of a block."""

    def graph_norms(self) -> int:
        """Norms in a block, each of which keeps its input."""
