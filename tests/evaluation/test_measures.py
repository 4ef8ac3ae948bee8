"""Measures against values worked out by hand, and against scipy."""

import numpy as np
import pytest
from scipy import stats

from msif.errors import MsifError
from msif.evaluation.correlation import pearson, spearman
from msif.evaluation.datamodelling import linear_datamodelling_score, noise_ceiling
from msif.evaluation.intervals import bootstrap
from msif.evaluation.retrieval import hit_at, ranks, recall_at, reciprocal_rank


def test_correlations_agree_with_scipy_row_by_row():
    source = np.random.default_rng(0)
    a, b = source.normal(size=(3, 4, 30)), source.normal(size=(3, 4, 30))
    a[0, 0, :10] = 1.0  # ties
    for ours, theirs in ((pearson, stats.pearsonr), (spearman, stats.spearmanr)):
        values = ours(a, b)
        assert values.shape == (3, 4)
        for i in np.ndindex(3, 4):
            assert values[i] == pytest.approx(theirs(a[i], b[i]).statistic, abs=1e-12)


def test_a_scale_changes_no_correlation_and_a_constant_has_none():
    a, b = np.array([1.0, 2.0, 4.0, 3.0]), np.array([1.0, 3.0, 9.0, 2.0])
    assert pearson(1e-200 * a, 1e200 * b) == pytest.approx(float(pearson(a, b)))
    assert np.isnan(spearman(np.full(4, 0.1), b))
    assert spearman(a, -a) == -1.0


@pytest.mark.parametrize("bad", [([1.0], [1.0]), ([1.0, 2.0], [1.0, 2.0, 3.0]), ([1.0, np.nan], [1.0, 2.0])])
def test_what_has_no_correlation_is_refused(bad):
    with pytest.raises(MsifError):
        spearman(*bad)


def test_ties_count_against_the_method():
    assert ranks([3.0, 1.0, 3.0, 2.0]).tolist() == [2, 4, 2, 3]
    relevant = [False, True, False, False]
    assert reciprocal_rank(np.zeros(4), relevant) == 0.25
    assert hit_at(np.zeros(4), relevant, 3) == 0.0


def test_retrieval_by_hand():
    scores, relevant = [0.1, 0.9, 0.5, 0.7], [True, False, True, False]
    assert reciprocal_rank(scores, relevant) == pytest.approx(1 / 3)
    assert [hit_at(scores, relevant, k) for k in (1, 2, 3, 4)] == [0.0, 0.0, 1.0, 1.0]
    assert [recall_at(scores, relevant, k) for k in (1, 2, 3, 4)] == [0.0, 0.0, 0.5, 1.0]
    with pytest.raises(MsifError, match="none of the candidates"):
        reciprocal_rank(scores, [False] * 4)
    with pytest.raises(MsifError, match="NaN"):
        reciprocal_rank([np.nan, 1.0], [True, False])


def test_an_interval_covers_the_mean_as_often_as_it_says():
    source = np.random.default_rng(0)
    intervals = [bootstrap(source.normal(size=60), resamples=500, seed=i) for i in range(300)]
    covered = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    assert 0.90 <= covered <= 0.98
    width = np.mean([interval.high - interval.low for interval in intervals])
    assert width == pytest.approx(2 * 1.96 / np.sqrt(60), rel=0.06)


def test_an_interval_is_seeded_and_draws_whole_units():
    rows = np.arange(20.0).reshape(5, 4)
    assert bootstrap(rows) == bootstrap(rows.mean(1))
    assert bootstrap(rows, resamples=50, seed=1) != bootstrap(rows, resamples=50, seed=2)
    assert f"{bootstrap([2.0, 2.0]):.1f}" == "2.0 [2.0, 2.0]"
    with pytest.raises(MsifError):
        bootstrap([1.0, np.nan])


def test_an_additive_loss_is_foretold_exactly():
    source = np.random.default_rng(0)
    scores, masks = source.normal(size=(3, 12)), source.random((20, 12)) < 0.5
    losses = 5.0 - masks @ scores.T
    assert linear_datamodelling_score(scores, masks, losses) == pytest.approx(np.ones(3))
    assert linear_datamodelling_score(-scores, masks, losses) == pytest.approx(-np.ones(3))
    with pytest.raises(MsifError, match="do not fit"):
        linear_datamodelling_score(scores, masks.T, losses)


@pytest.mark.parametrize("seeds", [2, 3, 5, 6])
def test_the_noise_ceiling_is_what_the_expected_loss_reaches(seeds):
    source = np.random.default_rng(seeds)
    expected = source.normal(size=(4000, 2))
    losses = expected[:, None] + 1.5 * source.normal(size=(4000, seeds, 2))
    reached = pearson(expected.T, losses.mean(1).T)
    assert noise_ceiling(losses) == pytest.approx(reached, abs=0.03)
    with pytest.raises(MsifError, match="two seeds"):
        noise_ceiling(losses[:, :1])
