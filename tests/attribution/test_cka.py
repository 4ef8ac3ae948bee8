"""Linear CKA of gradients against its formula, what does not change it, and what it cannot tell."""

import numpy as np
import pytest
import torch
from helpers import MLP, Classify, alone, documents, examples, tiny_classifier, tiny_lm, track_plain

from msif.attribution.cka import CKAScorer, unit_grams
from msif.attribution.gradients import Side, query_gradients
from msif.attribution.scorers import InfluenceScorer
from msif.data.documents import collate
from msif.errors import MsifError
from msif.models.objectives import CausalLM, SequenceClassification
from msif.models.select import track_modules

TEXTS = documents([5, 9, 3, 7, 6, 4], seed=3)
QUERIES = documents([6, 4], seed=4, prompt=2)


@pytest.fixture(scope="module")
def side():
    model = tiny_lm()
    return Side(model, track_modules(model, "layers"), CausalLM())


def cka(X, Y):
    """The feature-space formula, as Kornblith et al. write it."""
    X, Y = X - X.mean(0), Y - Y.mean(0)
    return float((Y.T @ X).square().sum() / ((X.T @ X).norm() * (Y.T @ Y).norm()))


def direct(side, query_vectors, text_vectors, q, z):
    values = []
    for module in side.tracked:
        X, Y = query_vectors[module.name][q], text_vectors[module.name][z]
        values += [cka(X[b.start : b.stop], Y[b.start : b.stop]) for b in module.blocks]
    return np.mean(values)


def test_scores_match_the_formula(side):
    scores = CKAScorer(side, side).score(alone(QUERIES), [collate(TEXTS[:4]), collate(TEXTS[4:])])
    q, z = query_gradients(side, alone(QUERIES)), query_gradients(side, alone(TEXTS))
    expected = [[direct(side, q, z, i, j) for j in range(6)] for i in range(2)]
    np.testing.assert_allclose(scores.values, expected, rtol=1e-9)
    assert scores.candidates.tolist() == list(range(6))
    assert (scores.values >= 0).all() and (scores.values <= 1).all()


def test_a_document_is_most_like_itself(side):
    values = CKAScorer(side, side).score(alone(TEXTS), alone(TEXTS)).values
    np.testing.assert_allclose(np.diag(values), 1.0, rtol=1e-9)
    np.testing.assert_allclose(values, values.T, rtol=1e-9)
    assert (values[~np.eye(6, dtype=bool)] < 1).all()


def test_whole_gradients_as_rows_give_the_squared_cosine(side):
    got = CKAScorer(side, side, rows="whole").score(alone(QUERIES), alone(TEXTS)).values
    cosine = InfluenceScorer(side, side, normalize="both").score(alone(QUERIES), alone(TEXTS)).values
    np.testing.assert_allclose(got, cosine**2, rtol=1e-12)
    q, z = query_gradients(side, alone(QUERIES)), query_gradients(side, alone(TEXTS))
    x, y = (torch.cat([V.flatten(1) for V in vectors.values()], 1) for vectors in (q, z))
    published = [[float((b @ a) ** 2 / ((a @ a) * (b @ b))) for b in y] for a in x]
    np.testing.assert_allclose(got, published, rtol=1e-9)


def test_invariances():
    X, Y = torch.randn(2, 1, 12, 7).double()
    score = lambda X, Y: float((unit_grams(X, 1) * unit_grams(Y, 1)).sum())  # noqa: E731
    plain = score(X, Y)
    assert plain == pytest.approx(cka(X[0], Y[0]), rel=1e-12)
    rotation, _ = torch.linalg.qr(torch.randn(7, 7).double())
    assert score(X @ rotation, Y) == pytest.approx(plain, rel=1e-12)
    assert score(-3 * X, 0.1 * Y) == pytest.approx(plain, rel=1e-12)  # unsigned
    assert score(X + torch.randn(1, 7).double(), Y) == pytest.approx(plain, rel=1e-12)
    order = torch.randperm(12)
    assert score(X[:, order], Y[:, order]) == pytest.approx(plain, rel=1e-12)
    assert score(X[:, order], Y) != pytest.approx(plain, rel=1e-3)
    assert score(X @ torch.randn(7, 7).double(), Y) != pytest.approx(plain, rel=1e-3)


