"""An index of H^(−1/2) ∇: its dot products against exact multi-stage influence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_dense import QUESTIONS, TEXTS, model_of, tokenizer  # noqa: F401
from test_everything import check

import msif
from msif.attribution.gradients import query_gradients
from msif.attribution.scorers import InfluenceScorer
from msif.curvature.filters import DampedInverse
from msif.curvature.preconditioners import EKFAC
from msif.data.documents import collate
from msif.errors import MsifError
from msif.index.scorer import IndexScorer
from msif.index.settings import IndexSettings
from msif.indexing import make_index, opened_plan

SMALL = {"vocab_size": 258, "n_layer": 1, "n_embd": 8, "n_head": 2}


@pytest.fixture(scope="module")
def pair(tokenizer, tmp_path_factory):  # noqa: F811
    """Two stages with factors; all queries and documents are those of the other tests."""
    folder = tmp_path_factory.mktemp("pair")
    stages = []
    for number in range(2):
        model = model_of("gpt2", **SMALL)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * number * torch.randn_like(parameter))
        stages.append(msif.Stage(model, data=TEXTS, tokenizer=tokenizer, factors=folder / str(number), modules="maps"))
        assert stages[-1].store
    return stages


def index_of(stage, path, **settings):
    return make_index(stage, path, IndexSettings(dtype="float32", **settings), factors=stage.factors, damping_scale=0.2)


def scorer_of(index, pair, later=()):
    first, last = pair
    side = last.side if later else first.side
    return IndexScorer(opened_plan(index, first, first.factors), index, side, later)


def exact(pair, later=()):
    first, last = pair
    P = EKFAC(first.store, DampedInverse(None, 0.2))
    scorer = InfluenceScorer(last.side if later else first.side, first.side, [P, *later])
    return scorer.score([collate(QUESTIONS)], first.batches).values


@pytest.mark.parametrize("stages", [1, 2])
def test_with_all_entries_it_is_exact_influence(pair, tmp_path, stages):
    first, last = pair
    later = [EKFAC(last.store, DampedInverse(None, 0.1))] if stages == 2 else []
    index = index_of(first, tmp_path / "index", basis="leading", projection=64)
    parameters = sum(module.d_out * module.shape[1] for module in first.tracked)
    assert index.width == min(parameters, 2 * 64**2) == parameters
    scorer = scorer_of(index, pair, later)
    found = scorer.score([collate(QUESTIONS)], first.batches)
    check(found.values, exact(pair, later), 2e-5)


def test_projections_estimate_it_without_bias(pair, tmp_path):
    first, last = pair
    later = [EKFAC(last.store, DampedInverse(None, 0.1))]
    target, found = exact(pair, later), []
    for seed in range(20):
        index = index_of(first, tmp_path / f"index{seed}", projection=16, seed=seed)
        found.append(scorer_of(index, pair, later).score([collate(QUESTIONS)], first.batches).values)
    mean, error = np.mean(found, 0), np.std(found, 0) / len(found) ** 0.5
    assert np.abs((mean - target) / error).max() < 5 and np.corrcoef(mean.ravel(), target.ravel())[0, 1] > 0.8


def test_leading_entries_are_those_that_count(pair, tmp_path):
    """Of as many features, the entries with the largest (Λ f(Λ))²: by the definition, from Λ alone."""
    first, _ = pair
    index = index_of(first, tmp_path / "index", basis="leading", projection=3)
    plan = opened_plan(index, first, first.factors)
    P, worth = DampedInverse(None, 0.2), {}
    for module in plan.side.tracked:
        Lambda = first.store[module.name].Lambda
        worth[module.name] = (Lambda * P(Lambda, module.name)).flatten()
    every = torch.cat(list(worth.values())).sort(descending=True).values
    kept = plan.features._entries(plan.side.tracked)
    assert sum(map(len, kept.values())) == index.width == 18
    assert min(worth[name][own].min() for name, own in kept.items() if len(own)) >= every[17]


def test_its_factors_must_be_given_and_be_the_same(pair, tmp_path):
    first, last = pair
    index = index_of(first, tmp_path / "index", projection=2)
    with pytest.raises(MsifError, match="was made with factors: give them"):
        opened_plan(index, first)
    with pytest.raises(MsifError, match=r"fitted for another model|weights of .* have changed"):
        opened_plan(index, first, last.factors)
    with pytest.raises(MsifError, match="built with another model"):
        opened_plan(index, last, last.factors)
    plain = make_index(first, tmp_path / "plain", IndexSettings(projection=2), second_moments="none")
    assert plain is not None
    with pytest.raises(MsifError, match="was made without factors"):
        opened_plan(plain, first, first.factors)
    with pytest.raises(MsifError, match="takes no second moments"):
        make_index(first, tmp_path / "x", factors=first.factors, second_moments="estimate")
    with pytest.raises(MsifError, match="leading entries are those of EK-FAC"):
        make_index(first, tmp_path / "y", IndexSettings(basis="leading"))
    assert not (tmp_path / "x").exists() and not (tmp_path / "y").exists()


def test_parts_sum_to_scores(pair, tmp_path):
    first, _ = pair
    for number, (settings, factors) in enumerate(
        [
            ({"projection": 4}, None),
            ({"projection": 4}, first.factors),
            ({"projection": 4, "basis": "leading"}, first.factors),
        ]
    ):
        own = IndexSettings(dtype="float32", **settings)
        index = make_index(first, tmp_path / f"{number}", own, factors=factors)
        assert index is not None
        for normalize in ("none", "unit"):
            plan = opened_plan(index, first, factors)
            scorer = IndexScorer(plan, index, plan.side, r="train", normalize=normalize)
            vectors = scorer.query_vectors([collate(QUESTIONS)])
            scores = scorer.score_vectors(vectors, first.batches)
            for part in scorer.explain(vectors, first.batches):
                column = list(scores.candidates).index(part.index)
                check(part.scores.float(), scores.values[:, column], 5e-3)  # R amplifies rounding
                check(part.tokens.sum(1), part.scores)


def test_query_gradients_are_projected_like_documents(pair, tmp_path):
    first, _ = pair
    index = index_of(first, tmp_path / "index", projection=4)
    plan = opened_plan(index, first, first.factors)
    vectors = query_gradients(plan.side, first.batches)
    by_rows = plan.features.of_vectors(plan.side.tracked, dict(vectors))
    places = [index.places[digest] for _, digest in first.corpus.hashes(("text",))]
    check(by_rows.float(), index.rows(places), 2e-5)
