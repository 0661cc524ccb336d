"""How far scores from boundary states are from those of whole tiles: some of a run's alleles, scored again."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence

from lrgenome.tasks.tiles import TileScorer, TileScores
from lrgenome.tasks.variants import AlleleEdit

log = logging.getLogger(__name__)

Chosen = tuple[AlleleEdit, str, TileScores]
"""An allele, its label and the scores that it was given."""


class Verification:
    """Chooses alleles at random as they pass by, and scores them exactly at the end.

    Parameters
    ----------
    scorer
        What scored them.
    count
        How many to choose: each allele with the same chance, however many there are.
    seed
        Of the choice.
    """

    def __init__(self, scorer: TileScorer, count: int, seed: int) -> None:
        self._scorer, self._count, self._random = scorer, count, random.Random(seed)
        self._seen = 0
        self._chosen: list[Chosen] = []

    def see(self, edit: AlleleEdit, label: str, scores: TileScores) -> None:
        """Let an allele pass by; one that was read off a whole pass needs no check."""
        if scores.dist_l2 is None:
            return
        self._seen += 1
        if len(self._chosen) < self._count:
            self._chosen.append((edit, label, scores))
        elif self._count and (place := self._random.randrange(self._seen)) < self._count:
            self._chosen[place] = edit, label, scores

    def report(self) -> None:
        """Score the chosen again and log the largest differences; nothing where none were wanted."""
        if not self._chosen:
            return
        log.info("scoring %d of %d alleles again, on their whole tiles", len(self._chosen), self._seen)
        most: dict[str, tuple[float, str]] = {}
        covered = 0
        for _, label, got, off in self.differences(self._chosen):
            for name, value in off.items():
                if name not in most or value > most[name][0]:
                    most[name] = value, label
            covered += off.get("LLR", off.get("PLL_DIFF", 0.0)) <= got.err_est
        for name, (value, label) in most.items():
            log.info("  largest difference of %-9s %.3g  (%s)", name, value, label)
        log.info("  within ERR_EST: %d of %d", covered, len(self._chosen))

    def differences(self, chosen: Sequence[Chosen]) -> Iterator[tuple[AlleleEdit, str, TileScores, dict[str, float]]]:
        """Yield alleles, by place, with how far their scores are from those of whole tiles; of distances, as a part."""
        tiles: dict[tuple[str, int], list[Chosen]] = {}
        for one in sorted(chosen, key=lambda one: (one[0].contig, one[0].start)):
            tiles.setdefault(one[0].core(self._scorer.context), []).append(one)
        for members in tiles.values():
            exact = self._scorer.exact([(edit, label) for edit, label, _ in members])
            for (edit, label, got), whole in zip(members, exact, strict=True):
                yield edit, label, got, self._off(got, whole)

    def _off(self, got: TileScores, exact: TileScores) -> dict[str, float]:
        off = {}
        if got.llr is not None and exact.llr is not None and self._scorer.llr == "masked":
            off["LLR"] = abs(got.llr - exact.llr)
        if got.dist_l2 is not None and exact.dist_l2:
            off["DIST_L2"] = abs(got.dist_l2 - exact.dist_l2) / exact.dist_l2
        if got.pll_diff is not None and exact.pll_diff is not None:
            off["PLL_DIFF"] = abs(got.pll_diff - exact.pll_diff)
        return off
