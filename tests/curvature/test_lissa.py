"""Stochastic solvers against dense solves in float64: the limit, the noise, and divergence."""

import numpy as np
import pytest
import torch
from helpers import MLP, Classify, documents, examples, tiny_lm, track_modules, track_plain
from test_factors_dense import fitted
from test_ggn import dense_ggn, flat

from msif.curvature.cg import Damped
from msif.curvature.filters import DampedInverse
from msif.curvature.fit import FitSettings
from msif.curvature.ggn import GGN
from msif.curvature.lissa import LiSSA, LiSSASettings, PreconditionedLiSSA, _still_growing
from msif.curvature.minibatches import MiniBatches
from msif.curvature.power import largest_eigenvalue
from msif.curvature.preconditioners import EKFAC, Identity, Preconditioner
from msif.data.documents import collate
from msif.errors import MsifError
from msif.models.objectives import CausalLM

DAMPING = 0.05


class Problem:
    """A small classifier with its dense curvature; b of two right-hand sides."""

    def __init__(self):
        torch.manual_seed(0)
        self.model, self.objective = MLP([4, 3, 3]).double(), Classify()
        self.tracked = track_plain(self.model)
        self.x, self.y = torch.randn(24, 4).double(), torch.randint(0, 3, (24,))
        self.b = {m.name: torch.randn(2, *m.shape).double() for m in self.tracked}
        H = dense_ggn(self.model, self.tracked, self.objective, examples(self.x, self.y))
        self.A = H + DAMPING * torch.eye(len(H)).double()
        self.largest = float(torch.linalg.eigvalsh(self.A)[-1])
        self.exact = torch.linalg.solve(self.A, flat(self.b, self.tracked).T).T

    def operator(self, size=24):
        return GGN(self.model, self.tracked, self.objective, examples(self.x, self.y, size))

    def ekfac(self):
        settings = FitSettings(label_samples=20)
        _, _, factors = fitted(self.model, self.tracked, self.objective, examples(self.x, self.y), settings)
        return EKFAC(factors, DampedInverse(DAMPING))

    def error(self, x):
        return float((flat(x, self.tracked) - self.exact).norm() / self.exact.norm())


@pytest.fixture(scope="module")
def problem():
    return Problem()


def test_on_one_batch_lissa_is_the_neumann_series_and_its_limit_is_the_inverse(problem):
    scale = 1.2 * problem.largest
    short = LiSSA(problem.operator(), problem.tracked, DAMPING, LiSSASettings(depth=3), scale=scale)
    b = flat(problem.b, problem.tracked).T
    M = torch.eye(len(problem.A)).double() - problem.A / scale
    series = sum(torch.linalg.matrix_power(M, i) @ b for i in range(4)) / scale
    torch.testing.assert_close(flat(short.apply(problem.b), problem.tracked), series.T)

    long = LiSSA(problem.operator(), problem.tracked, DAMPING, LiSSASettings(depth=300), scale=scale)
    assert problem.error(long.apply(problem.b)) < 1e-4
    assert long.residuals.shape == (1, 300, 2) and long.residuals[0, -1].max() < 1e-3
    # 300 steps and 10 power iterations; two vectors share each pass
    assert long.products == pytest.approx(2 * 300 + 10)


def test_the_mean_curvature_of_mini_batches_is_exactly_h_however_unequal_they_are():
    model, objective = tiny_lm(), CausalLM()
    tracked = track_modules(model)
    data = [collate(documents([9, 7, 4], prompt=2)), collate(documents([3], prompt=3)), collate(documents([5], seed=1))]
    whole = GGN(model, tracked, objective, data)
    v = {m.name: torch.randn(1, *m.shape).double() for m in tracked}
    minibatches = MiniBatches(whole)
    assert minibatches.shares.tolist() == pytest.approx([14 / 18, 0, 4 / 18])
    parts = [(share, minibatches.only(i).matvec(v)) for i, share in enumerate(minibatches.shares) if share]
    expected = whole.matvec(v)
    for name in v:
        torch.testing.assert_close(sum(share * part[name] for share, part in parts), expected[name])
    draws = [minibatches.draw(np.random.default_rng(seed)).share for seed in range(300)]
    assert set(draws) == {14 / 18, 4 / 18} and draws.count(14 / 18) == pytest.approx(300 * 14 / 18, abs=30)


