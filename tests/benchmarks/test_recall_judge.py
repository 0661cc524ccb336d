"""The independent judge of recall: a model that copies is seen to copy, one that cannot is not."""

import warnings

import numpy as np
import pytest

from lrgenome.api import States
from lrgenome.dna import FIRST_BASE, MASK

pytest.importorskip("recall_bench")
from recall_judge import SEGMENT, judged, main


class Copier:
    """Predicts what stood so many bases before, where the neighbours agree."""

    def __init__(self, distance):
        self.name, self.distance = "copier", distance

    def stream(self, ids, *, log_p):
        assert log_p
        values = np.full((len(ids), 4), np.log(0.25), np.float32)
        for at in np.flatnonzero(ids == MASK):
            before = at - SEGMENT - self.distance
            near = [step for step in (-2, -1, 1, 2) if at + step < len(ids)]
            if all(ids[before + step] == ids[at + step] for step in near):
                values[at] = np.log(0.01)
                values[at, ids[before] - FIRST_BASE] = np.log(0.97)
        half = len(ids) // 2
        for low, high in ((0, half), (half, len(ids))):
            yield States(low, high, np.zeros((high - low, 1), np.float32), values[low:high])


@pytest.mark.parametrize(("asked", "copies"), [(64, True), (200, False)])
def test_a_copier_is_seen_at_its_distance_only(asked, copies):
    import recall_bench

    rng = np.random.default_rng(3)
    genome = recall_bench.DNABackground.from_strings(["".join(rng.choice(list("ACGT"), 20_000))])
    (row,) = recall_bench.evaluate(
        judged(Copier(64), "copier"), [asked], seg=SEGMENT, trials=3, background=genome, verbose=False
    )
    best = np.log(0.97) - np.log(0.25)
    if copies:
        assert best * 0.9 < row["copy_advantage"] <= best * 1.01
    else:
        assert abs(row["copy_advantage"]) < 0.05 * best


def test_the_table(toy_fasta, tiny_model, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = main(["-f", str(toy_fasta), "-r", "chr1:1501-5003", "-m", str(tiny_model), "--distances", "64",
                     "--trials", "2"])  # fmt: skip
    out = capsys.readouterr().out.splitlines()
    assert len(rows) == 1 and len(out) == 2 and out[1].startswith("tiny\texact\t64\t")
