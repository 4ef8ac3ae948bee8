"""How scores are judged by retrainings: of single members, of ensembles, and each by its own seed."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.common.judging import Judge, random_halves
from msif.draws import generator
from msif.evaluation.datamodelling import linear_datamodelling_score


def test_intervals_hold_the_score_and_a_better_method_is_told_from_a_worse_one():
    draw = np.random.default_rng(0)
    masks = draw.random((80, 50)) < 0.5
    true = draw.standard_normal((12, 50))
    losses = (-(masks @ true.T))[:, None, :] + 2 * draw.standard_normal((80, 6, 12))
    judge = Judge(masks, losses)
    assert 0.9 < judge.ceiling <= 1
    noisy = true + draw.standard_normal(true.shape)
    for scores in (true, noisy):
        interval = judge.interval(scores)
        assert interval.low < interval.mean < interval.high
        assert interval.mean == pytest.approx(linear_datamodelling_score(scores, masks, losses.mean(1)).mean())
    assert judge.difference(true, noisy).low > 0 > judge.difference(noisy, true).high
    several = true + 2 * draw.standard_normal((4, *true.shape))
    assert judge.single(several) < judge.together(several, 2) < judge.together(several)
    assert judge.together(several, 1) == pytest.approx(judge.single(several))


def test_each_seed_is_judged_by_its_own_retrainings():
    draw = np.random.default_rng(1)
    masks = draw.random((60, 40)) < 0.5
    true = draw.standard_normal((2, 5, 40))  # two seeds whose models have nothing in common
    losses = np.stack([-(masks @ one.T) for one in true], axis=1)
    judge = Judge(masks, losses)
    own = judge.own(true)
    assert own.mean == pytest.approx(1) and own.low == pytest.approx(1)
    assert abs(judge.own(true[::-1]).mean) < 0.3
    assert judge.score(true.mean(0)) == pytest.approx(1)
    noisy = true + 2 * draw.standard_normal(true.shape)
    expected = [linear_datamodelling_score(noisy[s], masks, losses[:, s]).mean() for s in range(2)]
    interval = judge.own(noisy)
    assert interval.low < interval.mean < interval.high and interval.mean == pytest.approx(np.mean(expected))
    assert judge.own_difference(true, noisy).low > 0
    same = judge.own(noisy[:1])  # of what reads no model, by all seeds
    assert same.mean == pytest.approx(judge.own(np.repeat(noisy[:1], 2, axis=0)).mean)


def test_several_orders_are_averaged_and_tell_a_seeds_own_ceiling():
    """Against noise of orders, the expected loss of a seed reaches the ceiling that its orders tell."""
    draw = np.random.default_rng(2)
    masks = draw.random((400, 30)) < 0.5
    true = draw.standard_normal((2, 6, 30))
    expected = np.stack([-(masks @ one.T) for one in true], axis=1)[:, :, None]
    losses = expected + 4 * draw.standard_normal((400, 2, 4, 6))
    judge = Judge(masks, losses)
    assert np.array_equal(judge.losses, losses.mean(2)) and judge.own_ceiling is not None
    assert judge.own(true).mean == pytest.approx(judge.own_ceiling, abs=0.03) and judge.own_ceiling < 0.97
    assert Judge(masks, losses[:, :, 0]).own_ceiling is None
    some = judge.of_queries([4, 1])
    assert some.own(true[:, [4, 1]]).mean == pytest.approx(
        np.mean([linear_datamodelling_score(true[s][[4, 1]], masks, judge.losses[:, s][:, [4, 1]]) for s in (0, 1)])
    )


def test_halves_are_halves_and_the_seed_decides():
    masks = random_halves(generator(0, 1), 8, 9)
    assert masks.shape == (8, 9) and (masks.sum(1) == 4).all() and len(np.unique(masks, axis=0)) == 8
    assert np.array_equal(masks, random_halves(generator(0, 1), 8, 9))
    assert not np.array_equal(masks, random_halves(generator(1, 1), 8, 9))


def test_scores_that_are_all_alike_foretell_nothing():
    draw = np.random.default_rng(3)
    masks = np.stack([draw.permutation(20) < 10 for _ in range(30)])
    true = draw.standard_normal((2, 20))
    losses = np.repeat(-(masks @ true.T)[:, None], 2, axis=1)
    half = true.copy()
    half[1] = 0.1  # of all halves of one size the sum is one
    judge = Judge(masks, losses)
    assert judge.own(true[None]).mean == pytest.approx(1) and judge.own(half[None]).mean == pytest.approx(0.5)
