"""What every baseline can do."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from typing_extensions import Self

from baselines.counting import is_base
from baselines.losses import FloatArray
from lrgenome import dna
from lrgenome.dna import IdArray


class Baseline(ABC):
    """A model that is fitted to counts and tuned on validation: `fit`, `tune`, `probabilities`, `losses`."""

    strands: int = 2
    """Strands of the training sequences that are counted."""

    order: int
    """The Markov order or flank that validation chose."""

    orders: list[float]
    """Validation loss, nats/bp, of each order or flank from 0 up."""

    weights: npt.NDArray[np.float64] = np.zeros(0)
    """Log-linear weights, where there are any."""

    @property
    def validation_loss(self) -> float:
        """Validation loss of the chosen order, nats/bp."""
        return self.orders[self.order]

    @abstractmethod
    def fit(self, sequences: Sequence[IdArray]) -> Self:
        """Count the k-mers of the training sequences, each (t,) uint8 token ids."""

    @abstractmethod
    def tune(self, validation: IdArray) -> Self:
        """Fit weights and choose the order on (t,) uint8 token ids that `fit` never saw."""

    @abstractmethod
    def probabilities(self, ids: IdArray) -> FloatArray:
        """Return p(A), p(C), p(G), p(T) at each position given its context, (t, 4) float32."""

    def losses(self, ids: IdArray) -> FloatArray:
        """Return -ln p of the base at each position, (t,) float32 in nats, NaN where the base is N."""
        out = np.full(len(ids), np.nan, dtype=np.float32)
        at = np.flatnonzero(is_base(ids))
        out[at] = -np.log(self.probabilities(ids)[at, ids[at] - dna.FIRST_BASE])
        return out
