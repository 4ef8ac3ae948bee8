"""Top eigenpairs and the projected inverse against dense decompositions in float64."""

import pytest
import torch
from helpers import MLP, Classify, documents, examples, tiny_lm, track_modules, track_plain
from test_cg import Matrix
from test_ggn import dense_ggn, flat

from msif.curvature.arnoldi import Arnoldi, top_eigenpairs
from msif.curvature.ggn import GGN
from msif.data.documents import collate
from msif.errors import MsifError
from msif.models.blocks import Block, TrackedModule
from msif.models.objectives import CausalLM

DAMPING = 1e-3


@pytest.fixture(scope="module")
def problem():
    """(operator, tracked, dense H, b) of a small classifier, 27 parameters, of which H has far lower rank."""
    torch.manual_seed(0)
    model, objective = MLP([4, 3, 3]).double(), Classify()
    tracked = track_plain(model)
    data = examples(torch.randn(5, 4).double(), torch.randint(0, 3, (5,)), size=3)
    b = {m.name: torch.randn(3, *m.shape).double() for m in tracked}
    return GGN(model, tracked, objective, data), tracked, dense_ggn(model, tracked, objective, data), b


def matrix_problem(values, columns=4):
    """A matrix with given eigenvalues as an operator on one module of one block."""
    basis, _ = torch.linalg.qr(torch.randn(len(values), len(values)).double())
    H = basis @ torch.diag(torch.as_tensor(values).double()) @ basis.T
    rows = len(values) // columns
    return Matrix(H), [TrackedModule("m", "m", columns, rows, False, (Block(0, rows),))], H, basis


def test_exact_when_the_iterations_reach_the_dimension(problem):
    operator, tracked, H, b = problem
    size = len(H)
    expected = torch.linalg.solve(H + DAMPING * torch.eye(size).double(), flat(b, tracked).T).T
    solver = Arnoldi(operator, tracked, DAMPING, top=size, iterations=10 * size)
    torch.testing.assert_close(flat(solver.apply(b), tracked), expected)
    assert solver.eigenpairs.iterations == size
    torch.testing.assert_close(solver.eigenpairs.values, torch.linalg.eigvalsh(H).flip(0), rtol=1e-8, atol=1e-10)


def test_eigenvectors_are_orthonormal_over_all_modules_and_satisfy_their_equation(problem):
    operator, tracked, H, b = problem
    pairs = top_eigenpairs(operator, b, top=4, iterations=20)
    V = flat(pairs.vectors, tracked)
    torch.testing.assert_close(V @ V.T, torch.eye(4).double())
    torch.testing.assert_close(V @ H, pairs.values[:, None] * V, rtol=1e-6, atol=1e-8)
    assert pairs.residuals.max() < 1e-6


def test_residuals_are_those_of_the_eigenvalue_equation():
    operator, _, H, _ = matrix_problem(torch.logspace(0, -2, 12).double())
    pairs = top_eigenpairs(operator, {"m": torch.ones(1, 3, 4).double()}, top=3, iterations=6)
    V = pairs.vectors["m"].flatten(1)
    torch.testing.assert_close(pairs.residuals, (V @ H - pairs.values[:, None] * V).norm(dim=1))
    assert pairs.residuals[-1] > 1e-6
    assert torch.all(pairs.values <= torch.logspace(0, -2, 12).double()[:3] + 1e-12)  # from below


def test_the_inverse_is_that_on_the_top_eigenvectors_and_zero_elsewhere():
    values = torch.logspace(0, -3, 12).double()
    operator, tracked, _, basis = matrix_problem(values)
    b = {"m": torch.randn(2, 3, 4).double()}
    V = basis[:, :3]
    expected = (b["m"].flatten(1) @ V / (values[:3] + DAMPING)) @ V.T
    found = Arnoldi(operator, tracked, DAMPING, top=3, iterations=12).apply(b)["m"].flatten(1)
    torch.testing.assert_close(found, expected)

    rest = b["m"].flatten(1) - b["m"].flatten(1) @ V @ V.T
    with_rest = Arnoldi(operator, tracked, DAMPING, top=3, iterations=12, complement=True).apply(b)["m"].flatten(1)
    torch.testing.assert_close(with_rest, expected + rest / DAMPING)


