"""K-FAC and the diagonal against dense curvatures in float64."""

import pytest
import torch
from helpers import MLP, Classify, DeepLinear, SquaredError, dense_gradients, documents, examples, tiny_lm, track_plain
from test_factors_dense import fitted

from msif.curvature.filters import DampedInverse
from msif.curvature.fit import FitSettings
from msif.curvature.kfac import KFAC, Diagonal, curvature_diagonal
from msif.curvature.preconditioners import consume
from msif.data.documents import collate
from msif.errors import MsifError
from msif.models.objectives import CausalLM
from msif.models.select import track_modules


def counts_of(covariances, second_moments):
    return {**covariances.counts, **second_moments.counts}


def random_like(tracked, queries=2):
    return {m.name: torch.randn(queries, *m.shape).double() for m in tracked}


def test_kfac_is_the_kronecker_product_of_the_covariances_per_supervised_token():
    """With prompts, T differs from N; each block is (T/N) G ⊗ A, damped by the same λ as everything else."""
    model, objective = tiny_lm(), CausalLM()
    tracked = track_modules(model)
    covariances, second_moments, factors = fitted(
        model, tracked, objective, [collate(documents([5, 9, 3, 7], prompt=2))]
    )
    counts = counts_of(covariances, second_moments)
    positions, supervised = 4 + 8 + 2 + 6, 3 + 7 + 1 + 5
    assert (counts["positions"], counts["supervised"]) == (positions, supervised)
    V = random_like(tracked)
    found = KFAC(factors, counts, DampedInverse(0.01)).apply(V)
    for m in tracked:
        A, G = covariances.A(covariances.groups[m.name]), covariances.G(m.name)
        for number, block in enumerate(m.blocks):
            H = positions / supervised * torch.kron(G[number], A)
            rows = V[m.name][:, block.start : block.stop]
            expected = torch.linalg.solve(H + 0.01 * torch.eye(len(H)).double(), rows.flatten(1).T).T
            torch.testing.assert_close(found[m.name][:, block.start : block.stop].flatten(1), expected)


def test_kfac_is_exact_for_one_data_point_of_one_position():
    """Its empirical Fisher is a Kronecker product."""
    torch.manual_seed(0)
    model, objective = MLP([4, 5, 3]).double(), Classify()
    tracked = track_plain(model)
    (batch,) = examples(torch.randn(1, 4).double(), torch.tensor([1]))
    covariances, second_moments, factors = fitted(model, tracked, objective, [batch], FitSettings(fisher="empirical"))
    V = random_like(tracked, 1)
    found = KFAC(factors, counts_of(covariances, second_moments), DampedInverse(0.01)).apply(V)
    gradients = dense_gradients(model, tracked, objective.losses(model(batch.x), batch).sum())
    for m in tracked:
        H = torch.outer(gradients[m.name].flatten(), gradients[m.name].flatten())
        expected = torch.linalg.solve(H + 0.01 * torch.eye(len(H)).double(), V[m.name].flatten())
        torch.testing.assert_close(found[m.name].flatten(), expected)


def test_kfac_is_exact_for_the_last_layer_of_a_linear_network_with_squared_error():
    """g is independent of x there: H = I ⊗ A, over many points."""
    torch.manual_seed(0)
    model, objective = DeepLinear([4, 2], bias=False).double(), SquaredError()
    tracked = track_plain(model)
    x = torch.randn(6, 4).double()
    settings = FitSettings(label_samples=3000)
    covariances, second_moments, factors = fitted(
        model, tracked, objective, examples(x, torch.randn(6, 2).double()), settings
    )
    V = random_like(tracked, 1)
    H = torch.kron(torch.eye(2).double(), x.T @ x / 6)
    expected = torch.linalg.solve(H + 0.1 * torch.eye(8).double(), V["layers.0"].flatten())
    found = KFAC(factors, counts_of(covariances, second_moments), DampedInverse(0.1)).apply(V)["layers.0"].flatten()
    assert (found - expected).norm() < 0.05 * expected.norm()


def test_the_diagonal_is_that_of_ekfacs_dense_matrix():
    model, objective = tiny_lm(), CausalLM()
    tracked = track_modules(model, "attention")
    _, _, factors = fitted(model, tracked, objective, [collate(documents([5, 9, 3, 7]))])
    V = random_like(tracked)
    found = Diagonal(factors, DampedInverse(0.02)).apply(V)
    for m in tracked:
        f = factors[m.name]
        diagonal = curvature_diagonal(f)
        torch.testing.assert_close(diagonal.sum((1, 2)), f.Lambda.sum((1, 2)))  # the trace
        for b, block in enumerate(m.blocks):
            Q = torch.kron(f.Q_G[b], f.Q_A)
            dense = (Q @ torch.diag(f.Lambda[b].flatten()) @ Q.T).diagonal()
            torch.testing.assert_close(diagonal[b].flatten(), dense)
            expected = V[m.name][:, block.start : block.stop].flatten(1) / (dense + 0.02)
            torch.testing.assert_close(found[m.name][:, block.start : block.stop].flatten(1), expected)


def test_the_diagonal_is_exact_for_one_data_point():
    torch.manual_seed(0)
    model, objective = MLP([4, 5, 3]).double(), Classify()
    tracked = track_plain(model)
    (batch,) = examples(torch.randn(1, 4).double(), torch.tensor([1]))
    _, _, factors = fitted(model, tracked, objective, [batch], FitSettings(fisher="empirical"))
    for name, gradient in dense_gradients(model, tracked, objective.losses(model(batch.x), batch).sum()).items():
        torch.testing.assert_close(curvature_diagonal(factors[name])[0], gradient.square())


def test_stored_factors_and_their_counts_work_as_they_are(finished, problem):
    """From the folder, module by module, with the relative damping by default; nothing stored is changed."""
    V = random_like(problem.tracked)
    in_memory = finished.load_all()
    counts = finished.manifest["counts"]
    before = {name: f.Lambda.clone() for name, f in in_memory.items()}
    for lazy, eager in (
        (KFAC(finished, counts), KFAC(in_memory, counts)),
        (Diagonal(finished), Diagonal(in_memory)),
    ):
        expected = eager.apply(V)
        found = consume(lazy, dict(V))
        for name in V:
            assert torch.equal(found[name], expected[name])
            assert torch.equal(in_memory[name].Lambda, before[name])
    f = in_memory["layers.0.mlp.dense_h_to_4h"]
    ratio = counts["positions"] / counts["supervised"]
    corrected = KFAC(in_memory, counts).factors["layers.0.mlp.dense_h_to_4h"].Lambda
    torch.testing.assert_close(corrected[0], ratio * torch.outer(f.S_G[0], f.S_A))


def test_errors_name_the_remedy(finished, problem):
    with pytest.raises(MsifError, match="fit the factors again"):
        KFAC(finished, {"positions": 4})
    unknown = {"nowhere": torch.ones(1, 2, 3)}
    for preconditioner in (KFAC(finished, finished.manifest["counts"]), Diagonal(finished)):
        with pytest.raises(MsifError, match="same --modules"):
            preconditioner.apply(unknown)
    name = problem.tracked[0].name
    f = finished[name]
    singular = {name: type(f)(f.Q_A, f.Q_G, f.S_A * 0, f.S_G, f.Lambda * 0)}
    V = {name: torch.ones(1, *problem.tracked[0].shape)}
    for preconditioner in (
        KFAC(singular, finished.manifest["counts"], DampedInverse(0.0)),
        Diagonal(singular, DampedInverse(0.0)),
    ):
        with pytest.raises(MsifError, match="--damping with a positive value"):
            preconditioner.apply(V)
