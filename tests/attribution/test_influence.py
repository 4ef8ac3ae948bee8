"""Influence scores against a separate, dense implementation, and their parts."""

import numpy as np
import pytest
import torch
from helpers import MLP, Classify, alone, dense_gradients, documents, examples, tiny_classifier, tiny_lm, track_plain
from test_factors_dense import fitted

from msif.attribution.gradients import Side
from msif.attribution.scorers import EnsembleScorer, InfluenceScorer
from msif.curvature.filters import DampedInverse
from msif.curvature.preconditioners import EKFAC
from msif.data.documents import collate
from msif.errors import MsifError
from msif.models.objectives import CausalLM, SequenceClassification
from msif.models.select import track_modules

LENGTHS = [5, 9, 3, 7]


def dense_inverse(f, damping):
    """The damped inverse of one module as an explicit matrix over vec(W̄), block by block."""
    blocks, rows, columns = f.Lambda.shape
    H = torch.zeros(blocks * rows * columns, blocks * rows * columns, dtype=torch.float64)
    for b in range(blocks):
        Q = torch.kron(f.Q_G[b], f.Q_A)
        part = slice(b * rows * columns, (b + 1) * rows * columns)
        H[part, part] = Q @ torch.diag(f.Lambda[b].flatten()) @ Q.T
    return torch.linalg.inv(H + damping * torch.eye(len(H)).double())


@pytest.fixture(scope="module")
def pair():
    """A pre-trained LM and a classifier on the same body: the head was replaced."""
    torch.manual_seed(0)
    pretrained, finetuned = tiny_lm(0), tiny_classifier(1)
    lm, head = CausalLM(), SequenceClassification(pad_token_id=0)
    tracked = [track_modules(model, "layers") for model in (finetuned, pretrained)]
    sides = Side(finetuned, tracked[0], head), Side(pretrained, tracked[1], lm)
    _, _, f_pt = fitted(pretrained, sides[1].tracked, lm, [collate(documents([6, 8, 4], seed=5))])
    _, _, f_ft = fitted(finetuned, sides[0].tracked, head, [collate(documents([6, 8, 4], seed=6, labels=True))])
    return sides, f_pt, f_ft


def multi_stage(pair, **options):
    (query_side, candidate_side), f_pt, f_ft = pair
    stages = [EKFAC(f_pt, DampedInverse(0.02)), EKFAC(f_ft, DampedInverse(0.03, alpha=0.01))]
    return InfluenceScorer(query_side, candidate_side, stages, **options)


def queries():
    return [
        collate(documents([4, 6], seed=7, labels=True)),
        collate(documents([5], seed=8, labels=True, first_index=2)),
    ]


def test_multi_stage_scores_with_a_replaced_head_match_a_dense_implementation(pair):
    (query_side, candidate_side), f_pt, f_ft = pair
    texts = documents(LENGTHS, seed=9)
    scores = multi_stage(pair).score(queries(), [collate(texts[:3]), collate(texts[3:])])
    assert scores.axes == ("query", "candidate") and scores.values.shape == (3, 4)
    query_side.model.eval(), candidate_side.model.eval()
    for q, query in enumerate(
        [
            single
            for batch in (documents([4, 6], seed=7, labels=True), documents([5], seed=8, labels=True))
            for single in alone(batch)
        ]
    ):
        losses = query_side.objective.losses(query_side.objective.outputs(query_side.model, query), query)
        m = dense_gradients(query_side.model, query_side.tracked, losses.sum())
        for z, text in enumerate(alone(texts)):
            losses = candidate_side.objective.losses(candidate_side.objective.outputs(candidate_side.model, text), text)
            gradient = dense_gradients(candidate_side.model, candidate_side.tracked, losses.sum())
            expected = sum(
                m[n].flatten() @ dense_inverse(f_ft[n], 0.04) @ dense_inverse(f_pt[n], 0.02) @ gradient[n].flatten()
                for n in m
            )
            assert scores.values[q, z] == pytest.approx(float(expected), rel=1e-8, abs=1e-10)


