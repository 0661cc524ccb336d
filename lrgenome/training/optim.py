"""AdamW and its learning-rate schedule: linear warm-up, then a cosine."""

from __future__ import annotations

import math

import torch
from torch import nn

NO_DECAY = ("norm", "bias", "a_param", "a_log", "skip", "embedding", "conv_weight")


def learning_rate(step: int, *, warmup: int, steps: int, low: float, high: float) -> float:
    """Return the rate of step `step` (0-based): from `low` to `high` over `warmup` steps, then a cosine to `low`."""
    if step < warmup:
        return low + (high - low) * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return low + (high - low) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def build_optimizer(
    model: nn.Module, *, rate: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """Make AdamW that decays matrices only: not norms, biases, recurrence parameters, convolution or embedding."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (plain if any(word in name for word in NO_DECAY) else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=1e-8)
