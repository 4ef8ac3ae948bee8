"""Conjugate gradients against a dense solve in float64."""

import itertools

import pytest
import torch
from helpers import MLP, Classify, documents, examples, tiny_lm, track_plain
from test_factors_dense import fitted
from test_ggn import dense_ggn, flat

from msif.curvature.cg import CG, Damped, conjugate_gradients
from msif.curvature.filters import DampedInverse
from msif.curvature.fit import FitSettings
from msif.curvature.ggn import GGN
from msif.curvature.preconditioners import EKFAC, Preconditioner
from msif.data.documents import collate
from msif.errors import MsifError
from msif.models.objectives import CausalLM
from msif.models.select import track_modules

DAMPING = 1e-2


class Matrix:
    """An explicit matrix as an operator on one module."""

    def __init__(self, H):
        self.H = H

    def matvec(self, vectors):
        return {"m": (vectors["m"].flatten(1) @ self.H).view_as(vectors["m"])}


class Inverse(Preconditioner):
    def __init__(self, H):
        self.inverse = torch.linalg.inv(H)

    def apply(self, vectors):
        return {"m": (vectors["m"].flatten(1) @ self.inverse).view_as(vectors["m"])}


def positive_matrix(size=12):
    root = torch.randn(size, size, dtype=torch.float64)
    return root @ root.T + 0.1 * torch.eye(size, dtype=torch.float64)


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    model, objective = tiny_lm(), CausalLM()
    tracked = track_modules(model)
    data = [collate(documents([6, 5, 7, 4], seed=s)) for s in range(2)]
    H = dense_ggn(model, tracked, objective, data)
    b = {m.name: torch.randn(3, *m.shape, dtype=torch.float64) for m in tracked}
    exact = torch.linalg.solve(H + DAMPING * torch.eye(len(H)).double(), flat(b, tracked).T).T
    return model, tracked, objective, data, b, exact


def test_it_solves_the_damped_system_for_every_right_hand_side(problem):
    model, tracked, objective, data, b, exact = problem
    solver = CG(GGN(model, tracked, objective, data), tracked, DAMPING, iterations=2000, tolerance=1e-9)
    torch.testing.assert_close(flat(solver.apply(b), tracked), exact, rtol=1e-5, atol=1e-5)
    assert solver.solution.converged


def test_ekfac_preconditioning_takes_a_tenth_of_the_products():
    """On a linear softmax model with inputs of very different scales, where EK-FAC is nearly exact."""
    torch.manual_seed(0)
    model, objective = MLP([10, 5]).double(), Classify()
    tracked = track_plain(model)
    data = examples(torch.randn(600, 10).double() * torch.logspace(0, -2, 10).double(), torch.randint(0, 5, (600,)))
    _, _, factors = fitted(model, tracked, objective, data, FitSettings(label_samples=5))
    b = {m.name: torch.randn(2, *m.shape).double() for m in tracked}
    products = []
    for approximate in (None, EKFAC(factors, DampedInverse(1e-5))):
        operator = GGN(model, tracked, objective, data)
        solver = CG(operator, tracked, 1e-5, approximate, iterations=600, tolerance=1e-3)
        solver.apply(b)
        assert solver.solution.converged
        products.append(operator.products)
    assert products[1] <= products[0] / 10


def test_the_error_in_the_energy_norm_never_grows():
    H, b = positive_matrix(), {"m": torch.randn(1, 3, 4, dtype=torch.float64)}
    exact = torch.linalg.solve(H, b["m"].flatten())
    errors = []
    for iterations in range(13):
        found = conjugate_gradients(Matrix(H), b, iterations=iterations, tolerance=0.0)
        error = found.x["m"].flatten() - exact
        errors.append(float(error @ H @ error))
    assert all(later <= earlier for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 1e-8 * errors[0]


def test_an_exact_preconditioner_needs_no_iteration():
    H, b = positive_matrix(), {"m": torch.randn(2, 3, 4, dtype=torch.float64)}
    found = conjugate_gradients(Matrix(H), b, preconditioner=Inverse(H), tolerance=1e-8)
    assert found.converged and found.iterations == 0


def test_right_hand_sides_do_not_touch_each_other():
    H, b = positive_matrix(), {"m": torch.randn(3, 3, 4, dtype=torch.float64)}
    together = conjugate_gradients(Matrix(H), b, iterations=30, tolerance=1e-6)
    for query in range(3):
        alone = conjugate_gradients(Matrix(H), {"m": b["m"][query : query + 1]}, iterations=30, tolerance=1e-6)
        torch.testing.assert_close(together.x["m"][query], alone.x["m"][0])
    assert not conjugate_gradients(Matrix(H), b, iterations=1, tolerance=1e-9).converged


def test_damping_is_per_block_where_asked():
    model = tiny_lm()
    tracked = track_modules(model, "attention")
    zero = Matrix(torch.zeros(1, 1))
    zero.matvec = lambda vectors: {name: torch.zeros_like(V) for name, V in vectors.items()}
    damping = {m.name: torch.arange(1.0, len(m.blocks) + 1).double() for m in tracked}
    V = {m.name: torch.ones(1, *m.shape).double() for m in tracked}
    product = Damped(zero, tracked, damping).matvec(V)
    for m in tracked:
        for number, block in enumerate(m.blocks, start=1):
            assert torch.all(product[m.name][:, block.start : block.stop] == number)


@pytest.mark.parametrize(
    ("H", "b", "message"),
    [
        (-torch.eye(12).double(), torch.ones(1, 3, 4), "no positive curvature"),
        (torch.eye(12).double(), torch.zeros(1, 3, 4), "zero"),
        (torch.eye(12).double(), torch.full((1, 3, 4), float("nan")), "NaN"),
        (torch.full((12, 12), float("nan")).double(), torch.ones(1, 3, 4), r"curvature|NaN"),
    ],
)
def test_breakdown_and_bad_input_are_errors_that_name_the_remedy(H, b, message):
    with pytest.raises(MsifError, match=message):
        conjugate_gradients(Matrix(H), {"m": b.double()})
