"""Influence over all parameters against per-sequence gradients and dense inverses in float64."""

import numpy as np
import pytest
import torch
from helpers import alone, documents, tiny_classifier, tiny_lm
from test_parameter_ggn import dense, flat

from msif.attribution.gradients import Side
from msif.attribution.parameter_scorer import ParameterScorer, parameter_gradients
from msif.attribution.scorers import EnsembleScorer, InfluenceScorer
from msif.curvature.cg import CG
from msif.curvature.parameter_ggn import ParameterGGN
from msif.curvature.parameters import ParameterFunction, all_parameters, shared_parameters
from msif.data.documents import collate
from msif.errors import MsifError
from msif.models.objectives import CausalLM, SequenceClassification
from msif.models.select import track_modules

LENGTHS = [5, 9, 3, 7]


def of(model, objective):
    return ParameterFunction(model, all_parameters(model), objective)


def per_sequence(function, texts):
    """(N, P) gradients by autograd, one sequence at a time."""
    function.model.eval()
    weights = [function.model.get_parameter(p.path) for p in function.parameters]
    rows = []
    for text in alone(texts):
        loss = function.objective.losses(function.objective.outputs(function.model, text), text).sum()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]))
    return torch.stack(rows)


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_and_dot_products_match_autograd(tied):
    side = of(tiny_lm(tie_word_embeddings=tied), CausalLM())
    questions, texts = documents([4, 6, 5], seed=7, prompt=2), documents(LENGTHS, seed=9)
    expected = per_sequence(side, questions)
    # in two batches, out of order
    batches = [collate(questions[2:]), collate(questions[:2])]
    torch.testing.assert_close(flat(parameter_gradients(side, batches), side.parameters), expected)
    scores = ParameterScorer(side, side).score(batches, [collate(texts[2:]), collate(texts[:2])])
    assert scores.candidates.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(scores.values, (expected @ per_sequence(side, texts).T).numpy(), rtol=1e-8)


@pytest.mark.parametrize("modules", ["all", "everything"])
def test_over_the_tracked_maps_alone_it_is_the_influence_scorer(modules):
    model, lm = tiny_lm(), CausalLM()
    tracked = track_modules(model, modules)
    names = {m.name for m in tracked} | {f"{m.name}.{kind}" for m in tracked for kind in ("weight", "bias")}
    side = of(model, lm).restricted(names)
    assert (len(side.parameters) == len(all_parameters(model))) == (modules == "everything")
    queries, texts = [collate(documents([4, 6], seed=7))], [collate(documents(LENGTHS, seed=9))]
    for measurement in ("loss", "margin"):
        maps = InfluenceScorer(Side(model, tracked, lm), Side(model, tracked, lm), measurement=measurement)
        found = ParameterScorer(side, side, measurement=measurement)
        np.testing.assert_allclose(
            found.score(queries, texts).values, maps.score(queries, texts).values, rtol=1e-8, atol=1e-12
        )


def test_two_stages_with_a_replaced_head_match_dense_inverses():
    sizes = {"num_hidden_layers": 1, "intermediate_size": 8}
    pretrained = of(tiny_lm(0, **sizes), CausalLM())
    finetuned = of(tiny_classifier(1, **sizes), SequenceClassification(pad_token_id=0))
    last, first = shared_parameters(finetuned, pretrained)
    assert len(last.parameters) == len(first.parameters) == len(pretrained.parameters) - 1
    data = {first: [collate(documents([6, 8], seed=5))], last: [collate(documents([6, 8], seed=6, labels=True))]}
    inverses, solvers = {}, {}
    for side, damping in ((first, 0.02), (last, 0.04)):
        H = dense(side.model, side.parameters, side.objective, data[side])
        inverses[side] = torch.linalg.inv(H + damping * torch.eye(len(H)).double())
        operator = ParameterGGN(side.model, side.parameters, side.objective, data[side])
        solvers[side] = CG(operator, side.parameters, damping, iterations=500, tolerance=1e-10)
    questions, texts = documents([4, 6], seed=7, labels=True), documents(LENGTHS, seed=9)
    scorer = ParameterScorer(finetuned, pretrained, [solvers[first], solvers[last]])
    scores = EnsembleScorer([scorer]).score([collate(questions)], [collate(texts)])
    gradients = per_sequence(last, questions) @ inverses[last] @ inverses[first]
    np.testing.assert_allclose(scores.values, (gradients @ per_sequence(first, texts).T).numpy(), rtol=1e-6)


def test_bad_input_is_refused():
    side = of(tiny_lm(), CausalLM())
    text = [collate(documents([5]))]
    with pytest.raises(MsifError, match="share no"):
        ParameterScorer(side, of(torch.nn.Linear(2, 3).double(), CausalLM()))
    with pytest.raises(MsifError, match="no query"):
        ParameterScorer(side, side).score([], text)
    with pytest.raises(MsifError, match="no candidate"):
        ParameterScorer(side, side).score(text, [])
    with pytest.raises(MsifError, match="0 to 0"):
        ParameterScorer(side, side).score([collate(documents([5], first_index=3))], text)
    with pytest.raises(MsifError, match="unknown measurement"):
        ParameterScorer(side, side, measurement="odd").score(text, text)
    vectors = ParameterScorer(side, side).query_vectors(text)
    vectors["embed_in.weight"][:] = float("inf")
    with pytest.raises(MsifError, match="NaN or infinite"):
        ParameterScorer(side, side).score_vectors(vectors, text)
