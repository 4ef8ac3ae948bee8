"""The hop through an adapter against dense matrices, and against both stages trained again."""

import re
from dataclasses import dataclass

import pytest
import torch
from helpers import MLP, Classify, dense_gradients, dense_hop, examples, track_plain
from torch import Tensor

from msif.attribution.gradients import Side
from msif.attribution.scorers import InfluenceScorer
from msif.curvature.adapter_hop import AdapterHop
from msif.curvature.factors import ModuleFactors
from msif.curvature.filters import ProximalHop
from msif.curvature.mean_gradient import mean_gradient
from msif.curvature.preconditioners import EKFAC, Preconditioner
from msif.errors import MsifError
from msif.models.adapted import LowRank

SHAPES = {  # rows of each block, d_in, bias, r, c
    "square": ((5,), 5, False, 2, 1.0),
    "wide": ((4,), 7, False, 3, 0.5),
    "bias": ((6,), 4, True, 2, 1.5),
    "heads": ((3, 3), 5, False, 2, 2.0),
    "heads and bias": ((2, 2, 2), 4, True, 1, 3.0),
    "more than the rank of W": ((3,), 3, True, 4, 0.7),
}


def orthogonal(*shape):
    return torch.linalg.qr(torch.randn(*shape).double())[0].contiguous()


@dataclass
class Map:
    factors: ModuleFactors
    H: Tensor
    low: LowRank
    gradient: Tensor
    V: Tensor

    @property
    def enough(self):
        """α with which the system is positive definite, whatever H is."""
        A = self.low.A
        return float(self.low.scale * torch.linalg.matrix_norm(self.gradient[:, : A.shape[1]], 2))

    def hop(self, alpha, **options):
        return AdapterHop({"m": self.factors}, {"m": self.low}, lambda: {"m": self.gradient}, alpha, **options)

    def applied(self, alpha, **options):
        return self.hop(alpha, **options).apply({"m": self.V})["m"]

    def dense(self, alpha):
        low = self.low
        return dense_hop(self.V, self.H, low.A, low.B, low.scale, self.gradient, alpha)


def a_map(rows, d_in, bias, rank, scale, identity=False):
    d_out, d = sum(rows), d_in + bias
    Q_A, Q_G = orthogonal(d, d), orthogonal(len(rows), rows[0], rows[0])
    Lambda = torch.rand(len(rows), rows[0], d).double() ** 3
    left = torch.eye(d_out).double() if identity else torch.block_diag(*Q_G)
    both = torch.kron(left, Q_A)
    low = LowRank(torch.randn(rank, d_in).double(), torch.randn(d_out, rank).double(), scale)
    sizes = torch.zeros(d), torch.zeros(len(rows), rows[0])
    return Map(
        ModuleFactors(Q_A, None if identity else Q_G, *sizes, Lambda),
        both @ torch.diag(Lambda.flatten()) @ both.T,
        low,
        0.3 * torch.randn(d_out, d).double(),
        torch.randn(3, d_out, d).double(),
    )


