"""How long a model's states last on real sequence, and how to make them last longer or shorter."""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import softplus

from lrgenome.errors import UsageError
from lrgenome.glossary import FORWARD
from lrgenome.models.base import Prepared, RecurrentModel
from lrgenome.models.caduceus import Caduceus
from lrgenome.models.families import Recurrent
from lrgenome.models.hawk import Hawk
from lrgenome.ops.workspace import Workspace


class HalfLives(NamedTuple):
    """Median half-lives of one direction of one block."""

    layer: int
    """1-based."""
    direction: str
    """forward or reverse."""
    values: npt.NDArray[np.float64]
    """(e,) or (e, n), bp: of each channel and state, the median over positions of ln 2 / -log a."""


@torch.no_grad()
def half_lives(model: RecurrentModel, ids: Tensor) -> list[HalfLives]:
    """Measure the half-lives of all states on windows of token ids (b, t), run whole."""
    ws = Workspace(enabled=False)
    count, found = len(model.stack), []
    x = model.embed(ids)
    for number, block in enumerate(model.stack):
        u: Prepared = block.prepare(x, ws)
        zero = block.initial_state(x.shape[0], x.device)
        outputs = {}
        for reverse in (False, True):
            rates = block.decay_rates(u, weights=int(reverse) ^ FORWARD, reverse=reverse).flatten(0, 1)
            # A rate of nothing is a state for ever.
            lives = math.log(2.0) / rates.double().clamp_min(1e-12)
            name = "reverse" if reverse else "forward"
            found.append(HalfLives(number + 1, name, lives.median(0).values.cpu().numpy()))
            outputs[reverse] = block.scan(u, zero, weights=int(reverse), reverse=reverse, reset=True, ws=ws)[0]
        first = (count - number) % 2 == 1
        x = block.combine(x, u, outputs[first], outputs[not first], ws)
    return found


@torch.no_grad()
def scale_timescales(model: Recurrent, factor: float) -> None:
    """Multiply every half-life by `factor`, in place: log a is divided by it.

    What a Caduceus writes into its states stays; a Hawk's input is scaled by sqrt(1 - a^2), as always, so that its
    states keep their size. A diagnostic (Mamba Modulation does so to the spectrum of A): where slower decay makes no
    difference, the length of memory is not what limits a model.

    Raises
    ------
    UsageError
        If the factor is not a positive number.
    """
    if not 0 < factor < math.inf:
        raise UsageError(f"--timescale-scale: got {factor}, expected a positive number")
    for block in model.blocks:
        for direction in cast(torch.nn.ModuleList, block.directions):
            if isinstance(model, Hawk):
                a = cast(Tensor, direction.a_param)
                # softplus(Lambda) = -log(radius); its inverse for a small result is its logarithm.
                small = softplus(a.double()) / factor
                a.copy_(torch.where(small < 1e-6, torch.log(small), torch.log(torch.expm1(small))).to(a.dtype))
            else:
                assert isinstance(model, Caduceus)
                cast(Tensor, direction.a_log).sub_(math.log(factor))
