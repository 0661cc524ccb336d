"""The settings of a training run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from lrgenome.errors import UsageError
from lrgenome.glossary import parse_length

STATE_INITS = ("zero", "pass", "noise")
Phase = tuple[int, int]
"""Window length in bp, and for how many optimizer steps."""


def parse_schedule(text: str) -> tuple[Phase, ...]:
    """Read a length curriculum, as ``2kbp:20000,12kbp:100000``: windows of a length for so many steps, in order.

    Raises
    ------
    UsageError
        Naming the part that is none.
    """
    phases = []
    for part in text.split(","):
        length, colon, steps = part.strip().partition(":")
        try:
            phases.append((parse_length(length), int(steps)))
        except ValueError:
            colon = ""
        if not colon or phases[-1][1] < 1:
            raise UsageError(f"--schedule: got {part.strip()!r}, expected LENGTH:STEPS, as 2kbp:20000,12kbp:100000")
    return tuple(phases)


@dataclass(frozen=True)
class PretrainSettings:
    """What decides the weights that a run makes, besides model settings and manifest; and what is looked at."""

    window: int = 12_000
    """Window length, bp; with `schedule` the longest."""
    batch_size: int = 8
    """Windows of a batch."""
    accumulate: int = 12
    """Batches per optimizer step, of all processes together; the paper's effective batch is 96."""
    steps: int = 260_417
    """Optimizer steps; the paper's 300 Gbp at 96 x 12 kbp. With `schedule` the sum of its phases."""
    schedule: tuple[Phase, ...] = ()
    """Windows of one length after the other; empty for windows of one length."""
    warmup: int = 2_000
    """Steps of linear warm-up."""
    lr_min: float = 1e-8
    """Learning rate that the warm-up starts from and the cosine ends at."""
    lr: float = 1e-4
    """Highest learning rate."""
    weight_decay: float = 0.1
    """AdamW's, on matrices only."""
    beta1: float = 0.9
    """AdamW's decay of the mean."""
    beta2: float = 0.95
    """AdamW's decay of the square."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    mask_fraction: float = 0.15
    """Share of bases that are targets."""
    repeats: float = 0.0
    """Share of windows into which a repeat is written; see `training.repeats`."""
    state_init: str = "zero"
    """What windows begin with; see `training.states`."""
    seed: int = 0
    """Of weights, windows and masks."""
    precision: str = "bfloat16"
    """Of matrix products and activations; weights and the residual stream are float32."""
    chunk: int = 0
    """Positions at a time in the sweeps; 0 is the whole window."""
    val_every: int = 1_000
    """Steps between validations."""
    val_windows: int = 16
    """Validation windows per genome, of `window` bp; with `val_lengths`, of places that hold about as many bases."""
    val_lengths: tuple[int, ...] = ()
    """Lengths to validate at besides `window`, bp."""
    divergence: float = 0.1
    """Stop when the mean training loss of 100 steps is this much above its lowest, nats; 0 for never."""

    def __post_init__(self) -> None:
        # As JSON has them, and as equal settings are.
        object.__setattr__(self, "schedule", tuple((window, steps) for window, steps in self.schedule))
        object.__setattr__(self, "val_lengths", tuple(self.val_lengths))
        if self.schedule:
            object.__setattr__(self, "window", max(window for window, _ in self.schedule))
            object.__setattr__(self, "steps", sum(steps for _, steps in self.schedule))
        for field in ("window", "batch_size", "accumulate", "steps", "val_every", "val_windows"):
            if getattr(self, field) < 1:
                raise UsageError(f"--{field.replace('_', '-')}: got {getattr(self, field)}, expected at least 1")
        if any(value < 1 for phase in self.schedule for value in phase):
            raise UsageError(f"--schedule: got {self.schedule}, expected lengths and steps of at least 1")
        if any(length < 1 for length in self.val_lengths):
            raise UsageError(f"--val-lengths: got {self.val_lengths}, expected lengths of at least 1 bp")
        if not 0 <= self.warmup < self.steps:
            raise UsageError(f"--warmup: got {self.warmup}, expected 0 or more and fewer than --steps {self.steps}")
        if not 0 < self.mask_fraction < 1:
            raise UsageError(f"--mask-fraction: got {self.mask_fraction}, expected between 0 and 1")
        if not 0 <= self.repeats <= 1:
            raise UsageError(f"--repeats: got {self.repeats}, expected a share from 0 to 1")
        if self.state_init not in STATE_INITS:
            raise UsageError(f"--state-init: got {self.state_init!r}, expected one of {', '.join(STATE_INITS)}")
        if not 0 <= self.lr_min <= self.lr or not math.isfinite(self.lr):
            raise UsageError(f"--lr: got {self.lr}, expected a finite number of at least --lr-min {self.lr_min}")
        if not 0 <= self.weight_decay < math.inf:
            raise UsageError(f"--weight-decay: got {self.weight_decay}, expected a finite number of at least 0")
        if not 0 < self.clip:
            raise UsageError(f"--clip: got {self.clip}, expected more than 0")
        if not 0 <= self.divergence < math.inf:
            raise UsageError(f"--divergence: got {self.divergence}, expected a finite number of at least 0")
        if not 0 <= self.seed < 1 << 63:
            raise UsageError(f"--seed: got {self.seed}, expected a whole number from 0 to 2^63 - 1")
        if self.chunk < 0:
            raise UsageError(f"--chunk: got {self.chunk}, expected 0 (the whole window) or more")

    @property
    def phases(self) -> Sequence[Phase]:
        """Return the curriculum, of one phase where there is no schedule."""
        return self.schedule or ((self.window, self.steps),)

    @property
    def windows_per_step(self) -> int:
        """Windows of one optimizer step, of all processes together."""
        return self.batch_size * self.accumulate

    def window_at(self, step: int) -> int:
        """Return the window length of a step (0-based), bp."""
        ends = accumulate(steps for _, steps in self.phases)
        return next(window for (window, _), end in zip(self.phases, ends, strict=True) if step < end)

    def bases_until(self, step: int) -> int:
        """Return how many bases the first `step` steps see."""
        total = 0
        for window, steps in self.phases:
            total += window * self.windows_per_step * min(step, steps)
            step -= min(step, steps)
        return total
