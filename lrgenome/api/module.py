"""A model as a torch module of one-hot sequences."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from lrgenome.dna import COMPLEMENT, FIRST_BASE, N
from lrgenome.engine.runners import AnyRunner
from lrgenome.errors import InputError, UsageError
from lrgenome.glossary import REVERSE
from lrgenome.models.checkpoint import LoadedModel
from lrgenome.tasks.embed import STRANDS
from lrgenome.tasks.readout import IntervalReadout

OUTPUTS = ("embedding", "log_likelihood", "head")


class OneHotModule(nn.Module):
    """Sequences (b, 4, t) in, one row a sequence out; for tools that take any torch model.

    It computes where and in the precision in which the model was loaded, whatever the module is moved to, and gives
    results to the device of its input. There are no gradients: it is for tools that call the model on
    changed sequences (saturation mutagenesis, marginalisation, ablation, substitution effects), not for those that
    differentiate it.

    Parameters
    ----------
    runner, loaded
        The model, ready.
    output
        ``embedding``: (b, d) mean final hidden state. ``log_likelihood``: (b, 1) sum over the sequence of the
        natural log-probability of its own bases, nothing masked. ``head``: (b, m) what a fine-tuned head of
        intervals predicts.
    strand
        ``forward``, ``reverse`` or ``both`` (their mean).

    Raises
    ------
    UsageError
        If a setting is unknown, or the model has no such head.
    """

    def __init__(self, runner: AnyRunner, loaded: LoadedModel, *, output: str, strand: str) -> None:
        super().__init__()
        if output not in OUTPUTS:
            raise UsageError(f"output: got {output!r}, expected one of {', '.join(OUTPUTS)}")
        if strand not in STRANDS:
            raise UsageError(f"strand: got {strand!r}, expected one of {', '.join(STRANDS)}")
        self.output, self.strands = output, STRANDS[strand]
        # Not a submodule: its packed weights must not be moved or cast.
        self._runner = (runner,)
        self._readout = IntervalReadout(loaded.head, strand, loaded.model.strands) if output == "head" else None
        self.register_buffer("_anchor", torch.zeros(0), persistent=False)

    def forward(self, X: Tensor) -> Tensor:
        """Run sequences.

        Parameters
        ----------
        X
            (b, 4, t) one-hot, rows A, C, G, T; a position of four zeros is N.

        Raises
        ------
        InputError
            If the shape is another, or a position is neither one-hot nor zero.
        """
        ids = torch.from_numpy(one_hot_ids(X))
        total = np.zeros((len(ids), 1 if self.output == "log_likelihood" else self._runner[0].model.hidden_width()))
        for strand in self.strands:
            # One at a time: a batch of long windows is a matter of memory, and fills no more of a CPU.
            for row in range(len(ids)):
                total[row] += self._one(ids[row : row + 1], strand)
        found = total / len(self.strands)
        if self._readout is not None:
            found = self._readout.read(found)
        return torch.from_numpy(found).to(X.device, torch.float32)

    def _one(self, ids: Tensor, strand: int) -> np.ndarray:
        runner, total = self._runner[0], np.zeros(1)
        own = ids[0].numpy()
        for part in runner.stream(ids, strand=strand):
            if self.output == "log_likelihood":
                bases = own[part.start : part.end]
                known = np.flatnonzero((bases >= FIRST_BASE) & (bases < FIRST_BASE + 4))
                read = COMPLEMENT[bases] if strand == REVERSE else bases
                log_p = runner.log_probabilities(part, 0, 0, part.end - part.start)
                total = total + log_p[known, read[known]].sum()
            else:
                total = total + part.hidden[0].double().sum(0).cpu().numpy()
        return total if self.output == "log_likelihood" else total / ids.shape[1]


def one_hot_ids(X: Tensor) -> np.ndarray:
    """Return token ids (b, t) uint8 of one-hot sequences (b, 4, t); four zeros are N.

    Raises
    ------
    InputError
        If `X` is neither.
    """
    if X.ndim != 3 or X.shape[1] != 4 or X.shape[2] == 0:
        raise InputError(f"got a tensor of shape {tuple(X.shape)}, expected (b, 4, t): one-hot in the order A, C, G, T")
    values = X.detach().cpu()
    ones = (values == 1).sum(1)
    bad = ((values != 0) & (values != 1)).any(1) | (ones > 1)
    if bad.any():
        row, at = (int(i) for i in bad.nonzero()[0])
        raise InputError(f"sequence {row}, position {at}: got {values[row, :, at].tolist()}, expected one 1 or none")
    ids = values.argmax(1).to(torch.uint8) + FIRST_BASE
    ids[ones == 0] = N
    return ids.numpy()


__all__ = ["OneHotModule", "one_hot_ids"]
