"""Random projections: what they are, what they keep, and what they depend on."""

import numpy as np
import pytest
import torch
from helpers import alone, dense_gradients, documents, tiny_lm

from msif.attribution.features import GradientProjector, query_features
from msif.attribution.gradients import Side, query_gradients
from msif.attribution.projection import Projection, solve_damped
from msif.attribution.random_matrices import count_sketch, sign_matrix
from msif.data.documents import collate
from msif.errors import MsifError
from msif.models.blocks import Block, TrackedModule
from msif.models.objectives import CausalLM
from msif.models.select import track_modules

LENGTHS = [5, 9, 3, 7]


def lm_side(seed=0, dtype=torch.float64, **changes):
    model = tiny_lm(seed, dtype, **changes)
    return Side(model, track_modules(model), CausalLM())


def linear(name, d_in=48, d_out=40, bias=True):
    return TrackedModule(name, name, d_in, d_out, bias, (Block(0, d_out),))


def explicit(projection, tracked, gradients):
    """φ of (Q, d_out, d) gradients with every matrix multiplied out over vec ∇."""
    parts = []
    for module in tracked:
        P_out, P_in = (
            torch.eye(d).double() if P is None else P
            for P, d in zip(projection.matrices(module), module.shape, strict=True)
        )
        phi = gradients[module.name].flatten(1) @ torch.kron(P_out, P_in).T
        if projection.dimension is not None:
            index, signs = count_sketch(phi.shape[1], projection.dimension, projection.seed, f"sum|{module.name}")
            S = torch.zeros(projection.dimension, phi.shape[1]).double()
            S[torch.from_numpy(index), torch.arange(phi.shape[1])] = torch.from_numpy(signs).double()
            phi = phi @ S.T
        parts.append(phi)
    return sum(parts) if projection.dimension is not None else torch.cat(parts, 1)


def features(side, projection, batches):
    with GradientProjector(side, projection, [side.objective.loss_gradient]) as project:
        return torch.cat([project(batch)[0] for batch in batches])


@pytest.mark.parametrize("projection", [Projection(4, 5), Projection(4, 99), Projection(99, 5), Projection(6, 6, 20)])
def test_the_pass_projects_the_gradients(projection):
    side = lm_side()
    batches = alone(documents(LENGTHS))
    expected = explicit(projection, side.tracked, query_gradients(side, batches))
    assert expected.shape[1] == projection.width(side.tracked)
    together = features(side, projection, [collate(documents(LENGTHS))])
    torch.testing.assert_close(features(side, projection, batches), expected)
    torch.testing.assert_close(together, expected)


def test_sides_that_are_small_are_kept_whole():
    side = lm_side()
    vectors = query_gradients(side, alone(documents(LENGTHS)))
    got = query_features(side, alone(documents(LENGTHS)), Projection(99, 99), "loss")
    torch.testing.assert_close(got, torch.cat([V.flatten(1) for V in vectors.values()], 1))
    columns = Projection(99, 99).columns(side.tracked)
    for name, V in vectors.items():
        torch.testing.assert_close(got[:, columns[name]], V.flatten(1))


def test_one_pass_projects_several_cotangents():
    side = lm_side()
    batch, projection = collate(documents(LENGTHS)), Projection(4, 5, 30)
    loss = side.objective.loss_gradient
    twice = lambda outputs, batch: 2 * loss(outputs, batch)  # noqa: E731
    with GradientProjector(side, projection, [twice, loss]) as project:
        both = project(batch)
    assert both.shape == (2, 4, 30)
    torch.testing.assert_close(both[1], features(side, projection, [batch]))
    torch.testing.assert_close(both[0], 2 * both[1])


def test_weights_multiply_positions():
    side, projection, batch = lm_side(), Projection(4, 5), collate(documents(LENGTHS))
    with GradientProjector(side, projection, [side.objective.loss_gradient]) as project:
        whole = project(batch)
        parts = [project(batch, torch.eye(9)[t].expand(4, 9)) for t in range(9)]
        torch.testing.assert_close(sum(parts), whole)
        assert all(bool(part.any()) for part in parts[:8])
        torch.testing.assert_close(project(batch), whole)