def test_a_mini_batch_of_several_batches_is_their_weighted_mean(problem):
    minibatches = MiniBatches(problem.operator(6), per_draw=5)
    drawn = minibatches.draw(np.random.default_rng(0))
    assert len(drawn.parts) < 5 and sum(drawn.weights) == pytest.approx(1)
    single = [part.matvec(problem.b) for part in drawn.parts]
    for name, product in drawn.matvec(problem.b).items():
        torch.testing.assert_close(product, sum(w * p[name] for w, p in zip(drawn.weights, single, strict=True)))


def test_over_mini_batches_repeats_average_towards_the_inverse(problem):
    one = LiSSA(problem.operator(6), problem.tracked, DAMPING, LiSSASettings(depth=100))
    many = LiSSA(problem.operator(6), problem.tracked, DAMPING, LiSSASettings(depth=100, repeats=6))
    few, more = problem.error(one.apply(problem.b)), problem.error(many.apply(problem.b))
    assert more < few and more < 0.15
    assert one.scale > problem.largest  # of single mini-batches
    assert one.products == pytest.approx((2 * 100 + 4 * 10) / 4)


def test_preconditioned_steps_over_mini_batches_correct_ekfac(problem):
    """It starts at EK-FAC's answer; batches of 3 of 24 examples take it to a third of its error and less."""
    P = problem.ekfac()
    solver = PreconditionedLiSSA(problem.operator(3), problem.tracked, DAMPING, P, LiSSASettings(depth=100))
    assert problem.error(solver.apply(problem.b)) < problem.error(P.apply(problem.b)) / 3
    larger = LiSSASettings(depth=100, batches=12)
    noisy, calm = (
        PreconditionedLiSSA(problem.operator(3), problem.tracked, DAMPING, P, settings, step=0.19, tail=0)
        for settings in (LiSSASettings(depth=100), larger)
    )
    assert problem.error(calm.apply(problem.b)) < problem.error(noisy.apply(problem.b))


def test_averaging_the_tail_takes_noise_out_and_a_badly_conditioned_problem_takes_a_tenth_of_plain_steps():
    """A linear softmax model with inputs of very different scales, where EK-FAC is nearly exact."""
    torch.manual_seed(0)
    model, objective, damping = MLP([6, 3]).double(), Classify(), 1e-3
    tracked = track_plain(model)
    data = examples(torch.randn(60, 6).double() * torch.logspace(0, -1.5, 6).double(), torch.randint(0, 3, (60,)), 10)
    _, _, factors = fitted(model, tracked, objective, data, FitSettings(label_samples=20))
    P = EKFAC(factors, DampedInverse(damping))
    b = {m.name: torch.randn(1, *m.shape).double() for m in tracked}
    H = dense_ggn(model, tracked, objective, data)
    exact = torch.linalg.solve(H + damping * torch.eye(len(H)).double(), flat(b, tracked).T).T

    def error(solver):
        return float((flat(solver.apply(b), tracked) - exact).norm() / exact.norm())

    operator = GGN(model, tracked, objective, data)
    plain = error(LiSSA(operator, tracked, damping, LiSSASettings(depth=300)))
    last = error(PreconditionedLiSSA(operator, tracked, damping, P, LiSSASettings(depth=30), tail=0))
    averaged = error(PreconditionedLiSSA(operator, tracked, damping, P, LiSSASettings(depth=100)))
    assert averaged < last < 0.1 < plain


def test_the_limit_of_the_preconditioned_iteration_is_the_inverse(problem):
    solver = PreconditionedLiSSA(
        problem.operator(), problem.tracked, DAMPING, problem.ekfac(), LiSSASettings(depth=100), tail=0
    )
    assert problem.error(solver.apply(problem.b)) < 1e-6


def test_the_same_seed_gives_the_same_answer_and_right_hand_sides_do_not_touch_each_other(problem):
    def solve(b, seed=0):
        settings = LiSSASettings(depth=10, repeats=2, seed=seed)
        return LiSSA(problem.operator(6), problem.tracked, DAMPING, settings, scale=6.0).apply(b)

    together = solve(problem.b)
    second = solve({name: V[1:] for name, V in problem.b.items()})
    other = solve(problem.b, seed=1)
    for name, V in together.items():
        assert torch.equal(V, solve(problem.b)[name])
        torch.testing.assert_close(V[1:], second[name])
        assert not torch.allclose(V, other[name])


