"""LoGra against explicit gradients and matrices, in float64."""

import numpy as np
import pytest
import torch
from helpers import MLP, Classify, alone, dense_gradients, documents, examples, tiny_classifier, tiny_lm, track_plain
from test_projection import explicit

from msif.attribution.gradients import Side
from msif.attribution.logra import LABEL_STREAM, LoGraScorer
from msif.attribution.projection import Projection
from msif.attribution.scorers import InfluenceScorer
from msif.curvature.preconditioners import Preconditioner
from msif.data.documents import collate
from msif.errors import MsifError
from msif.models.objectives import CausalLM, SequenceClassification, generators_for
from msif.models.select import track_modules

TEXTS = documents([5, 9, 3, 7, 6, 4], seed=3)
QUERIES = documents([6, 4], seed=4, prompt=2)
SMALL = Projection(3, 4, seed=5)


@pytest.fixture(scope="module")
def side():
    model = tiny_lm()
    return Side(model, track_modules(model, "layers"), CausalLM())


def features(side, batches, targets=lambda outputs, batch: None):
    """φ of the loss of each sequence, module name -> (n, p_out·p_in), by autograd and Kronecker products."""
    side.model.eval()
    rows = []
    for batch in batches:
        outputs = side.objective.outputs(side.model, batch)
        loss = side.objective.losses(outputs, batch, targets(outputs.detach(), batch)).sum()
        rows.append(dense_gradients(side.model, side.tracked, loss))
    return {m.name: explicit(SMALL, [m], {m.name: torch.stack([r[m.name] for r in rows])}) for m in side.tracked}


def sampled(side, seed):
    return lambda outputs, batch: side.objective.sample(
        outputs, batch, generators_for(seed, LABEL_STREAM, batch.indices)
    )


def direct(phi_q, phi_z, C, tokens, damping=None, damping_scale=0.1):
    total = 0
    for name, rows in C.items():
        H = rows.T @ rows / tokens
        shift = damping_scale * H.diagonal().mean() if damping is None else damping
        total = total + phi_q[name] @ torch.linalg.inv(H + shift * torch.eye(len(H)).double()) @ phi_z[name].T
    return total.numpy()


@pytest.mark.parametrize("labels", ["sampled", "true"])
@pytest.mark.parametrize("options", [{"damping": 0.02}, {"damping_scale": 0.3}])
def test_scores_match_the_dense_formula(side, labels, options):
    phi_q, phi_z = features(side, alone(QUERIES)), features(side, alone(TEXTS))
    C = features(side, alone(TEXTS), sampled(side, 7)) if labels == "sampled" else phi_z
    tokens = sum(int(text.supervised.sum()) for text in TEXTS)
    scorer = LoGraScorer(side, side, SMALL, labels=labels, seed=7, **options)
    scores = scorer.score(alone(QUERIES), [collate(TEXTS[:4]), collate(TEXTS[4:])])
    np.testing.assert_allclose(scores.values, direct(phi_q, phi_z, C, tokens, **options), rtol=1e-7, atol=1e-9)
    assert scores.candidates.tolist() == list(range(6))


@pytest.mark.parametrize("labels", ["sampled", "true"])
def test_curvature_of_other_data_is_formed_once_and_never_damped(side, labels):
    others = documents([4, 8, 5, 6, 7], seed=9)
    C = features(side, alone(others), sampled(side, 0) if labels == "sampled" else lambda outputs, batch: None)
    tokens = sum(int(text.supervised.sum()) for text in others)
    phi_q, phi_z = features(side, alone(QUERIES)), features(side, alone(TEXTS))
    scorer = LoGraScorer(side, side, SMALL, labels=labels, damping=0.02, curvature_data=[collate(others)])
    for damping in (0.02, 0.5, 0.02):
        scorer.damping = damping
        scores = scorer.score(alone(QUERIES), alone(TEXTS))
        np.testing.assert_allclose(scores.values, direct(phi_q, phi_z, C, tokens, damping), rtol=1e-7, atol=1e-9)