def test_matrices_depend_on_seed_and_name_alone():
    first, second = linear("layers.0.mlp"), linear("layers.1.mlp")
    projection = Projection(8, 8, seed=3)
    for P, Q in zip(projection.matrices(first), projection.matrices(first), strict=True):
        assert torch.equal(P, Q)
    others = [projection.matrices(second), Projection(8, 8, seed=4).matrices(first)]
    for other in others:
        assert not torch.equal(projection.matrices(first)[0], other[0])
        assert not torch.equal(projection.matrices(first)[1], other[1])
    square = projection.matrices(linear("layers.0.mlp", 40, 40, bias=False))
    assert not torch.equal(square[0], square[1])
    np.testing.assert_array_equal(sign_matrix(9, 70, 3, "a")[:5], sign_matrix(5, 70, 3, "a"))


def test_bits_are_the_same_for_ever():
    """Stored features outlive versions of numpy: a change here would mix two projections."""
    assert sign_matrix(2, 8, 3, "out|layers.0.mlp").tolist() == [[1, -1, -1, -1, 1, 1, -1, -1], [-1] * 3 + [1] * 5]
    index, signs = count_sketch(6, 10, 3, "sum|layers.0.mlp")
    assert index.tolist() == [7, 9, 0, 2, 3, 3] and signs.tolist() == [-1, -1, 1, -1, 1, 1]


@pytest.mark.parametrize("dimension", [None, 30])
def test_the_order_of_the_modules_does_not_matter(dimension):
    side, projection = lm_side(), Projection(4, 5, dimension)
    turned = Side(side.model, side.tracked[::-1], side.objective)
    batches = [collate(documents(LENGTHS))]
    one, other = features(side, projection, batches), features(turned, projection, batches)
    if dimension is None:
        columns = projection.columns(side.tracked), projection.columns(turned.tracked)
        one = torch.cat([one[:, columns[0][module.name]] for module in side.tracked], 1)
        other = torch.cat([other[:, columns[1][module.name]] for module in side.tracked], 1)
    torch.testing.assert_close(one, other)


def test_signs_are_balanced_and_uncorrelated():
    signs = sign_matrix(300, 200, 0, "m").astype(np.float64)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs.mean()) < 4 / np.sqrt(signs.size)
    gram = signs.T @ signs / 300
    off = gram[~np.eye(200, dtype=bool)]
    assert abs(off.mean()) < 0.01 and off.std() == pytest.approx(300**-0.5, rel=0.05)


@pytest.mark.parametrize("dimension", [None, 12])
def test_inner_products_are_unbiased_over_seeds(dimension):
    tracked = [linear("a", 12, 10), linear("b", 9, 14, bias=False)]
    gradients = {m.name: torch.randn(2, *m.shape).double() for m in tracked}
    gradients = {name: V + V.mean((1, 2), keepdim=True) + 0.5 for name, V in gradients.items()}
    exact = float(sum((V[0] * V[1]).sum() for V in gradients.values()))
    estimates = []
    for seed in range(600):
        phi = explicit(Projection(6, 7, dimension, seed), tracked, gradients)
        estimates.append(float(phi[0] @ phi[1]))
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert abs(np.mean(estimates) - exact) < 4 * error
    assert error < 0.1 * abs(exact)


def test_inner_products_are_kept_at_large_p():
    module = linear("m", 700, 600, bias=False)
    X = torch.randn(2, 600, 3).double() @ torch.randn(2, 3, 700).double()
    X = X / X.square().sum((1, 2), keepdim=True).sqrt()
    X[1] = 0.6 * X[0] + 0.8 * X[1]
    exact = torch.einsum("aij,bij->ab", X, X)
    errors = []
    for p in (16, 512):
        phi = torch.stack([_two_sided(Projection(p, p, seed=s), module, X) for s in range(8)])
        errors.append(float((phi @ phi.transpose(1, 2) - exact).square().mean().sqrt()))
    assert errors[1] < 0.12 and errors[1] < 0.35 * errors[0]


