"""NaN or infinity that appears in a backward pass only stops every pass, and names the module and the batch."""

import pytest
import torch
from helpers import MLP, Classify, examples, track_plain
from test_factors_dense import fitted, run

from msif.attribution.gradients import Side, query_gradients
from msif.attribution.scorers import InfluenceScorer
from msif.curvature.covariance import CovariancePass
from msif.curvature.eigenvalues import LambdaPass
from msif.curvature.fit import FitSettings
from msif.curvature.ggn import GGN
from msif.curvature.inputs import find_input_groups
from msif.errors import MsifError


class Poison(torch.autograd.Function):
    """The identity, whose gradient is not finite."""

    @staticmethod
    def forward(ctx, x, value):
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g + ctx.value, None


class Poisoned(MLP):
    """Bad in the batch that holds the largest input."""

    value = float("nan")

    def forward(self, x):
        h = torch.tanh(self.layers[0](x))
        if x.max() > 50:
            h = Poison.apply(h, self.value)
        return self.layers[1](h)


@pytest.fixture(params=[float("nan"), float("inf")])
def poisoned(request):
    torch.manual_seed(0)
    model = Poisoned([4, 5, 3]).double()
    model.value = request.param
    x = torch.randn(6, 4).double()
    good = examples(x.clone(), torch.randint(0, 3, (6,)), size=2)
    x[4, 0] = 60.0
    return model, good, examples(x, torch.randint(0, 3, (6,)), size=2)


NAMED = r"layers\.0' holds NaN or infinity in the batch of rows 4–5"


def test_both_fitting_passes(poisoned):
    model, good, bad = poisoned
    tracked, objective = track_plain(model), Classify()
    groups = find_input_groups(model, tracked, objective, good[0])
    _, _, factors = fitted(model, tracked, objective, good)
    cpu = torch.device("cpu")
    with pytest.raises(MsifError, match=NAMED):
        run(model, tracked, objective, bad, CovariancePass(tracked, groups, cpu, torch.float64), FitSettings())
    with pytest.raises(MsifError, match=NAMED):
        run(model, tracked, objective, bad, LambdaPass(tracked, groups, factors, cpu, torch.float64), FitSettings())


def test_queries_candidates_and_curvature_products(poisoned):
    model, good, bad = poisoned
    side = Side(model, track_plain(model), Classify())
    with pytest.raises(MsifError, match=NAMED):
        query_gradients(side, bad)
    with pytest.raises(MsifError, match=NAMED):
        InfluenceScorer(side, side).score(good, bad)
    vectors = {module.name: torch.ones(1, *module.shape).double() for module in side.tracked}
    with pytest.raises(MsifError, match=NAMED):
        GGN(model, side.tracked, Classify(), bad).matvec(vectors)


def test_labels_of_the_second_pass_are_drawn_anew():
    """With those of the first, Λ would be biased towards the eigenvectors that were fitted to them."""
    torch.manual_seed(0)
    model = MLP([4, 5, 3]).double()
    tracked, objective = track_plain(model), Classify()
    data = examples(torch.randn(6, 4).double(), torch.randint(0, 3, (6,)))
    groups = find_input_groups(model, tracked, objective, data[0])
    _, own, factors = fitted(model, tracked, objective, data)
    again = LambdaPass(tracked, groups, factors, torch.device("cpu"), torch.float64)
    again.stream = CovariancePass.stream
    run(model, tracked, objective, data, again, FitSettings())
    assert not torch.allclose(own.Lambda("layers.1"), again.Lambda("layers.1"), rtol=0.1)
