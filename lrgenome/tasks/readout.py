"""What a fine-tuned head says of an allele: extra columns of the score table."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from lrgenome.errors import UsageError
from lrgenome.models.heads import Extras, Head
from lrgenome.training.stretches import pools_alleles

log = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]


class Readout:
    """Predictions from what `score-vcf` pools of ALT and REF.

    Parameters
    ----------
    head
        Of variants, reading the mean over each allele and its flanks.
    tissues
        Those to predict for, of a head that knows tissues.
    strands
        Strand settings of the scores, "both" or "forward".
    halves
        Strands that run side by side in the model, whose states are added up.

    Raises
    ------
    UsageError
        If the head needs what a VCF does not have, or a tissue that it does not know.
    """

    def __init__(self, head: Head, *, tissues: Sequence[str], strands: str, halves: int) -> None:
        config = head.config
        if not pools_alleles(config):
            raise UsageError(
                f"the model's head pools {config.low} to {config.high} bp by {config.pool}; score-vcf reads heads that "
                "take the mean over an allele and its flanks, the default of variants"
            )
        if config.distance:
            raise UsageError("the model's head needs distances to transcription starts, which a VCF does not have")
        if config.strand == "both" and strands != "both":
            raise UsageError("--strand forward: the model's head was trained on both strands, expected both")
        if config.tissue == "none" and tissues:
            raise UsageError(f"--tissue {tissues[0]}: the model's head knows no tissues")
        if config.tissue != "none" and not tissues:
            known = ", ".join(config.tissues[:6]) + (", ..." if len(config.tissues) > 6 else "")
            raise UsageError(f"--tissue: got none, expected some of the head's {len(config.tissues)}: {known}")
        if unknown := [name for name in tissues if name not in config.tissues]:
            raise UsageError(f"--tissue: got {unknown[0]!r}, expected one of {', '.join(config.tissues)}")
        self._head, self._halves = copy.deepcopy(head).double(), halves
        self._tissues = [config.tissues.index(name) for name in tissues]
        what = "PRED" if config.kind == "numbers" else "P"
        names = [""] if config.kind == "classes" else [f"_{name}" for name in config.outputs]
        self.columns = tuple(
            re.sub(r"\W", "_", f"{what}{output}{tissue}")
            for tissue in ([f"_{name}" for name in tissues] or [""]) for output in names
        )  # fmt: skip
        """Names of the columns."""

    def read(self, means: Sequence[FloatArray]) -> tuple[float, ...]:
        """Predict from means (2, w) of ALT and REF on each strand, the forward one first."""
        chosen = np.mean(means, 0) if self._head.config.strand == "both" else means[0]
        if self._halves == 2:
            chosen = chosen[:, : chosen.shape[1] // 2] + chosen[:, chosen.shape[1] // 2 :]
        pooled = torch.from_numpy(chosen)[None, :, None]
        found: list[float] = []
        with torch.no_grad():
            for extras in [Extras(torch.tensor([tissue])) for tissue in self._tissues] or [Extras()]:
                found += self._head.predictions(self._head(pooled, extras))[0].tolist()
        return tuple(found)


def readout_of(head: Head | None, *, tissues: Sequence[str], strands: str, halves: int) -> Readout | None:
    """Return the readout of a model's head; None where it has none, or one of intervals."""
    if head is None or not head.config.variants:
        if tissues:
            raise UsageError(f"--tissue {tissues[0]}: the model has no head of variants")
        if head is not None:
            log.info("the model's head is of intervals: it adds no columns")
        return None
    return Readout(head, tissues=tissues, strands=strands, halves=halves)


class IntervalReadout:
    """Predictions from the means of intervals or bins.

    Parameters
    ----------
    head
        Of intervals, reading one mean.
    strand
        Strand setting of the means.
    halves
        Strands that run side by side in the model, whose states are added up.

    Raises
    ------
    UsageError
        If there is no such head, or it was trained on both strands and the means are of one.
    """

    def __init__(self, head: Head | None, strand: str, halves: int) -> None:
        if head is None:
            raise UsageError("--layer head: the model has no head; `lrgenome finetune` makes one")
        config = head.config
        if config.variants or config.pool != "mean" or config.tissue != "none" or config.distance:
            raise UsageError("--layer head: the model's head is not one that reads the mean of an interval alone")
        if config.strand == "both" and strand != "both":
            raise UsageError(f"--layer head: got --strand {strand}, the head was trained on both")
        self._head, self._halves = copy.deepcopy(head).double(), halves
        self._length, self._warned = config.high - config.low, False
        self.columns = config.outputs

    def check(self, length: int) -> None:
        """Warn, once, where rows are of other lengths than what the head was trained to pool."""
        if length != self._length and not self._warned:
            self._warned = True
            log.warning(
                "--layer head: got a row of %d bp, the head was trained on means of %d bp around the centre", length,
                self._length,
            )  # fmt: skip

    def read(self, means: FloatArray) -> FloatArray:
        """Predict (n, m) from means (n, w)."""
        if self._halves == 2:
            means = means[:, : means.shape[1] // 2] + means[:, means.shape[1] // 2 :]
        with torch.no_grad():
            found = self._head.predictions(self._head(torch.from_numpy(means)[:, None, None], Extras()))
        return np.asarray(found.numpy(), dtype=np.float64)
