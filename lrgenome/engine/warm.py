"""Compiling the CPU kernels before the work, so that their cost is said and is not taken for the work's."""

from __future__ import annotations

import logging
import time

import torch

from lrgenome.dna import A
from lrgenome.engine.sweep import hidden_states
from lrgenome.models.base import RecurrentModel
from lrgenome.ops import jit

log = logging.getLogger(__name__)

_LENGTH = 8


def compile_kernels(model: RecurrentModel, device: torch.device, *, backward: bool = False) -> None:
    """Run `model` over a few bases, and say in the log what was compiled; gradients are left as they were.

    Parameters
    ----------
    model
        On `device`, with its dtypes chosen.
    backward
        Compile what training needs as well.
    """
    if device.type != "cpu":
        return
    before, began = jit.compiled()[0], time.monotonic()
    ids = torch.full((1, _LENGTH), A, dtype=torch.uint8)
    with torch.set_grad_enabled(backward):
        hidden = hidden_states(model, ids)
    if backward:
        wanted = [weight for weight in model.parameters() if weight.requires_grad]
        torch.autograd.grad(hidden.float().sum(), wanted, allow_unused=True)
    after, folder = jit.compiled()
    if after > before:
        log.info("compiled %d CPU kernels in %.1f s; kept for the next run in %s", after - before,
                 time.monotonic() - began, folder)  # fmt: skip
