"""Norms of gradients that are so small or large that their squares are not of float32."""

import numpy as np
import pytest
import torch
from helpers import alone, documents, tiny_lm
from test_factors_dense import fitted

from msif.attribution.contributions import contributions
from msif.attribution.gradients import Side
from msif.attribution.representation import RepresentationScorer
from msif.attribution.scorers import InfluenceScorer
from msif.attribution.splitting import frames_of, split_vectors
from msif.curvature.filters import DampedInverse
from msif.curvature.preconditioners import EKFAC
from msif.data.documents import collate
from msif.models.objectives import CausalLM
from msif.models.outer import Outer, squared_norms, squares
from msif.models.select import track_modules

FACTORS = [1e-32, 1e-24, 1e24, 1e30]
TEXTS = documents([5, 9, 3], seed=9)


class Times(CausalLM):
    """The loss times a number, in float32: answers of which a model is certain, or losses of many tokens."""

    def __init__(self, factor):
        self.factor = factor

    def losses(self, outputs, batch, targets=None):
        return super().losses(outputs, batch, targets) * self.factor

    def loss_gradient(self, outputs, batch, targets=None):
        return super().loss_gradient(outputs, batch, targets) * self.factor


@pytest.fixture(scope="module")
def model():
    return tiny_lm(dtype=torch.float32)


@pytest.fixture(scope="module")
def tracked(model):
    return track_modules(model, "everything")  # tables are read by rows


def side_of(model, tracked, factor):
    return Side(model, tracked, Times(factor))


@pytest.mark.parametrize("route", ["gradient", "direct"])
@pytest.mark.parametrize("factor", FACTORS)
def test_scores_over_norms_are_those_of_gradients_of_any_size(model, tracked, monkeypatch, factor, route):
    monkeypatch.setattr("msif.attribution.scoring.cheapest_route", lambda *sizes: route)
    one, other = side_of(model, tracked, 1.0), side_of(model, tracked, factor)
    for normalize, of_query in (("unit", one), ("both", other)):
        queries = alone(documents([6], seed=3))
        expected = InfluenceScorer(one, one, normalize=normalize).score(queries, [collate(TEXTS)]).values
        scorer = InfluenceScorer(of_query, other, normalize=normalize)
        vectors = scorer.query_vectors(queries)
        found = scorer.score_vectors(vectors, [collate(TEXTS)]).values
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        parts = scorer.explain(vectors, [collate(TEXTS)])
        np.testing.assert_allclose([float(part.scores[0]) for part in parts], found[0], rtol=1e-3, atol=1e-5)
        assert [part.norm for part in parts] == pytest.approx(
            [factor * part.norm for part in contributions(one, vectors, [collate(TEXTS)])], rel=1e-4
        )


@pytest.mark.parametrize("factor", FACTORS)
def test_ranks_and_parts_of_a_query_have_no_size_of_their_own(model, factor):
    tracked = track_modules(model)
    _, _, factors = fitted(model, tracked, CausalLM(), [collate(documents([6, 8, 4], seed=5))])
    whole = [collate(documents([6], seed=3))]
    found = {}
    for number in (1.0, factor):
        side = side_of(model, tracked, number)
        scorer = InfluenceScorer(side, side, [EKFAC(factors, DampedInverse(0.1))], normalize="both", query_rank=2)
        vectors = scorer.query_vectors(whole)
        split = split_vectors(scorer, whole, frames_of(scorer, whole))
        products = [(split[n].dense() * vectors[n].dense()).sum() for n in vectors if split[n].left is not None]
        plain = InfluenceScorer(side, side, query_rank=2)
        plain.query_vectors(whole)
        found[number] = torch.stack([scorer.rank_errors[0], plain.rank_errors[0], sum(products)]).tolist()
    assert found[factor] == pytest.approx(found[1.0], rel=1e-3) and all(value > 0 for value in found[1.0])


def test_a_gradient_of_zero_scores_zero(model, tracked):
    zero, one = side_of(model, tracked, 0.0), side_of(model, tracked, 1.0)
    for normalize in ("unit", "both"):
        for query, candidate in ((zero, one), (one, zero), (zero, zero)):
            scorer = InfluenceScorer(query, candidate, normalize=normalize, query_rank=2)
            vectors = scorer.query_vectors(alone(documents([6])))
            assert (scorer.score_vectors(vectors, [collate(TEXTS)]).values == 0).all()
            assert all((part.tokens == 0).all() for part in scorer.explain(vectors, [collate(TEXTS)]))
            assert scorer.rank_errors.tolist() == pytest.approx([0.0] if query is zero else scorer.rank_errors.tolist())
            split = split_vectors(scorer, alone(documents([6])), frames_of(scorer, alone(documents([6]))))
            assert all(torch.isfinite(v.dense()).all() for v in split.values())


@pytest.mark.parametrize("factor", FACTORS)
def test_representations_have_directions_whatever_their_size(factor):
    model = tiny_lm(dtype=torch.float32)
    side = Side(model, track_modules(model), CausalLM())
    queries = alone(documents([6], seed=3))
    expected = RepresentationScorer(side).score(queries, [collate(TEXTS)]).values
    norm = model.gpt_neox.final_layer_norm
    with torch.no_grad():
        norm.weight *= factor
        norm.bias *= factor
    found = RepresentationScorer(side).score(queries, [collate(TEXTS)]).values
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("factor", [*FACTORS, 0.0])
def test_squares_of_rows_and_of_looked_up_rows(factor):
    rows = torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]]) * factor
    assert squares(rows).tolist() == pytest.approx([25 * factor**2, 0.0], rel=1e-6)
    right = torch.tensor([[[1.0], [2.0], [5.0]], [[3.0], [-3.0], [4.0]]]) * factor
    use = Outer(torch.tensor([[1, 1, 0], [2, 2, 0]]), right)
    assert squared_norms([use], 3).tolist() == pytest.approx([34 * factor**2, 16 * factor**2], rel=1e-6)
