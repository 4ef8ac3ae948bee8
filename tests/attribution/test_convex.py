"""The two-stage convex case by actual re-optimisation (docs/method.md): a linear softmax model, both stages solved.

Stage 1 minimises mean L_pt + (λ/2)‖θ‖², stage 2 minimises mean L_ft + (α/2)‖θ − θ_pt‖². Upweighting z by ε in stage 1
and solving both again gives dm/dε, which must be −α times the multi-stage formula with the exact curvature.
"""

import pytest
import torch
from helpers import MLP, Classify, examples, track_plain

from msif.attribution.gradients import Side
from msif.attribution.scorers import InfluenceScorer
from msif.curvature.preconditioners import Preconditioner

DAMPING, ALPHA = 0.05, 0.3


class Dense(Preconditioner):
    """The exact inverse of one explicit matrix over vec(W̄)."""

    def __init__(self, H, shift):
        self.inverse = torch.linalg.inv(H + shift * torch.eye(len(H)).double())

    def apply(self, vectors):
        return {name: (V.flatten(1) @ self.inverse).view_as(V) for name, V in vectors.items()}


def losses(theta, x, y):
    W = theta.view(3, 5)
    return torch.nn.functional.cross_entropy(x @ W[:, :4].T + W[:, 4], y, reduction="none")


def minimise(function, theta):
    """Newton's method to machine precision on a strongly convex function."""
    for _ in range(50):
        theta = theta.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(function(theta), theta)
        H = torch.autograd.functional.hessian(function, theta)
        step = torch.linalg.solve(H, gradient)
        theta = theta.detach() - step
        if step.norm() < 1e-14:
            break
    return theta


def train(x, y, x_ft, y_ft, weights):
    first = minimise(
        lambda t: (weights * losses(t, x, y)).sum() + DAMPING / 2 * t.square().sum(), torch.zeros(15).double()
    )
    second = minimise(lambda t: losses(t, x_ft, y_ft).mean() + ALPHA / 2 * (t - first).square().sum(), first)
    return first, second


def model_at(theta):
    model = MLP([4, 3]).double()
    W = theta.view(3, 5)
    with torch.no_grad():
        model.layers[0].weight.copy_(W[:, :4])
        model.layers[0].bias.copy_(W[:, 4])
    return model


def test_finite_difference_of_two_solved_stages_equals_the_multi_stage_formula():
    torch.manual_seed(0)
    x, x_ft, x_q = (torch.randn(n, 4).double() for n in (20, 12, 3))
    y, y_ft, y_q = (torch.randint(0, 3, (n,)) for n in (20, 12, 3))
    uniform = torch.full((20,), 1 / 20).double()
    first, second = train(x, y, x_ft, y_ft, uniform)
    H_pt = torch.autograd.functional.hessian(lambda t: losses(t, x, y).mean(), first)
    H_ft = torch.autograd.functional.hessian(lambda t: losses(t, x_ft, y_ft).mean(), second)
    sides = [Side(model, track_plain(model), Classify()) for model in (model_at(second), model_at(first))]
    scorer = InfluenceScorer(*sides, [Dense(H_pt, DAMPING), Dense(H_ft, ALPHA)])
    scores = scorer.score(examples(x_q, y_q), examples(x, y)).values
    epsilon = 1e-4
    for z in range(20):
        bump = torch.zeros(20).double()
        bump[z] = epsilon
        up, down = (losses(train(x, y, x_ft, y_ft, uniform + s * bump)[1], x_q, y_q) for s in (1, -1))
        slope = (up - down) / (2 * epsilon)
        assert scores[:, z] * ALPHA == pytest.approx((-slope).tolist(), rel=1e-3, abs=1e-8)
