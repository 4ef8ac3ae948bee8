"""What retraining can teach an additive score."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from experiments.common.judging import random_halves
from experiments.retraining.additive import taught_additive, taught_scores


def world(noise, documents=40, halves=120, queries=6):
    """Losses that are sums of true effects, with noise, and scores that know these effects in part."""
    draw = np.random.default_rng(0)
    masks = random_halves(draw, halves, documents)
    true = draw.standard_normal((queries, documents)) * (draw.random((queries, documents)) < 0.3) * 3
    sums = -(masks @ true.T)
    losses = sums + noise * sums.std() * draw.standard_normal(sums.shape)
    scores = true + 1.5 * draw.standard_normal(true.shape)
    own = np.mean([spearmanr(-(masks @ s), loss)[0] for s, loss in zip(scores, losses.T, strict=True)])
    best = np.mean([spearmanr(-(masks @ s), loss)[0] for s, loss in zip(true, losses.T, strict=True)])
    return masks, losses, scores, true, own, best


def test_it_lies_between_the_scores_and_the_true_effects():
    masks, losses, scores, _, own, best = world(noise=0.5)
    assert own + 0.1 < taught_additive(masks, losses, scores) <= best


def test_true_effects_need_no_correction():
    masks, losses, _, true, _, best = world(noise=0.5)
    assert taught_additive(masks, losses, true) == pytest.approx(best, abs=0.05)


def test_nothing_is_learnt_from_noise():
    """What is foretold was not taught: without an effect there is none."""
    masks, losses, scores, *_ = world(noise=0.0)
    shuffled = np.random.default_rng(1).permutation(losses)
    assert abs(taught_additive(masks, shuffled, scores)) < 0.15


def test_taught_scores_order_documents_better():
    masks, losses, scores, true, own, _ = world(noise=0.5)
    taught = taught_scores(masks, losses, scores)
    agreement = lambda found: np.mean([spearmanr(*pair)[0] for pair in zip(found, true, strict=True)])  # noqa: E731
    assert agreement(taught) > agreement(scores) + 0.05
    assert np.mean([spearmanr(-(masks @ s), loss)[0] for s, loss in zip(taught, losses.T, strict=True)]) > own
