"""States at chosen boundaries inside a chunk, for what starts from there later."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Record(NamedTuple):
    """A request for states, and the memory that they are written to; not differentiated."""

    at: Tensor
    """(m,) int64, rising, boundaries 0..t of the chunk on the CPU; boundary p lies before position p."""
    h: Tensor
    """(b, m, e) or (b, m, e, n), in the dtype of the state: what a direction knows when it comes to each boundary."""

    def steps(self, t: int, *, reverse: bool) -> Tensor:
        """Return how many of the chunk's t positions a direction has passed at each boundary, (m,) int64."""
        return t - self.at if reverse else self.at

    def pick(self, states: Tensor, h0: Tensor, *, reverse: bool) -> None:
        """Fill `h` from all states (b, t, ...) of a chunk, and `h0` that entered it."""
        padded = torch.cat([states, h0[:, None]] if reverse else [h0[:, None], states], 1)
        self.h.copy_(padded[:, self.at.to(states.device)])


def halos_at(x: Tensor, halo: Tensor, at: Tensor, *, reverse: bool) -> Tensor:
    """Return the (b, m, k-1, e) inputs of a convolution that a direction needs at boundaries `at` (m,) of a chunk.

    `x` (b, t, e) are the chunk's inputs, `halo` (b, k-1, e) those before it in this direction, in genomic order.
    """
    padded = torch.cat([x, halo] if reverse else [halo, x], 1)
    return padded[:, at[:, None].to(x.device) + torch.arange(halo.shape[1], device=x.device)]