@pytest.mark.parametrize("dense", [4096, 0], ids=["factorised", "by iterations"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_hop_is_that_of_dense_matrices(shape, dense):
    one = a_map(*SHAPES[shape])
    for alpha in (1.01 * one.enough, 5.0 * one.enough):
        expected = one.dense((alpha, alpha))
        torch.testing.assert_close(one.applied(alpha, dense=dense), expected, rtol=1e-7, atol=1e-7)
        assert (expected - one.V).norm() > 0.02 * one.V.norm()


@pytest.mark.parametrize("dense", [4096, 0])
def test_the_two_sides_may_have_an_alpha_each(dense):
    one = a_map(*SHAPES["bias"])
    pair = (1.2 * one.enough, 3.0 * one.enough)
    torch.testing.assert_close(one.applied({"m": pair}, dense=dense), one.dense(pair), rtol=1e-7, atol=1e-7)


def test_rows_that_keep_the_identity():
    """An unembedding: no G."""
    one = a_map(*SHAPES["wide"], identity=True)
    alpha = 1.5 * one.enough
    torch.testing.assert_close(one.applied(alpha), one.dense((alpha, alpha)), rtol=1e-8, atol=1e-10)


def test_a_bias_answers_only_by_its_curvature_with_the_weight():
    """J has nothing in its column, so that without such curvature it passes unchanged."""
    one = a_map(*SHAPES["bias"])
    Q = torch.block_diag(orthogonal(4, 4), torch.ones(1, 1)).double()
    one.factors = ModuleFactors(Q, *list(vars(one.factors).values())[1:])
    assert torch.allclose(one.applied(9.0)[..., -1], one.V[..., -1], atol=1e-14)
    assert not torch.allclose(one.applied(9.0)[..., :-1], one.V[..., :-1], atol=1e-2)


@pytest.mark.parametrize("dense", [4096, 0])
def test_a_system_that_is_not_positive_definite_is_refused_and_alpha_named(dense):
    one = a_map(*SHAPES["square"])
    one.gradient = 5 * one.gradient
    with pytest.raises(MsifError, match="module 'm' is not positive definite") as refused:
        one.applied(0.01, dense=dense)
    enough = float(re.search(r"\(([\d.e+-]+) is enough", str(refused.value))[1])
    assert enough == pytest.approx(one.enough, rel=0.05)
    assert torch.isfinite(one.applied(1.1 * enough, dense=dense)).all()
    # also where the queries have next to nothing in the direction of negative curvature
    one.V = 0 * one.V
    with pytest.raises(MsifError, match="not positive definite"):
        one.applied(0.01, dense=dense)


@pytest.mark.parametrize("shape", ["square", "bias"])
def test_natural_scales_are_raised_to_what_is_enough(shape, caplog):
    """Each side's own, where a training ended before its optimum; a number that was asked for is not."""
    one = a_map(*SHAPES[shape])
    caplog.set_level("INFO", "msif")
    for pair in ((0.01, 2 * one.enough), (0.01, 0.02)):
        expected = one.dense([max(alpha, 1.01 * one.enough) for alpha in pair])
        torch.testing.assert_close(one.applied({"m": pair}), expected, rtol=1e-7, atol=1e-7)
        assert "in 1 of its 1 maps α is raised" in caplog.text
    caplog.clear()
    hop = one.hop({"m": (1.2 * one.enough, 1.3 * one.enough)})
    hop.apply({"m": one.V})
    assert not hop.raised and not caplog.text


def test_what_the_adapter_does_not_touch_and_what_was_trained_whole():
    one, other = a_map(*SHAPES["square"]), torch.randn(2, 3, 4)
    factors = {"m": one.factors, "w": one.factors}
    hop = AdapterHop(factors, {"m": one.low}, lambda: {"m": one.gradient}, 9.0, ["w"])
    found = hop.apply({"other": other, "w": one.V, "m": one.V})
    assert found["other"] is other
    assert torch.equal(found["w"], EKFAC(factors, ProximalHop(9.0)).apply({"w": one.V})["w"])
    assert torch.equal(found["m"], one.applied(9.0)) and hop.blockwise


def test_float32_queries_stay_so():
    one = a_map(*SHAPES["heads"])
    expected, one.V = one.applied(9.0), one.V.float()
    found = one.applied(9.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), {"m": (1.0, 0.0)}])
def test_without_a_pull_there_is_no_hop(alpha):
    with pytest.raises(MsifError, match="needs a pull above 0"):
        a_map(*SHAPES["square"]).hop(alpha)


def test_factors_that_are_missing():
    one = a_map(*SHAPES["square"])
    with pytest.raises(MsifError, match="no factors for module 'm'"):
        AdapterHop({}, {"m": one.low}, dict, 1.0).apply({"m": one.V})


