"""K-FAC and the diagonal against dense curvatures in float64."""

import pytest
import torch
from helpers import (
    MLP,
    Classify,
    DeepLinear,
    SquaredError,
    alone,
    dense_gradients,
    documents,
    examples,
    tiny_lm,
    track_plain,
)
from test_factors_dense import fitted, sides

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


def trace(moment, basis):
    """Of a matrix, or of all blocks', or of what is kept of them, their diagonals."""
    return float((moment.diagonal(dim1=-2, dim2=-1) if basis == "eigenvectors" else moment).sum())


def random_like(tracked, queries=2):
    return {m.name: torch.randn(queries, *m.shape).double() for m in tracked}


# tied and not: a table, a norm's scale and shift, and an unembedding have a basis that is the identity
CHOICES = [("layers", False), ("everything", False), ("everything", True)]


@pytest.mark.parametrize(("modules", "tied"), CHOICES)
def test_kfac_is_the_kronecker_product_of_the_covariances_per_supervised_token(modules, tied):
    """With prompts, T differs from N; each block is (T/N) G ⊗ A, damped by the same λ as everything else."""
    model, objective = tiny_lm(tie_word_embeddings=tied), CausalLM()
    tracked = track_modules(model, modules)
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
        A = torch.diag(A) if m.column_basis == "identity" else A
        G = torch.diag_embed(G) if m.row_basis == "identity" else G
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


@pytest.mark.parametrize("tied", [False, True])
def test_eigenvalues_have_the_trace_of_the_curvature_that_they_stand_for(tied):
    """(T/N) tr G tr A for K-FAC, Σ Λ for the diagonal.

    But for linear maps, where x and g are taken for independent, the first is (1/N) Σ ‖left‖² ‖right‖² over positions
    and uses, and the second the trace of the empirical Fisher for all.
    """
    model, objective = tiny_lm(tie_word_embeddings=tied), CausalLM()
    tracked, texts = track_modules(model, "everything"), documents([5, 9, 3, 7], prompt=2)
    covariances, second_moments, factors = fitted(
        model, tracked, objective, [collate(texts)], FitSettings(fisher="empirical")
    )
    positions, supervised = 4 + 8 + 2 + 6, 3 + 7 + 1 + 5
    squares, traces = ({m.name: 0.0 for m in tracked} for _ in range(2))
    model.eval()
    for batch in alone(texts):
        losses = lambda batch=batch: objective.losses(objective.outputs(model, batch), batch)  # noqa: E731
        for name, pairs in sides(model, tracked, losses).items():
            squares[name] += sum(float(left.square().sum(1) @ right.square().sum(1)) for left, right in pairs)
        for name, gradient in dense_gradients(model, tracked, losses().sum()).items():
            traces[name] += float(gradient.square().sum())
    kfac = KFAC(factors, counts_of(covariances, second_moments))
    assert [m.name for m in tracked if not m.is_map and factors[m.name].Q_G is not None] == []
    for m in tracked:
        A, G = covariances.A(covariances.groups[m.name]), covariances.G(m.name)
        trace_A, trace_G = trace(A, m.column_basis), trace(G, m.row_basis)
        found = float(kfac.factors[m.name].Lambda.sum())
        assert found == pytest.approx(positions / supervised * trace_G * trace_A)
        assert m.is_map or found == pytest.approx(squares[m.name] / supervised)
        diagonal = curvature_diagonal(factors[m.name])
        assert diagonal.shape == factors[m.name].Lambda.shape
        assert float(diagonal.sum()) == pytest.approx(float(factors[m.name].Lambda.sum()))
        assert float(diagonal.sum()) == pytest.approx(traces[m.name] / supervised)


@pytest.mark.parametrize(("modules", "tied"), [("attention", False), *CHOICES[1:]])
def test_the_diagonal_is_that_of_ekfacs_dense_matrix(modules, tied):
    model, objective = tiny_lm(tie_word_embeddings=tied), CausalLM()
    tracked = track_modules(model, modules)
    _, _, factors = fitted(model, tracked, objective, [collate(documents([5, 9, 3, 7]))])
    V = random_like(tracked)
    found = Diagonal(factors, DampedInverse(0.02)).apply(V)
    for m in tracked:
        f = factors[m.name]
        diagonal = curvature_diagonal(f)
        torch.testing.assert_close(diagonal.sum((1, 2)), f.Lambda.sum((1, 2)))  # the trace
        for b, block in enumerate(m.blocks):
            rows, columns = f.Lambda.shape[1:]
            Q_G = torch.eye(rows).double() if f.Q_G is None else f.Q_G[b]
            Q = torch.kron(Q_G, torch.eye(columns).double() if f.Q_A is None else f.Q_A)
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
