"""Self-influence against dense inverses and gradients of autograd's own, in float64."""

import pytest
from helpers import alone, dense_gradients, documents, tiny_lm
from test_factors_dense import fitted
from test_influence import dense_inverse

from msif.attribution.gradients import Side
from msif.attribution.logra import LoGraScorer
from msif.attribution.scorers import InfluenceScorer
from msif.attribution.segments import SegmentedScorer
from msif.attribution.trak import TRAKCheckpoint, TRAKOptions
from msif.curvature.cg import CG
from msif.curvature.filters import Accumulation, DampedInverse, Decay
from msif.curvature.preconditioners import EKFAC
from msif.data.documents import collate
from msif.models.objectives import CausalLM
from msif.models.select import track_modules

TEXTS = documents([6, 4, 9], seed=4)


def stage_of(seed):
    """(A side, its factors)."""
    model, lm = tiny_lm(seed), CausalLM()
    tracked = track_modules(model, "layers")
    return Side(model, tracked, lm), fitted(model, tracked, lm, [collate(documents([6, 8, 4], seed=seed))])[2]


@pytest.fixture(scope="module")
def stages():
    return stage_of(0), stage_of(1)


def gradients(side):
    """Of each document on its own."""
    side.model.eval()
    losses = (side.objective.losses(side.objective.outputs(side.model, text), text) for text in alone(TEXTS))
    return [dense_gradients(side.model, side.tracked, loss.sum()) for loss in losses]


def batches():
    """In another order than their numbers'."""
    return [collate([TEXTS[2], TEXTS[0]]), collate([TEXTS[1]])]


def test_it_is_that_of_the_first_stage_alone_whatever_is_asked(stages):
    (first, f_pt), (last, f_ft) = stages
    inverses = [EKFAC(f_pt, DampedInverse(0.02)), EKFAC(f_ft, DampedInverse(0.03, alpha=0.01))]
    expected = [
        sum(g[n].flatten() @ dense_inverse(f_pt[n], 0.02) @ g[n].flatten() for n in g).item() for g in gradients(first)
    ]
    for options in ({}, {"normalize": "unit"}, {"normalize": "both", "query_rank": 2}):
        found = InfluenceScorer(last, first, inverses, **options).self_influence(batches())
        assert found.tolist() == pytest.approx(expected, rel=1e-8)
    single = InfluenceScorer(first, first, inverses[:1])
    scores = single.score(alone(TEXTS), [collate(TEXTS)]).values
    assert scores.diagonal().tolist() == pytest.approx(expected, rel=1e-8)


def test_of_plain_gradients_it_is_their_squared_norm(stages):
    (first, _), (last, _) = stages
    squares = [sum(g.square().sum().item() for g in own.values()) for own in gradients(first)]
    assert InfluenceScorer(last, first).self_influence(batches()).tolist() == pytest.approx(squares)


def test_of_segments_it_is_what_the_first_stage_alone_would_score(stages):
    """Fine-tuning's segments have no part in it, and each earlier segment has what later ones keep."""
    (one, f_one), (two, f_two) = stages
    accumulated = [EKFAC(f_one, Accumulation(40.0)), EKFAC(f_two, Accumulation(30.0))]
    kept, later = EKFAC(f_two, Decay(30.0)), EKFAC(f_one, Decay(7.0))
    whole = SegmentedScorer(one, [one, two], accumulated, [kept, later])
    alone_in_it = SegmentedScorer(two, [one, two], accumulated, [kept])
    expected = alone_in_it.score(alone(TEXTS), [collate(TEXTS)]).values.diagonal()
    assert whole.self_influence(batches()).tolist() == pytest.approx(expected.tolist(), rel=1e-8)
    assert not whole.solves


@pytest.mark.parametrize("scorer", [LoGraScorer, TRAKCheckpoint])
def test_of_projected_gradients_it_is_a_documents_score_for_itself(stages, scorer):
    (side, _), _ = stages
    data = {"curvature_data" if scorer is LoGraScorer else "kernel_data": [collate(documents([6, 8, 4], seed=2))]}
    if scorer is TRAKCheckpoint:  # of the loss on both sides
        data["options"] = TRAKOptions(output="loss")
    own = scorer(side, side, **data)
    expected = own.score(alone(TEXTS), [collate(TEXTS)]).values.diagonal()
    assert own.self_influence(batches()).tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    again = scorer(side, side, **data)  # before any query has been taken in
    assert again.self_influence(batches()).tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_what_is_solved_for_says_so(stages):
    (side, factors), _ = stages
    solver = CG(None, side.tracked, 0.1)
    assert InfluenceScorer(side, side, [solver]).solves
    assert not InfluenceScorer(side, side, [EKFAC(factors), solver]).solves
    assert not InfluenceScorer(side, side).solves