def test_damping_of_each_block_is_exact_at_full_dimension():
    model, objective = tiny_lm(hidden_size=4, num_attention_heads=1, num_hidden_layers=1), CausalLM()
    tracked = [m for m in track_modules(model, "attention") if len(m.blocks) > 1]
    data = [collate(documents([5, 7]))]
    damping = {m.name: torch.arange(1.0, len(m.blocks) + 1).double() / 100 for m in tracked}
    D = torch.cat([damping[m.name].repeat_interleave(m.block_rows * m.shape[1]) for m in tracked])
    H = dense_ggn(model, tracked, objective, data)
    b = {m.name: torch.randn(2, *m.shape).double() for m in tracked}
    expected = torch.linalg.solve(H + torch.diag(D), flat(b, tracked).T).T
    solver = Arnoldi(GGN(model, tracked, objective, data), tracked, damping, top=len(H), iterations=len(H))
    torch.testing.assert_close(flat(solver.apply(b), tracked), expected)


@pytest.mark.parametrize("values", [[1.0] * 12, [2.0] * 5 + [0.5] * 4 + [0.0] * 3, [0.0] * 12, [3.0] + [0.0] * 11])
def test_an_exhausted_krylov_space_goes_on_with_another_direction(values):
    """Equal eigenvalues: the space of one start vector holds one direction of each."""
    operator, tracked, H, _ = matrix_problem(values)
    b = {"m": torch.randn(2, 3, 4).double()}
    solver = Arnoldi(operator, tracked, DAMPING, top=12, iterations=12)
    expected = torch.linalg.solve(H + DAMPING * torch.eye(12).double(), b["m"].flatten(1).T).T
    torch.testing.assert_close(solver.apply(b)["m"].flatten(1), expected)
    torch.testing.assert_close(solver.eigenpairs.values, torch.tensor(values).double())


def test_single_precision_keeps_the_basis_orthogonal():
    values = torch.logspace(0, -12, 60).double()
    operator, _, _, basis = matrix_problem(values)
    operator.H = operator.H.float()
    pairs = top_eigenpairs(operator, {"m": torch.ones(1, 15, 4)}, top=10, iterations=60)
    V = pairs.vectors["m"].flatten(1)
    assert V.dtype == torch.float32
    torch.testing.assert_close(V @ V.T, torch.eye(10), rtol=0, atol=1e-5)
    torch.testing.assert_close(pairs.values, values[:10], rtol=1e-4, atol=1e-6)
    assert (V.double() @ basis[:, :10]).abs().diagonal()[:5].min() > 0.999


def test_the_same_seed_gives_the_same_answer_and_later_queries_cost_no_product(problem):
    operator, tracked, _, b = problem
    first = Arnoldi(operator, tracked, DAMPING, top=3, iterations=8)
    x = first.apply(b)
    before = operator.products
    one = first.apply({name: V[1:2] for name, V in b.items()})
    assert operator.products == before
    again = Arnoldi(operator, tracked, DAMPING, top=3, iterations=8).apply(b)
    other = Arnoldi(operator, tracked, DAMPING, top=3, iterations=8, seed=1)
    other.apply(b)
    for name, V in x.items():
        torch.testing.assert_close(one[name], V[1:2])
        assert torch.equal(again[name], V)
    assert not torch.equal(other.eigenpairs.values, first.eigenpairs.values)


def test_bad_input_and_breakdown_are_errors_that_name_the_remedy():
    b = {"m": torch.randn(1, 3, 4).double()}
    operator, tracked, _, _ = matrix_problem([1.0] * 3 + [0.0] * 9)
    with pytest.raises(MsifError, match="fewer eigenpairs, or use --damping"):
        Arnoldi(operator, tracked, 0.0, top=12, iterations=12).apply(b)
    with pytest.raises(MsifError, match="at least as many iterations"):
        Arnoldi(operator, tracked, DAMPING, top=5, iterations=4).apply(b)
    with pytest.raises(MsifError, match="complement has no inverse"):
        Arnoldi(operator, tracked, 0.0, top=2, iterations=12, complement=True).apply(b)
    with pytest.raises(MsifError, match="look at that query's gradient"):
        Arnoldi(operator, tracked, DAMPING, top=2).apply({"m": b["m"] * float("nan")})
    for bad in (float("nan"), float("inf")):
        with pytest.raises(MsifError, match=r"holds NaN or infinity.*--dtype float32"):
            Arnoldi(Matrix(torch.full((12, 12), bad).double()), tracked, DAMPING, top=2).apply(b)
