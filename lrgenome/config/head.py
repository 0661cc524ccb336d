"""Settings of a head that predicts labels from hidden states."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from lrgenome.config.common import check_flags, from_object
from lrgenome.errors import UsageError

_LARGEST = 1 << 40
KINDS = ("classes", "labels", "numbers")
ALLELES = ("both", "difference")
POOLS = ("mean", "attention", "bins")
TISSUES = ("none", "index", "onehot", "embedding")


@dataclass(frozen=True)
class HeadConfig:
    """What a head reads of a window, and how it makes predictions of it."""

    kind: str
    """classes: one binary label, two logits; labels: binary ones; numbers."""
    outputs: tuple[str, ...]
    """Names of what is predicted."""
    width: int
    """Values of a pooled stretch, of one allele."""
    variants: bool
    """Whether it reads ALT and REF, or one window."""
    context: int
    """Window length in training, bp."""
    alleles: str = "both"
    """both: ALT and REF side by side; difference: ALT less REF, and its absolute values."""
    low: int = -100
    """First base that is pooled, from the centre of the window (base L // 2 is 0), bp."""
    high: int = 101
    """One past the last."""
    bin_size: int = 0
    """Bases of a stretch; 0: all of them are one."""
    pool: str = "mean"
    """mean of the stretches, attention over them, or bins: a prediction for each."""
    hidden: tuple[int, ...] = ()
    """Widths of hidden layers, each followed by a softplus; none makes the head linear."""
    tissue: str = "none"
    """How the tissue comes in: none, index (its number), onehot, embedding."""
    tissues: tuple[str, ...] = ()
    """Their names."""
    tissue_width: int = 16
    """Of an embedding."""
    distance: bool = False
    """Whether the logarithm of the distance to the nearest transcription start comes in."""
    strand: str = "forward"
    """forward, or both: the mean over both strands."""
    task: str = "table"
    """What it was trained on."""

    def __post_init__(self) -> None:
        for name, kind in (("outputs", str), ("hidden", int), ("tissues", str)):
            values = getattr(self, name)
            if not isinstance(values, list | tuple) or not all(type(value) is kind for value in values):
                raise UsageError(f"head setting {name}: got {values!r}, expected a list of {kind.__name__}")
            object.__setattr__(self, name, tuple(values))
        for name in ("width", "context", "low", "high", "bin_size", "tissue_width"):
            if type(value := getattr(self, name)) is not int or abs(value) > _LARGEST:
                raise UsageError(f"head setting {name}: got {value!r}, expected a whole number of at most {_LARGEST}")
        check_flags(self, "variants", "distance", what="head")
        for name, known in (("kind", KINDS), ("pool", POOLS), ("tissue", TISSUES), ("strand", ("forward", "both")),
                            ("alleles", ALLELES)):  # fmt: skip
            if (got := getattr(self, name)) not in known:
                raise UsageError(f"head setting {name}: got {got!r}, expected one of {', '.join(known)}")
        if not self.outputs or min(self.width, self.context, self.tissue_width, *self.hidden) < 1:
            raise UsageError("head settings: expected outputs, and widths and context of at least 1")
        if self.kind == "classes" and len(self.outputs) != 1:
            raise UsageError(f"head setting outputs: got {len(self.outputs)}, expected one of kind classes")
        if self.pool != "bins" and not self.low < self.high:
            raise UsageError(f"head settings low, high: got {self.low} and {self.high}, expected low < high")
        if self.pool != "mean" and self.bin_size < 1:
            raise UsageError(f"head setting bin_size: got {self.bin_size}, expected at least 1 for {self.pool}")
        if self.tissue != "none" and not self.tissues:
            raise UsageError(f"head setting tissue: got {self.tissue!r} without names of tissues")

    @property
    def logits(self) -> int:
        """Values that come out."""
        return 2 if self.kind == "classes" else len(self.outputs)

    @property
    def pooled(self) -> int:
        """Values that come in of the sequence: of either way to compare alleles, twice the width."""
        return self.width * (2 if self.variants else 1)

    @property
    def inputs(self) -> int:
        """Values that the first layer reads."""
        tissue = {"none": 0, "index": 1, "onehot": len(self.tissues), "embedding": self.tissue_width}[self.tissue]
        return self.pooled + tissue + int(self.distance)

    @property
    def parameters(self) -> int:
        """Number of weights of a head with these settings, without making it."""
        widths = [self.inputs, *self.hidden, self.logits]
        layers = sum((i + 1) * o for i, o in pairwise(widths))
        tissues = len(self.tissues) * self.tissue_width if self.tissue == "embedding" else 0
        return (3 if self.pool == "attention" else 2) * self.pooled + tissues + layers

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return dataclasses.asdict(self)


def head_from_json(values: object) -> HeadConfig:
    """Read head settings from decoded JSON; `UsageError` names what is missing, unknown or impossible."""
    try:
        return from_object(HeadConfig, values, "head")
    except TypeError as error:
        raise UsageError(f"head settings: {error}") from error
