"""Metrics against scikit-learn, and their intervals."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, r2_score, roc_auc_score

from lrgenome.metrics import Ranked, percentile_interval, resampled, weighted_correlation, weighted_r2


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_areas_are_those_of_scikit_learn_with_ties_and_weights(rng, decimals):
    labels = rng.integers(0, 2, 300)
    scores = np.round(rng.normal(size=300) + labels, decimals)
    weights = rng.integers(0, 4, 300).astype(float)
    ranked = Ranked(labels, scores)
    for w in (None, weights):
        assert ranked.auroc(w) == pytest.approx(roc_auc_score(labels, scores, sample_weight=w), abs=1e-12)
        assert ranked.auprc(w) == pytest.approx(average_precision_score(labels, scores, sample_weight=w), abs=1e-12)
    ordered, pairs = ranked.pairs()
    assert pairs == labels.sum() * (1 - labels).sum() and ordered / pairs == pytest.approx(ranked.auroc())


def test_one_class_alone_has_no_area():
    assert np.isnan(Ranked(np.ones(3), np.arange(3)).auroc()) and np.isnan(Ranked(np.zeros(0), np.zeros(0)).auprc())
    assert Ranked(np.zeros(0), np.zeros(0)).pairs() == (0.0, 0.0)


def test_numbers(rng):
    y = rng.normal(size=(200, 3))
    p = y + rng.normal(size=y.shape)
    weights = rng.integers(0, 4, 200).astype(float)
    assert weighted_r2(y, p) == pytest.approx(r2_score(y, p))
    assert weighted_r2(y, p, weights) == pytest.approx(r2_score(y, p, sample_weight=weights))
    assert weighted_correlation(y, p) == pytest.approx(np.mean([np.corrcoef(y[:, i], p[:, i])[0, 1] for i in range(3)]))
    holes = y.copy()
    holes[:50, 1] = np.nan
    per = [r2_score(y[:, 0], p[:, 0]), r2_score(y[50:, 1], p[50:, 1]), r2_score(y[:, 2], p[:, 2])]
    assert weighted_r2(holes, p) == pytest.approx(np.mean(per))


def test_intervals_cover_the_truth_about_as_often_as_they_say(rng):
    covered = 0
    for _ in range(200):
        labels = rng.integers(0, 2, 150)
        ranked = Ranked(labels, rng.normal(size=150) + labels)
        found = percentile_interval(ranked.auroc(), resampled(ranked.auroc, np.arange(150), resamples=200, seed=1))
        # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt 2)
        covered += found.low <= 0.7602 <= found.high
    assert 0.88 < covered / 200 < 0.99


def test_one_seed_draws_one_set_of_samples():
    values = np.arange(50.0)
    one, two = (
        resampled(lambda w: float((w * values).sum() / w.sum()), np.arange(50), resamples=20, seed=3) for _ in range(2)
    )
    assert np.array_equal(one, two) and one.std() > 0
    assert np.isnan(percentile_interval(0.5, np.full(3, np.nan)).low)


def test_rows_of_one_unit_are_drawn_together():
    """Ten copies of each of 20 rows tell no more than the 20."""
    rng = np.random.default_rng(0)
    one = rng.normal(size=20)
    ten, units = np.repeat(one, 10), np.repeat(np.arange(20), 10)

    def mean(values: np.ndarray):
        return lambda w: float((w * values).sum() / w.sum())

    spread = [
        resampled(mean(values), of, resamples=400, seed=0).std()
        for values, of in ((one, np.arange(20)), (ten, units), (ten, np.arange(200)))
    ]
    assert spread[0] == pytest.approx(spread[1]) and spread[2] < 0.5 * spread[0]