def test_unprojected_it_is_influence_with_the_exact_curvature_of_one_linear_map():
    """Exact H of a linear softmax model is the mean over labels of squares: many label draws approach it."""
    torch.manual_seed(0)
    model = MLP([3, 3]).double()
    plain = Side(model, track_plain(model), Classify())
    x = torch.randn(30, 3).double()
    y = torch.randint(0, 3, (30,))
    draws = examples(x.repeat(400, 1), y.repeat(400), size=4000)
    data, query = examples(x, y), examples(x[:2], y[:2])
    scorer = LoGraScorer(plain, plain, Projection(99, 99), damping=0.05, curvature_data=draws)

    def mean_loss(W):
        return torch.nn.functional.cross_entropy(x @ W[:, :3].T + W[:, 3], y)

    W = torch.cat([model.layers[0].weight, model.layers[0].bias[:, None]], 1).detach()
    H = torch.autograd.functional.hessian(mean_loss, W).reshape(12, 12)

    class Exact(Preconditioner):
        def apply(self, vectors):
            inverse = torch.linalg.inv(H + 0.05 * torch.eye(12).double())
            return {name: (V.flatten(1) @ inverse).view_as(V) for name, V in vectors.items()}

    exact = InfluenceScorer(plain, plain, [Exact()]).score(query, data).values
    got = scorer.score(query, data).values
    assert np.abs(got - exact).max() < 0.1 * np.abs(exact).max()
    assert got[0, 0] > 0 and got[1, 1] > 0


def test_without_curvature_it_is_the_projected_gradient_dot_product(side):
    got = LoGraScorer(side, side, Projection(99, 99), damping=1e12).score(alone(QUERIES), alone(TEXTS)).values
    dot = InfluenceScorer(side, side).score(alone(QUERIES), alone(TEXTS)).values
    np.testing.assert_allclose(got * 1e12, dot, rtol=1e-6)


def test_a_replaced_head_is_no_obstacle(side):
    model = tiny_classifier(1)
    query_side = Side(model, track_modules(model, "layers"), SequenceClassification(pad_token_id=0))
    query = [collate(documents([5, 6], seed=2, labels=True))]
    scores = LoGraScorer(query_side, side, SMALL).score(query, [collate(TEXTS)])
    phi_q, phi_z = features(query_side, alone(documents([5, 6], seed=2, labels=True))), features(side, alone(TEXTS))
    C = features(side, alone(TEXTS), sampled(side, 0))
    tokens = sum(int(text.supervised.sum()) for text in TEXTS)
    np.testing.assert_allclose(scores.values, direct(phi_q, phi_z, C, tokens), rtol=1e-7, atol=1e-9)


def test_batches_padding_and_order_change_nothing(side):
    scorer = LoGraScorer(side, side, SMALL)
    together = scorer.score([collate(QUERIES)], [collate(TEXTS)])
    apart = scorer.score(alone(QUERIES), alone(TEXTS[::-1]))
    np.testing.assert_allclose(together.values, apart.values, rtol=1e-7, atol=1e-10)
    again = LoGraScorer(side, side, SMALL).score([collate(QUERIES)], [collate(TEXTS)])
    np.testing.assert_array_equal(together.values, again.values)


def test_refusals(side):
    queries, texts = alone(QUERIES), alone(TEXTS)
    with pytest.raises(MsifError, match="labels"):
        LoGraScorer(side, side, labels="empirical")
    with pytest.raises(MsifError, match="without a dimension"):
        LoGraScorer(side, side, Projection(dimension=64))
    with pytest.raises(MsifError, match="0 or larger"):
        LoGraScorer(side, side, damping_scale=-0.1)
    with pytest.raises(MsifError, match="no supervised token"):
        LoGraScorer(side, side, SMALL).score(queries, [])
    with pytest.raises(MsifError, match="no query"):
        LoGraScorer(side, side, SMALL).score([], texts)
    with pytest.raises(MsifError, match="no supervised token"):
        LoGraScorer(side, side, SMALL, curvature_data=[]).score(queries, texts)
    with pytest.raises(MsifError, match=r"curvature of module .* is singular"):
        LoGraScorer(side, side, SMALL, damping=0.0).score(queries, texts)
