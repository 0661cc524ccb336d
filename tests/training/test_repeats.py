"""Repeats written into windows: what is copied where, and what is asked for."""

import numpy as np
import pytest

from lrgenome.config import PRESETS, HawkConfig
from lrgenome.dna import FIRST_BASE, MASK, N, reverse_complement
from lrgenome.errors import UsageError
from lrgenome.training.objective import masked_example, training_example
from lrgenome.training.repeats import SHORTEST, write_repeat

T = 4096


def draw(seed: int, length: int = T) -> tuple[np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(seed)
    return rng.integers(FIRST_BASE, FIRST_BASE + 4, length, dtype=np.uint8), rng


def test_a_segment_comes_back_and_nothing_else_changes():
    kinds, distances, before = {"exact": 0, "diverged": 0, "reverse complement": 0}, [], 0
    for seed in range(600):
        ids, rng = draw(seed)
        original = ids.copy()
        made = write_repeat(ids, rng)
        assert (ids == original).all(), "the window itself was written to"
        first, second = made.ids[made.first], made.ids[made.second]
        length = len(first)
        assert len(second) == length >= SHORTEST and length <= T // 8
        distance = made.second.start - made.first.start
        assert abs(distance) >= length, "copies overlap"
        rest = np.ones(T, dtype=bool)
        rest[made.second] = False
        assert (made.ids[rest] == original[rest]).all()
        same, flipped = (first == second).mean(), (reverse_complement(first) == second).mean()
        kind = "exact" if same == 1 else "reverse complement" if flipped == 1 else "diverged"
        assert kind != "diverged" or same > 0.8
        kinds[kind] += 1
        distances.append(abs(distance))
        before += distance < 0
    # Diverged copies of short segments may be exact.
    assert min(kinds.values()) > 120 and 200 < before < 400
    share = np.histogram(np.log2(distances), bins=[5, 7, 9, 11, 12])[0]
    assert (share > 30).all(), "distances are of every size"


def test_the_first_copy_is_never_asked_for_and_the_second_is():
    config, asked = HawkConfig(layers=1, width=16, recurrent_width=16, heads=2, mlp_width=24), 0
    for seed in range(50):
        ids, rng = draw(seed)
        truth, masked = training_example(config, ids, rng, 0.15, 1.0)
        _, again = draw(seed)
        assert again.random() < 1.0
        made = write_repeat(ids, again)
        assert (truth == made.ids).all()
        assert not masked.targets[made.first].any() and (masked.ids[made.first] == truth[made.first]).all()
        asked += masked.targets[made.second].sum()
        assert (masked.ids[masked.targets] == MASK).mean() > 0.6
    assert asked > 100


def test_without_repeats_nothing_changes():
    config = HawkConfig(layers=1, width=16, recurrent_width=16, heads=2, mlp_width=24)
    (ids, a), (_, b) = draw(1), draw(1)
    plain, written = masked_example(config, ids, a, 0.15), training_example(config, ids, b, 0.15, 0.0)
    assert (plain[0] == written[0]).all() and (plain[1].ids == written[1].ids).all()
    assert a.random() == b.random()


def test_short_windows_have_none():
    ids, rng = draw(2, 8 * SHORTEST - 1)
    assert write_repeat(ids, rng).ids is ids


def test_n_is_copied_and_never_asked_for():
    ids, rng = draw(3)
    ids[:] = N
    made = write_repeat(ids, rng)
    assert np.isin(made.ids, [N, *range(FIRST_BASE, FIRST_BASE + 4)]).all()


def test_transformers_have_none():
    ids, rng = draw(4)
    with pytest.raises(UsageError, match="--repeats is of models that read single bases; this one reads 6-mers"):
        training_example(PRESETS["nt-v2-50m"], ids, rng, 0.15, 1.0)