def test_small_gradients_do_not_underflow():
    X, Y = torch.randn(2, 1, 12, 7)
    tiny = (unit_grams(X * 1e-18, 1) * unit_grams(Y * 1e-20, 1)).sum()
    assert float(tiny) == pytest.approx(cka(X[0].double(), Y[0].double()), rel=1e-4)


def test_zero_and_constant_blocks_count_as_zero():
    X = torch.randn(1, 6, 4).double()
    dead = torch.cat([X[:, :3], torch.zeros(1, 3, 4).double()], 1)
    level = torch.cat([X[:, :3], torch.rand(1, 1, 4).double().expand(1, 3, 4)], 1)
    for other in (dead, level):
        assert float((unit_grams(X, 2) * unit_grams(other, 2)).sum()) == pytest.approx(1.0)


def test_sign_is_lost(side):
    negative = lambda outputs, batch: -side.objective.losses(outputs, batch)  # noqa: E731
    one = CKAScorer(side, side).score(alone(QUERIES), alone(TEXTS)).values
    other = CKAScorer(side, side, measurement=negative).score(alone(QUERIES), alone(TEXTS)).values
    np.testing.assert_allclose(one, other, rtol=1e-10)


def test_batches_padding_and_order_change_nothing(side, monkeypatch):
    together = CKAScorer(side, side).score([collate(QUERIES)], [collate(TEXTS)])
    monkeypatch.setattr("msif.attribution.cka.CHUNK_ELEMENTS", 1)
    apart = CKAScorer(side, side).score(alone(QUERIES), alone(TEXTS[::-1]))
    np.testing.assert_allclose(together.values, apart.values, rtol=1e-9)
    assert apart.candidates.tolist() == list(range(6))
    chunked = CKAScorer(side, side).score([collate(QUERIES)], [collate(TEXTS)])
    np.testing.assert_allclose(together.values, chunked.values, rtol=1e-12)


def test_two_models_of_which_one_has_a_new_head(side):
    model = tiny_classifier(1)
    query_side = Side(model, track_modules(model, "layers"), SequenceClassification(pad_token_id=0))
    texts = documents([5, 6], seed=2, labels=True)
    scores = CKAScorer(query_side, side).score([collate(texts)], alone(TEXTS)).values
    q, z = query_gradients(query_side, alone(texts)), query_gradients(side, alone(TEXTS))
    np.testing.assert_allclose(scores[1, 2], direct(side, q, z, 1, 2), rtol=1e-9)


def test_blocks_of_one_row_are_left_out():
    torch.manual_seed(0)
    single, mixed = (MLP(sizes).double() for sizes in ([4, 1], [4, 5, 1]))
    sides = [Side(model, track_plain(model), Classify()) for model in (single, mixed)]
    with pytest.raises(MsifError, match="one row"):
        CKAScorer(sides[0], sides[0])
    scorer = CKAScorer(sides[1], sides[1])
    assert [module.d_out for module in scorer.candidate_side.tracked] == [5]
    assert list(scorer.left_out.values()) == ["its blocks have one row"]


def test_refusals(side):
    with pytest.raises(MsifError, match="rows"):
        CKAScorer(side, side, rows="tokens")
    with pytest.raises(MsifError, match="no candidate"):
        CKAScorer(side, side).score(alone(QUERIES), [])
    with pytest.raises(MsifError, match="no query"):
        CKAScorer(side, side).score([], alone(TEXTS))
    with pytest.raises(MsifError, match="unknown measurement"):
        CKAScorer(side, side, measurement="perplexity").score(alone(QUERIES), alone(TEXTS))
    data = examples(torch.randn(4, 4).double(), torch.randint(0, 3, (4,)))
    assert CKAScorer(*[_mlp_side()] * 2).score(data, data).values.shape == (4, 4)


def _mlp_side():
    model = MLP([4, 5, 3]).double()
    return Side(model, track_plain(model), Classify())