def _two_sided(projection, module, X):
    P_out, P_in = projection.matrices(module)
    return (P_out @ X @ P_in.T).flatten(1)


def test_count_sketch_has_the_variance_that_is_claimed():
    a, b = np.random.default_rng(0).normal(size=(2, 200)) + 0.3
    values = []
    for seed in range(1500):
        index, signs = count_sketch(200, 16, seed, "m")
        fa, fb = (np.bincount(index, v * signs, 16) for v in (a, b))
        values.append(fa @ fb)
    claimed = (a @ a * (b @ b) + (a @ b) ** 2 - 2 * (a**2) @ (b**2)) / 16
    assert np.var(values) == pytest.approx(claimed, rel=0.2)
    assert abs(np.mean(values) - a @ b) < 4 * np.sqrt(claimed / 1500)


def test_float32_changes_little():
    projection, texts = Projection(4, 5, 30), documents(LENGTHS)
    wide, narrow = (features(lm_side(dtype=t), projection, [collate(texts)]) for t in (torch.float64, torch.float32))
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-3, atol=1e-4)
    assert narrow.dtype == torch.float32


def test_query_features_come_in_the_order_of_their_numbers():
    side, projection = lm_side(), Projection(4, 5)
    texts = documents(LENGTHS)
    forward, backward = alone(texts), [collate(texts[2:]), collate(texts[:2])]
    one, other = (query_features(side, batches, projection, "margin") for batches in (forward, backward))
    torch.testing.assert_close(one, other)


def test_the_model_comes_back_as_it_was_after_an_error():
    side = lm_side()
    side.model.train().requires_grad_(True)
    with (
        pytest.raises(MsifError, match="NaN or infinity"),
        GradientProjector(side, Projection(4, 5), [lambda o, b: o * torch.nan]) as project,
    ):
        project(collate(documents(LENGTHS)))
    assert side.model.training and all(p.requires_grad for p in side.model.parameters())
    assert not any(module._forward_hooks for module in side.model.modules())


def test_damped_solve():
    C = torch.randn(9, 5).double()
    gram, right = C.T @ C, torch.randn(5, 3).double()
    shift = 0.2 * gram.diagonal().mean() * torch.eye(5).double()
    torch.testing.assert_close(solve_damped(gram, right, None, 0.2, "it"), torch.linalg.solve(gram + shift, right))
    absolute = torch.linalg.solve(gram + 0.3 * torch.eye(5).double(), right)
    torch.testing.assert_close(solve_damped(gram, right, 0.3, 0.2, "it"), absolute)
    assert not solve_damped(torch.zeros_like(gram), right, None, 0.1, "it").any()
    low = C[:3].T @ C[:3]
    with pytest.raises(MsifError, match=r"it is singular.*--damping"):
        solve_damped(low, right, 0.0, 0.1, "it")
    assert torch.isfinite(solve_damped(low, right, 1e-6, 0.1, "it")).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"p_out": 0}, "p_out"), ({"p_in": -1}, "p_in"), ({"dimension": 0}, "dimension"), ({"seed": -1}, "seed")],
)
def test_refused_sizes(options, message):
    with pytest.raises(MsifError, match=message):
        Projection(**options)


def test_refused_queries():
    side, projection = lm_side(), Projection(4, 5)
    query = documents([5])
    with pytest.raises(MsifError, match="no query"):
        query_features(side, [], projection, "loss")
    with pytest.raises(MsifError, match="each once"):
        query_features(side, alone(query + query), projection, "loss")
    with pytest.raises(MsifError, match="unknown measurement"):
        query_features(side, alone(query), projection, "perplexity")


def test_dense_gradients_agree_with_the_whole_projection():
    """Against autograd's own weight gradients, not the toolkit's."""
    side, text = lm_side(), alone(documents([6]))[0]
    got = features(side, Projection(99, 99), [text])[0]
    side.model.eval()
    loss = side.objective.losses(side.objective.outputs(side.model, text), text).sum()
    dense = dense_gradients(side.model, side.tracked, loss)
    torch.testing.assert_close(got, torch.cat([G.flatten() for G in dense.values()]))