def test_the_mean_gradient():
    model, x, y = MLP([4, 5, 3]).double(), torch.randn(7, 4).double(), torch.randint(0, 3, (7,))
    tracked = track_plain(model)
    expected = dense_gradients(model, tracked, torch.nn.functional.cross_entropy(model(x), y))
    found = mean_gradient(model, tracked, Classify(), examples(x, y, 3))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])
    with pytest.raises(MsifError, match="no token of the training data"):
        mean_gradient(model, tracked, Classify(), [])


DAMPING, SCALE, FEATURES = 0.05, 2.0, 4


def losses(W, x, y):
    return torch.nn.functional.cross_entropy(x @ W[:, :-1].T + W[:, -1], y, reduction="none")


def newton(function, theta):
    for _ in range(50):
        theta = theta.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(function(theta), theta)
        step = torch.linalg.solve(torch.autograd.functional.hessian(function, theta), gradient)
        theta = theta.detach() - step
        if step.norm() < 1e-13:
            break
    return theta


def descended(function, theta):
    """A minimum, by L-BFGS and then Newton's method."""
    theta = theta.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=2000, tolerance_grad=1e-10, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = function(theta)
        value.backward()
        return value

    optimizer.step(closure)
    return newton(function, theta)


class TwoStages:
    """Softmax regression with a bias: pre-trained whole, then by an adapter of its weight with a pull to its start."""

    def __init__(self, classes, rank, alpha, seed):
        torch.manual_seed(seed)
        self.classes, self.rank, self.alpha = classes, rank, alpha
        self.x, self.x_ft, self.x_q = (torch.randn(n, FEATURES).double() for n in (16, 12, 3))
        self.y, self.y_ft, self.y_q = (torch.randint(0, classes, (n,)) for n in (16, 12, 3))
        start = [0.5 * torch.randn(rank, FEATURES).double(), torch.zeros(classes, rank).double()]
        self.start = torch.cat([part.flatten() for part in start])
        self.uniform = torch.full((16,), 1 / 16).double()
        self.first = self.pretrained(self.uniform)
        self.phi = descended(self.objective(self.first), self.start)
        self.last = self.effective(self.first, self.phi)

    def pretrained(self, weights):
        shape = (self.classes, FEATURES + 1)

        def objective(theta):
            return (weights * losses(theta.view(shape), self.x, self.y)).sum() + DAMPING / 2 * theta.square().sum()

        return newton(objective, torch.zeros(shape).double().flatten()).view(shape)

    def parts(self, phi):
        return phi[: self.rank * FEATURES].view(self.rank, FEATURES), phi[self.rank * FEATURES :].view(-1, self.rank)

    def effective(self, first, phi):
        A, B = self.parts(phi)
        return first + torch.nn.functional.pad(SCALE * B @ A, (0, 1))

    def objective(self, first):
        def value(phi):
            pull = self.alpha / 2 * (phi - self.start).square().sum()
            return losses(self.effective(first, phi), self.x_ft, self.y_ft).mean() + pull

        return value

    def slopes(self, epsilon=1e-4):
        """dm/dε of both stages trained again with z upweighted by ±ε, (3, 16)."""
        columns = []
        for z in range(16):
            bump = epsilon * torch.eye(16)[z].double()
            ends = []
            for weights in (self.uniform + bump, self.uniform - bump):
                first = self.pretrained(weights)
                phi = newton(self.objective(first), self.phi)
                ends.append(losses(self.effective(first, phi), self.x_q, self.y_q))
            columns.append((ends[0] - ends[1]) / (2 * epsilon))
        return torch.stack(columns, 1)

    def hessian(self, W, x, y):
        return torch.autograd.functional.hessian(lambda w: losses(w.view_as(W), x, y).mean(), W.flatten())

    def gradients(self, W, x, y):
        """(n, classes, d)."""
        return torch.autograd.functional.jacobian(lambda w: losses(w, x, y), W)

    def model(self, W):
        model = MLP([FEATURES, self.classes]).double()
        with torch.no_grad():
            model.layers[0].weight.copy_(W[:, :-1])
            model.layers[0].bias.copy_(W[:, -1])
        return model