def test_every_route_gives_the_same_scores(pair, monkeypatch):
    texts = [collate(documents(LENGTHS, seed=9))]
    import msif.attribution.scoring as scoring

    results = {}
    for route in ("gradient", "direct"):
        monkeypatch.setattr(scoring, "cheapest_route", lambda *sizes, route=route: route)
        results[route] = multi_stage(pair).score(queries(), texts).values
    monkeypatch.setattr(scoring, "cheapest_route", lambda *sizes: "low-rank" if sizes[-1] else "direct")
    scorer = multi_stage(pair, query_rank=7)
    low = scorer.score(queries(), texts).values
    np.testing.assert_allclose(results["gradient"], results["direct"], rtol=1e-9, atol=1e-12)
    assert 0 < scorer.rank_errors.max() < 0.5
    assert np.abs(low - results["direct"]).max() < 0.6 * np.abs(results["direct"]).max()


def test_low_rank_error_is_the_relative_distance_of_the_vectors(pair):
    full, low = multi_stage(pair).query_vectors(queries()), multi_stage(pair, query_rank=2)
    factored = low.query_vectors(queries())
    lost = sum((full[n].weight - factored[n].dense()).square().sum((1, 2)) for n in full)
    whole = sum(full[n].weight.square().sum((1, 2)) + full[n].bias.square().sum(1) for n in full)
    torch.testing.assert_close(low.rank_errors, (lost / whole).sqrt())
    assert multi_stage(pair, query_rank=99).score(queries(), [collate(documents([5]))]).values == pytest.approx(
        multi_stage(pair).score(queries(), [collate(documents([5]))]).values
    )


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("normalize", ["none", "unit", "both"])
def test_parts_by_token_and_by_block_sum_to_the_score(pair, rank, normalize):
    scorer = multi_stage(pair, query_rank=rank, normalize=normalize)
    vectors = scorer.query_vectors(queries())
    batches = [collate(documents(LENGTHS, seed=9))]
    scores = scorer.score_vectors(vectors, batches)
    for part in scorer.explain(vectors, batches):
        column = scores.values[:, part.index]
        np.testing.assert_allclose(part.tokens.sum(1), column, rtol=1e-8)
        np.testing.assert_allclose(part.blocks.sum(1), column, rtol=1e-8)
        assert part.tokens.shape[1] == LENGTHS[part.index]


def test_gradient_dot_product_and_cosine_are_the_identity_case(pair):
    (_, side), _, _ = pair
    texts = documents(LENGTHS, seed=9)
    side.model.eval()
    rows = []
    for text in alone(texts):
        loss = side.objective.losses(side.objective.outputs(side.model, text), text).sum()
        rows.append(torch.cat([g.flatten() for g in dense_gradients(side.model, side.tracked, loss).values()]))
    G = torch.stack(rows)
    dot = InfluenceScorer(side, side).score(alone(texts), [collate(texts)])
    cosine = InfluenceScorer(side, side, normalize="both").score(alone(texts), [collate(texts)])
    np.testing.assert_allclose(dot.values, (G @ G.T).numpy(), rtol=1e-8)
    unit = G / G.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(cosine.values, (unit @ unit.T).numpy(), rtol=1e-8)


def test_a_document_is_its_own_proponent_and_upweighting_it_lowers_the_loss(pair):
    """The sign: a step of training on z lowers the query's loss where the score is positive."""
    (_, side), _, _ = pair
    texts = documents([6, 6, 6, 6], seed=3)
    scores = InfluenceScorer(side, side).score([collate(texts[:1])], [collate(texts)]).values[0]
    assert scores[0] > 0
    import copy

    for z, text in enumerate(alone(texts)):
        model = copy.deepcopy(side.model).eval()
        parameters = [p for m in side.tracked for p in model.get_submodule(m.path).parameters()]
        before = side.objective.losses(side.objective.outputs(model, alone(texts)[0]), alone(texts)[0]).sum()
        loss = side.objective.losses(side.objective.outputs(model, text), text).sum()
        with torch.no_grad():
            for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                p -= 1e-7 * g
        after = side.objective.losses(side.objective.outputs(model, alone(texts)[0]), alone(texts)[0]).sum()
        assert (before - after).item() / 1e-7 == pytest.approx(scores[z], rel=1e-3)


@pytest.mark.parametrize("name", ["margin", "logit"])
def test_other_measurements_keep_the_sign(pair, name):
    (_, side), _, _ = pair
    texts = [collate(documents(LENGTHS, seed=9))]
    query = [collate(documents([6], seed=9, prompt=5))]
    loss, other = (InfluenceScorer(side, side, measurement=m).score(query, texts).values[0] for m in ("loss", name))
    assert np.corrcoef(loss, other)[0, 1] > 0.5


