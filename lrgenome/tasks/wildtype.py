"""Log-odds of every substitution of a tile, read off one pass in which nothing is masked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lrgenome.dna import COMPLEMENT, FIRST_BASE
from lrgenome.engine.runner import Runner
from lrgenome.glossary import REVERSE
from lrgenome.tasks.pass_sums import head_rows
from lrgenome.tasks.regions import Tile
from lrgenome.tasks.variants import AlleleEdit

_BASES = np.arange(FIRST_BASE, FIRST_BASE + 4)


class WildtypeTable:
    """Log-probabilities of the four bases at every position of a tile's core, averaged over strands.

    Parameters
    ----------
    runner
        A recurrent model, ready.
    tile
        The tile; it is run once a strand.
    context
        Length of a core, bp.
    strands
        FORWARD, REVERSE or both.
    """

    def __init__(self, runner: Runner, tile: Tile, context: int, strands: Sequence[int]) -> None:
        self._tile = tile.contig, tile.start, tile.end
        # An allele belongs to the core of its middle, and may begin before it and end behind it.
        self._table = np.zeros((len(tile.ids), 4), dtype=np.float32)
        for strand in strands:
            columns = COMPLEMENT[_BASES] if strand == REVERSE else _BASES
            for part in runner.stream(torch.from_numpy(tile.ids)[None], strand=strand):
                for low, high, log_p in head_rows(runner, part):
                    self._table[part.start + low : part.start + high] += log_p[:, columns] / len(strands)

    def is_of(self, tile: Tile) -> bool:
        """Tell whether this is the table of a tile."""
        return self._tile == (tile.contig, tile.start, tile.end)

    def llr(self, edit: AlleleEdit) -> float:
        """Return the sum over the differing bases of a substitution of log p(ALT) - log p(REF), natural log."""
        rows = self._table[[edit.start - self._tile[1] + site for site in edit.sites]].astype(np.float64)
        which = np.arange(len(edit.sites))
        refs, alts = (of[list(edit.sites)].astype(np.int64) - FIRST_BASE for of in (edit.ref, edit.alt))
        return float((rows[which, alts] - rows[which, refs]).sum())