class Dense(Preconditioner):
    def __init__(self, H):
        self.inverse = torch.linalg.inv(H + DAMPING * torch.eye(len(H)).double())

    def apply(self, vectors):
        return {name: (V.flatten(1) @ self.inverse).view_as(V) for name, V in vectors.items()}


@pytest.mark.parametrize("dense", [4096, 0])
@pytest.mark.parametrize("seed", [0, 1])
def test_two_stages_trained_again_give_what_the_library_computes(seed, dense):
    """Of two classes the Hessian is a Kronecker product, so that EK-FAC is exact."""
    stages = TwoStages(2, 1, 0.05, seed)
    p = torch.softmax(stages.x_ft @ stages.last[:, :-1].T + stages.last[:, -1], 1)[:, 0]
    x = torch.cat([stages.x_ft, torch.ones(12, 1).double()], 1)
    values, Q_A = torch.linalg.eigh(x.T @ ((p * (1 - p))[:, None] * x) / 12)
    Q_G = torch.tensor([[[1.0, 1.0], [1.0, -1.0]]]).double() / 2**0.5
    Lambda = torch.stack([0 * values, 2 * values])[None]
    factors = {"layers.0": ModuleFactors(Q_A, Q_G, values, torch.zeros(1, 2), Lambda)}
    sides = [Side(model, track_plain(model), Classify()) for model in map(stages.model, (stages.last, stages.first))]
    A, B = stages.parts(stages.phi)
    assert B.norm() > 0.05
    hop = AdapterHop(
        factors,
        {"layers.0": LowRank(A, B, SCALE)},
        lambda: mean_gradient(sides[0].model, sides[0].tracked, Classify(), examples(stages.x_ft, stages.y_ft)),
        stages.alpha,
        dense=dense,
    )
    H_pt = stages.hessian(stages.first, stages.x, stages.y)
    scores = InfluenceScorer(*sides, [Dense(H_pt), hop]).score(
        examples(stages.x_q, stages.y_q), examples(stages.x, stages.y)
    )
    slopes = stages.slopes()
    torch.testing.assert_close(
        torch.from_numpy(scores.values), -slopes, rtol=1e-5, atol=1e-5 * float(slopes.abs().max())
    )


@pytest.mark.parametrize("alpha", [0.05, 0.5])
def test_the_formula_is_exact_and_no_part_of_it_can_go(alpha):
    """Three classes and exact Hessians; correlations with both stages trained again, as in docs/method.md."""
    stages = TwoStages(3, 2, alpha, 0)
    slopes = stages.slopes()
    last, data = stages.last, (stages.x_ft, stages.y_ft)
    H, gradient = stages.hessian(last, *data), stages.gradients(last, *data).mean(0)
    V = stages.gradients(last, stages.x_q, stages.y_q)
    A, B = stages.parts(stages.phi)
    given = {"A": A, "B": B, "scale": SCALE, "gradient": gradient, "alpha": (alpha, alpha)}
    whole = alpha * torch.linalg.inv(H + alpha * torch.eye(len(H)).double())
    hops = {
        "hop": dense_hop(V, H, **given),
        "without S": dense_hop(V, H, **given, bilinear=False),
        "as of all weights": (V.flatten(1) @ whole).view_as(V),
        "none": V,
    }
    inverse = Dense(stages.hessian(stages.first, stages.x, stages.y))
    documents = stages.gradients(stages.first, stages.x, stages.y).flatten(1)
    scores = {name: inverse.apply({"": v})[""].flatten(1) @ documents.T for name, v in hops.items()}
    torch.testing.assert_close(scores["hop"], -slopes, rtol=1e-5, atol=1e-5 * float(slopes.abs().max()))
    rest = {
        name: float(torch.corrcoef(torch.stack([-slopes.flatten(), found.flatten()]))[0, 1])
        for name, found in scores.items()
    }
    print(alpha, rest)
    assert rest.pop("hop") > 1 - 1e-8
    assert max(rest.values()) < (0.9 if alpha < 0.1 else 0.9999)