def test_margin_gradient_is_the_loss_gradient_over_one_minus_p(pair):
    """∇L = −(1−p) ∇ margin for one token (docs/method.md), so the two scores differ by that factor."""
    (_, side), _, _ = pair
    texts = [collate(documents(LENGTHS, seed=9))]
    query = [collate(documents([6], seed=9, prompt=5))]
    loss, margin = (
        InfluenceScorer(side, side, measurement=m).score(query, texts).values[0] for m in ("loss", "margin")
    )
    side.model.eval()
    p = torch.exp(-side.objective.losses(side.objective.outputs(side.model, query[0]), query[0])).item()
    np.testing.assert_allclose(loss, (1 - p) * margin, rtol=1e-8)


def test_a_callable_measurement_and_an_ensemble(pair):
    (_, side), _, _ = pair
    texts, query = [collate(documents(LENGTHS, seed=9))], [collate(documents([6], seed=9))]
    plain = InfluenceScorer(side, side)
    twice = InfluenceScorer(side, side, measurement=lambda outputs, batch: 2 * side.objective.losses(outputs, batch))
    mean = EnsembleScorer([plain, twice]).score(query, texts)
    np.testing.assert_allclose(mean.values, 1.5 * plain.score(query, texts).values, rtol=1e-10)


def test_padding_batch_composition_and_order_change_nothing(pair):
    texts = documents([3, 9, 5, 7, 4, 12], seed=11)
    together = multi_stage(pair).score(queries(), [collate(texts)]).values
    apart = multi_stage(pair).score(queries(), alone(texts[::-1]))
    np.testing.assert_allclose(together, apart.values, rtol=1e-8)
    assert apart.candidates.tolist() == list(range(6))


def test_float32_agrees_with_float64_and_bfloat16_keeps_the_ranking():
    from scipy.stats import spearmanr

    scores = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        model = tiny_lm(0, dtype, hidden_size=32, intermediate_size=64)
        side = Side(model, track_modules(model), CausalLM())
        batches = [collate(documents([8] * 40, seed=2))]
        scores[dtype] = InfluenceScorer(side, side).score([collate(documents([8], seed=3))], batches).values[0]
    np.testing.assert_allclose(scores[torch.float32], scores[torch.float64], rtol=2e-3, atol=1e-3)
    assert spearmanr(scores[torch.bfloat16], scores[torch.float64]).statistic >= 0.98


def test_any_number_of_stages_and_models(pair):
    """Three stages of a plain classifier: the preconditioners chain."""
    torch.manual_seed(0)
    model = MLP([4, 5, 3]).double()
    tracked, objective = track_plain(model), Classify()
    batches = examples(torch.randn(8, 4).double(), torch.randint(0, 3, (8,)))
    _, _, f = fitted(model, tracked, objective, batches)
    side = Side(model, tracked, objective)
    stages = [EKFAC(f, DampedInverse(d)) for d in (0.1, 0.2, 0.3)]
    got = InfluenceScorer(side, side, stages).score(batches, batches).values
    G = {m.name: [] for m in tracked}
    for batch in examples(batches[0].x, batches[0].y, size=1):
        for n, g in dense_gradients(model, tracked, objective.losses(model(batch.x), batch).sum()).items():
            G[n].append(g.flatten())
    expected = 0
    for n, rows in G.items():
        rows = torch.stack(rows)
        expected = (
            expected + rows @ dense_inverse(f[n], 0.3) @ dense_inverse(f[n], 0.2) @ dense_inverse(f[n], 0.1) @ rows.T
        )
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-7)


def test_refusals(pair):
    (query_side, side), _, f_ft = pair
    with pytest.raises(MsifError, match="0 or larger"):
        DampedInverse(-1.0)
    with pytest.raises(MsifError, match="normalize"):
        InfluenceScorer(side, side, normalize="l2")
    with pytest.raises(MsifError, match="measurement"):
        InfluenceScorer(side, side, measurement="perplexity").score(queries(), [])
    with pytest.raises(MsifError, match="no candidate"):
        InfluenceScorer(side, side).score([collate(documents([5]))], [])
    with pytest.raises(MsifError, match="no query"):
        InfluenceScorer(side, side).score([], [collate(documents([5]))])
    with pytest.raises(MsifError, match="singular"):
        InfluenceScorer(query_side, query_side, [EKFAC(f_ft, DampedInverse(0.0))]).score(queries(), queries())
