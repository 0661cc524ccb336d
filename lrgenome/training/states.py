"""Initial states of training windows other than zero (Buitrago and Gu 2025, arXiv:2507.02782).

A model that only ever begins with nothing sees, past the length of its training windows, states that it never met. So
half of the windows begin in both directions of every block with the final states of another window (``pass``), or
with noise that has the mean and variance of final states, channel by channel (``noise``). A bidirectional model reads
from both edges, so each direction has its own. No gradient goes into them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lrgenome.engine.sweep import EdgeStates
from lrgenome.errors import ModelError
from lrgenome.models.base import DirectionState
from lrgenome.models.families import Model
from lrgenome.models.nucleotide_transformer import NucleotideTransformer
from lrgenome.training.parallel import ALONE, Group

SHARE = 0.5
"""Of the windows that do not begin with nothing."""
_DECAY = 0.99
"""Of the running moments, a step."""


class InitialStates:
    """Where a run's windows begin.

    Parameters
    ----------
    model
        In training; a recurrent one, unless `kind` is "zero".
    kind
        One of `training.settings.STATE_INITS`.
    windows
        Windows of a step, of all processes together.
    group
        The processes that share them.
    """

    def __init__(self, model: Model, kind: str, windows: int, group: Group = ALONE) -> None:
        self.kind, self._group = kind, group
        self._tensors: dict[str, Tensor] = {}
        self._next: dict[str, Tensor] = {}
        if kind == "zero":
            return
        assert not isinstance(model, NucleotideTransformer)
        self._device, self._strands = model.embedding.device, model.strands
        self._like = [tuple(block.initial_state(1, self._device)) for block in model.stack]
        self._size = 2 * self._strands * sum(part.numel() for like in self._like for part in like)
        rows = (windows, self._size) if kind == "pass" else (2, self._size)
        self._tensors = {"values": torch.zeros(rows), "weight": torch.zeros(1, dtype=torch.float64)}

    def draw(self, rng: np.random.Generator, index: int) -> Tensor | None:
        """Return what window `index` of the step begins with, (s,) float32, or None for nothing."""
        if self.kind == "zero" or not self._tensors["weight"]:
            return None
        if rng.random() >= SHARE:
            return None
        values = self._tensors["values"]
        if self.kind == "pass":
            return values[index]
        # Running sums of a geometric weight, so divided by it.
        mean, square = values / self._tensors["weight"].float()
        noise = torch.from_numpy(rng.standard_normal(self._size, dtype=np.float32))
        return mean + noise * (square - mean**2).clamp_min(0.0).sqrt()

    def start_of(self, rows: Sequence[Tensor]) -> EdgeStates:
        """Make the states that a batch of windows begins with of what was drawn for each."""
        flat = torch.stack(list(rows)).to(self._device)
        out, at = [], 0
        for like in self._like:
            ways = []
            for _ in range(2):
                parts = []
                for part in like:
                    count = self._strands * part.numel()
                    own = flat[:, at : at + count].reshape(len(rows), self._strands, *part.shape[1:])
                    # The engine has strands outermost.
                    parts.append(own.transpose(0, 1).flatten(0, 1).to(part.dtype).contiguous())
                    at += count
                ways.append(DirectionState(*parts))
            out.append((ways[0], ways[1]))
        return out

    def flat_of(self, ends: Mapping[tuple[int, bool], DirectionState]) -> Tensor:
        """Make (b, s) float32 rows of the final states of a batch, as ``ends`` of `engine.sweep.stream`."""
        rows = []
        for layer in range(len(self._like)):
            for reverse in (False, True):
                for part in ends[layer, reverse]:
                    strands = part.detach().float().unflatten(0, (self._strands, -1))
                    rows.append(strands.transpose(0, 1).flatten(1))
        return torch.cat(rows, 1).cpu()

    def collect(self, finals: Mapping[int, Tensor]) -> None:
        """Take the final states of this process's windows of a step, by number; all processes have to call it."""
        if self.kind == "zero":
            return
        values, weight = self._tensors["values"], self._tensors["weight"]
        fresh = torch.zeros_like(values)
        if self.kind == "pass":
            for index, row in finals.items():
                fresh[index] = row
            self._group.add([fresh])
            self._next = {"values": fresh, "weight": torch.ones_like(weight)}
            return
        for row in finals.values():
            fresh += torch.stack([row, row**2])
        count = torch.tensor([len(finals)], dtype=torch.float64)
        self._group.add([fresh])
        self._group.add([count])
        self._next = {
            "values": _DECAY * values + (1 - _DECAY) * fresh / count.float(), "weight": _DECAY * weight + (1 - _DECAY)
        }  # fmt: skip

    def advance(self) -> None:
        """Let the next step draw from what was collected."""
        self._tensors = self._next or self._tensors
        self._next = {}

    def tensors(self) -> dict[str, Tensor]:
        """Return what a snapshot keeps."""
        return dict(self._tensors)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a snapshot's; `ModelError` if they are not of this run."""
        for name, now in self._tensors.items():
            if name not in tensors or tensors[name].shape != now.shape:
                raise ModelError(f"initial states: expected {name} of shape {tuple(now.shape)}")
            now.copy_(tensors[name])