def test_the_largest_eigenvalue_with_and_without_a_preconditioner(problem):
    damped = Damped(problem.operator(), problem.tracked, DAMPING)
    found = largest_eigenvalue(damped, problem.b, iterations=30)
    assert found == pytest.approx(problem.largest, rel=1e-2) and found <= problem.largest * (1 + 1e-12)
    P = problem.ekfac()
    eye = torch.eye(len(problem.A)).double()
    split = torch.split(eye, [m.d_out * m.shape[1] for m in problem.tracked], dim=1)
    columns = {m.name: part.reshape(-1, *m.shape) for m, part in zip(problem.tracked, split, strict=True)}
    expected = torch.linalg.eigvals(flat(P.apply(columns), problem.tracked).T @ problem.A).real.max()
    assert largest_eigenvalue(damped, problem.b, preconditioner=P, iterations=30) == pytest.approx(
        float(expected), rel=1e-2
    )


def test_a_scale_below_half_the_largest_eigenvalue_is_refused_and_one_above_it_converges(problem):
    settings = LiSSASettings(depth=400)
    with pytest.raises(MsifError, match=r"must be above half of it. Use a scale of"):
        LiSSA(problem.operator(), problem.tracked, DAMPING, settings, scale=0.48 * problem.largest).apply(problem.b)
    above = LiSSA(problem.operator(), problem.tracked, DAMPING, settings, scale=0.53 * problem.largest)
    assert problem.error(above.apply(problem.b)) < 1e-4
    P = problem.ekfac()
    with pytest.raises(MsifError, match="Use a step of"):
        PreconditionedLiSSA(problem.operator(), problem.tracked, DAMPING, P, step=20.0).apply(problem.b)


@pytest.mark.parametrize(("share", "size"), [(0.2, 24), (0.2, 6), (0.485, 24), (0.49, 24)])
def test_divergence_that_no_power_iteration_was_spent_on_is_an_error_too(problem, share, size):
    """Fast growth ends the run at once, slow growth is seen in the residuals."""
    settings = LiSSASettings(depth=150, power_iterations=0)
    scale = share * problem.largest
    with pytest.raises(MsifError, match=r"diverged .* use a larger scale"):
        LiSSA(problem.operator(size), problem.tracked, DAMPING, settings, scale=scale).apply(problem.b)
    with pytest.raises(MsifError, match=r"diverged .* use a smaller step"):
        PreconditionedLiSSA(
            problem.operator(size), problem.tracked, DAMPING, Identity(), settings, step=1 / scale
        ).apply(problem.b)


def test_noise_and_its_build_up_are_no_divergence():
    steps = torch.arange(1.0, 401)[:, None]
    noise = torch.rand(400, 1) + 0.5
    assert not _still_growing(noise * 3)
    assert not _still_growing(noise * steps)
    assert not _still_growing(0.99**steps)
    assert _still_growing(1.01**steps)


def test_bad_input_is_an_error_that_names_the_remedy(problem):
    def solver(**options):
        return LiSSA(problem.operator(), problem.tracked, DAMPING, LiSSASettings(depth=2), **options)

    for value in (0.0, float("nan"), float("inf")):
        with pytest.raises(MsifError, match="look at that query's gradient"):
            solver().apply({name: torch.full_like(V, value) for name, V in problem.b.items()})
    for scale in (0.0, -1.0, float("nan")):
        with pytest.raises(MsifError, match=r"scale is .* larger than 0"):
            solver(scale=scale)
    with pytest.raises(MsifError, match="1 or more"):
        LiSSASettings(depth=0)
    with pytest.raises(MsifError, match="tail"):
        PreconditionedLiSSA(problem.operator(), problem.tracked, DAMPING, Identity(), tail=2)
    unsupervised = GGN(tiny_lm(), [], CausalLM(), [collate(documents([3], prompt=3))])
    with pytest.raises(MsifError, match="no supervised token"):
        MiniBatches(unsupervised)


def test_a_curvature_that_is_not_finite_or_not_positive_is_an_error(problem):
    class Bad:
        def __init__(self, factor):
            self.factor = factor

        def matvec(self, vectors):
            return {name: V * self.factor for name, V in vectors.items()}

    for factor in (float("nan"), -1.0, 0.0):
        with pytest.raises(MsifError, match="use a larger --damping"):
            largest_eigenvalue(Bad(factor), problem.b)
    with pytest.raises(MsifError, match=r"(NaN|diverged)"):
        poisoned = PreconditionedLiSSA(problem.operator(), problem.tracked, DAMPING, NotFinite(), step=0.1)
        poisoned.settings = LiSSASettings(depth=2, power_iterations=0)
        poisoned.apply(problem.b)


class NotFinite(Preconditioner):
    def apply(self, vectors):
        return {name: V * float("nan") for name, V in vectors.items()}
