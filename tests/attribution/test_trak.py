"""TRAK against explicit gradients and matrices, in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import MLP, Classify, SquaredError, alone, dense_gradients, documents, examples, tiny_lm, track_plain
from test_projection import explicit

from msif.attribution.gradients import Side
from msif.attribution.projection import Projection
from msif.attribution.scorers import EnsembleScorer, InfluenceScorer
from msif.attribution.trak import TRAKCheckpoint, TRAKOptions, TRAKScorer, mean_doubt
from msif.data.documents import collate
from msif.errors import MsifError
from msif.models.objectives import CausalLM
from msif.models.select import track_modules

TEXTS = documents([5, 9, 3, 7, 6, 4], seed=3)
QUERIES = documents([6, 4], seed=4, prompt=2)
SMALL = Projection(3, 4, 12, seed=5)


def lm_side(seed=0):
    """Confident and unconfident predictions, so that where Q is applied matters."""
    model = tiny_lm(seed)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(6)
    return Side(model, track_modules(model, "mlp"), CausalLM())


def predictions(side, text):
    """log p of each supervised token, one graph."""
    side.model.eval()
    logits = side.objective.outputs(side.model, text)[0, :-1]
    targets, supervised = text.input_ids[0, 1:], text.supervised[0, 1:]
    return torch.log_softmax(logits, -1).gather(-1, targets[:, None])[supervised, 0]


def margins(side, text):
    """log p/(1−p) of each supervised token, and 1−p."""
    log_p = predictions(side, text)
    return log_p - torch.log1p(-log_p.exp()), 1 - log_p.detach().exp()


def projected(side, projection, value):
    gradients = dense_gradients(side.model, side.tracked, value)
    return explicit(projection, side.tracked, {name: G[None] for name, G in gradients.items()})[0]


def direct(side, projection, damping, weighting, kernel_texts=TEXTS):
    """(φ(q)ᵀ (ΦᵀΦ + λI)⁻¹ φ(z), Q(z)) with margins as they are, not negated, as the paper writes them."""
    Phi = torch.stack([projected(side, projection, margins(side, z)[0].sum()) for z in alone(kernel_texts)])
    inverse = torch.linalg.inv(Phi.T @ Phi + damping * torch.eye(Phi.shape[1]).double())
    queries = torch.stack([projected(side, projection, margins(side, q)[0].sum()) for q in alone(QUERIES)])
    columns, doubts = [], []
    for z in alone(TEXTS):
        m, doubt = margins(side, z)
        doubts.append(doubt.mean())
        if weighting == "token":
            columns.append(sum(w * projected(side, projection, one) for w, one in zip(doubt, m, strict=True)))
        else:
            columns.append(projected(side, projection, m.sum()))
    return queries @ inverse @ torch.stack(columns).T, torch.stack(doubts)


def close(got, expected):
    np.testing.assert_allclose(got.values, expected.numpy(), rtol=1e-6, atol=1e-8 * float(expected.abs().max()))


def test_scores_of_one_checkpoint_match_the_formula():
    side = lm_side()
    batches = [collate(TEXTS[:4]), collate(TEXTS[4:])]
    for weighting in ("token", "example"):
        product, doubt = direct(side, SMALL, 0.7, weighting)
        scorer = TRAKScorer([side], SMALL, weighting=weighting, damping=0.7)
        scores = scorer.score(alone(QUERIES), batches)
        close(scores, product if weighting == "token" else product * doubt)
        assert scores.values.shape == (2, 6) and scores.candidates.tolist() == list(range(6))


@pytest.mark.parametrize("weighting", ["token", "example"])
def test_self_influence_is_of_the_loss_on_both_sides(weighting):
    """φ_L(d)ᵀ (ΦᵀΦ + λI)⁻¹ φ_L(d), with −Q(d) φ_m(d) for φ_L(d) where each example has one Q."""
    side = lm_side()
    Phi = torch.stack([projected(side, SMALL, margins(side, z)[0].sum()) for z in alone(TEXTS)])
    inverse = torch.linalg.inv(Phi.T @ Phi + 0.7 * torch.eye(Phi.shape[1]).double())
    expected = []
    for z in alone(TEXTS):
        m, doubt = margins(side, z)
        if weighting == "token":
            own = projected(side, SMALL, -predictions(side, z).sum())
        else:
            own = -doubt.mean() * projected(side, SMALL, m.sum())
        expected.append(float(own @ inverse @ own))
    options = TRAKOptions(weighting=weighting, damping=0.7)
    checkpoint = TRAKCheckpoint(side, side, SMALL, options, [collate(TEXTS)])
    batches = [collate([TEXTS[2], TEXTS[0]]), collate([TEXTS[3], TEXTS[1]]), collate([TEXTS[5], TEXTS[4]])]
    assert checkpoint.self_influence(batches).tolist() == pytest.approx(expected, rel=1e-6)
    assert min(expected) > 0


def test_an_ensemble_averages_kernels_and_doubts_apart():
    sides = [lm_side(seed) for seed in (0, 1, 2)]
    parts = {}
    for weighting in ("token", "example"):
        parts[weighting] = [
            direct(side, replace(SMALL, seed=SMALL.seed + i), 0.7, weighting) for i, side in enumerate(sides)
        ]
        scores = TRAKScorer(sides, SMALL, weighting=weighting, damping=0.7).score(alone(QUERIES), alone(TEXTS))
        products, doubts = (torch.stack(list(values)).mean(0) for values in zip(*parts[weighting], strict=True))
        close(scores, products if weighting == "token" else products * doubts)
    singles = [TRAKScorer([side], replace(SMALL, seed=SMALL.seed + i), damping=0.7) for i, side in enumerate(sides)]
    mean = EnsembleScorer(singles).score(alone(QUERIES), alone(TEXTS))
    close(mean, torch.stack([product for product, _ in parts["token"]]).mean(0))


def test_weighting_each_token_is_the_loss_gradient():
    """∇L = −Σ_t (1−p_t) ∇m_t exactly, and one Q a sequence is not that."""
    side = lm_side()
    projection, distances = Projection(99, 99), []
    for z in alone(TEXTS):
        m, doubt = margins(side, z)
        by_token = -sum(w * projected(side, projection, one) for w, one in zip(doubt, m, strict=True))
        by_example = -doubt.mean() * projected(side, projection, m.sum())
        loss = projected(side, projection, -predictions(side, z).sum())
        torch.testing.assert_close(by_token, loss, rtol=1e-9, atol=1e-11)
        distances.append(float((by_example - loss).norm() / loss.norm()))
    assert max(distances) > 0.1


def test_both_weightings_agree_where_there_is_one_prediction():
    torch.manual_seed(0)
    model = MLP([4, 5, 3]).double()
    side = Side(model, track_plain(model), Classify())
    data = examples(torch.randn(40, 4).double(), torch.randint(0, 3, (40,)), size=16)
    query = examples(torch.randn(2, 4).double(), torch.tensor([0, 2]))
    token, example = (
        TRAKScorer([side], SMALL, weighting=w, damping_scale=0.01).score(query, data).values
        for w in ("token", "example")
    )
    np.testing.assert_allclose(token, example, rtol=1e-8)
    token, example = (
        TRAKCheckpoint(side, side, SMALL, TRAKOptions(weighting=w, damping_scale=0.01), data).self_influence(data)
        for w in ("token", "example")
    )
    torch.testing.assert_close(token, example, rtol=1e-8, atol=0.0)


def test_without_a_kernel_it_is_the_gradient_dot_product_and_so_is_its_sign():
    """Huge λ: λ · score → ∇(−m)(q) · ∇L(z), positive for proponents; nothing is projected away."""
    side = lm_side()
    trak = TRAKScorer([side], Projection(99, 99), damping=1e12).score(alone(QUERIES), alone(TEXTS)).values
    dot = InfluenceScorer(side, side, measurement="margin").score(alone(QUERIES), alone(TEXTS)).values
    np.testing.assert_allclose(trak * 1e12, dot, rtol=1e-6)
    for weighting in ("token", "example"):
        own = TRAKScorer([side], SMALL, weighting=weighting).score(alone(TEXTS), alone(TEXTS)).values
        assert (np.diag(own) > 0).all()


def test_relative_damping_and_a_kernel_of_other_data():
    side, others = lm_side(), documents([4, 8, 5, 6, 7], seed=9)
    scorer = TRAKScorer([side], SMALL, damping_scale=0.2, kernel_data=alone(others))
    Phi = torch.stack([projected(side, SMALL, margins(side, z)[0].sum()) for z in alone(others)])
    damping = 0.2 * float((Phi.T @ Phi).diagonal().mean())
    product, doubt = direct(side, SMALL, damping, "token", others)
    for _ in range(2):  # the kernel is kept, and never damped in place
        close(scorer.score(alone(QUERIES), alone(TEXTS)), product)
    scorer.options = replace(scorer.options, damping=2.0)
    close(scorer.score(alone(QUERIES), alone(TEXTS)), direct(side, SMALL, 2.0, "token", others)[0])
    scorer = TRAKScorer([side], SMALL, weighting="example", damping_scale=0.2, kernel_data=alone(others))
    close(scorer.score(alone(QUERIES), alone(TEXTS)), direct(side, SMALL, damping, "example", others)[0] * doubt)


def test_two_models_and_other_outputs():
    """The query on one model, candidates on another; the loss as the output function."""
    query_side, candidate_side = lm_side(1), lm_side(0)
    got = TRAKScorer([(query_side, candidate_side)], SMALL, output="loss", damping=0.7)
    loss = lambda side, text: projected(side, SMALL, -predictions(side, text).sum())  # noqa: E731
    Phi = torch.stack([loss(candidate_side, z) for z in alone(TEXTS)])
    phi_q = torch.stack([loss(query_side, q) for q in alone(QUERIES)])
    expected = phi_q @ torch.linalg.inv(Phi.T @ Phi + 0.7 * torch.eye(12).double()) @ Phi.T
    close(got.score(alone(QUERIES), alone(TEXTS)), expected)


def test_batches_padding_and_order_change_nothing():
    side = lm_side()
    for weighting in ("token", "example"):
        scorer = TRAKScorer([side], SMALL, weighting=weighting)
        together = scorer.score([collate(QUERIES)], [collate(TEXTS)])
        apart = scorer.score(alone(QUERIES), alone(TEXTS[::-1]))
        np.testing.assert_allclose(together.values, apart.values, rtol=1e-7, atol=1e-12)
        assert apart.candidates.tolist() == list(range(6))


def test_doubt_keeps_its_digits():
    logits = torch.tensor([[40.0, 0.0, 0.0], [0.0, 1.0, 2.0]], dtype=torch.float32)
    batch = examples(torch.zeros(2, 4), torch.tensor([0, 1]))[0]
    doubt = mean_doubt(Classify(), logits, batch)
    p = torch.softmax(logits[1].double(), 0)[1]
    torch.testing.assert_close(doubt.double(), torch.stack([2 * torch.exp(torch.tensor(-40.0)).double(), 1 - p]))


def test_a_lazy_collection_of_checkpoints_is_enough():
    class Checkpoints:
        def __iter__(self):
            return (lm_side(seed) for seed in (0, 1))

    lazy = TRAKScorer(Checkpoints(), SMALL).score(alone(QUERIES), alone(TEXTS))
    eager = TRAKScorer([lm_side(0), lm_side(1)], SMALL).score(alone(QUERIES), alone(TEXTS))
    np.testing.assert_array_equal(lazy.values, eager.values)


def test_refusals():
    side = lm_side()
    queries, texts = alone(QUERIES), alone(TEXTS)
    with pytest.raises(MsifError, match="weighting"):
        TRAKScorer([side], weighting="sequence")
    with pytest.raises(MsifError, match="margin only"):
        TRAKScorer([side], weighting="example", output="loss")
    with pytest.raises(MsifError, match="0 or larger"):
        TRAKScorer([side], damping=-1.0)
    with pytest.raises(MsifError, match="lists"):
        TRAKScorer(iter([side]))
    with pytest.raises(MsifError, match="lists"):
        TRAKScorer([side], SMALL).score(iter(queries), texts)
    with pytest.raises(MsifError, match="at least one checkpoint"):
        TRAKScorer([], SMALL).score(queries, texts)
    with pytest.raises(MsifError, match="no sequence"):
        TRAKScorer([side], SMALL).score(queries, [])
    with pytest.raises(MsifError, match="no query"):
        TRAKScorer([side], SMALL).score([], texts)
    with pytest.raises(MsifError, match="no sequence"):
        TRAKScorer([side], SMALL, kernel_data=[]).score(queries, texts)
    with pytest.raises(MsifError, match="singular"):
        TRAKScorer([side], SMALL, damping=0.0).score(queries, texts)
    with pytest.raises(MsifError, match="unknown measurement"):
        TRAKScorer([side], SMALL, output="perplexity").score(queries, texts)
    with pytest.raises(MsifError, match="unknown measurement 'margin'"):
        model = MLP([4, 3]).double()
        plain = Side(model, track_plain(model), SquaredError())
        data = examples(torch.randn(4, 4).double(), torch.randn(4, 3).double())
        TRAKScorer([plain], SMALL).score(data, data)
