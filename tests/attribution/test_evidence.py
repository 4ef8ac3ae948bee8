"""τ as the evidence has it, against the largest evidence of linear regressions and dense sums, in float64."""

import copy

import numpy as np
import pytest
import torch
from helpers import Classify, DeepLinear, examples, track_plain
from scipy import optimize
from test_factors_dense import fitted
from transformers import GPT2Config, GPT2LMHeadModel

from msif import MsifError, evidence_tau
from msif.attribution.gradients import Side
from msif.curvature.evidence import evidence_pull
from msif.data.documents import collate
from msif.models.objectives import CausalLM
from msif.models.select import track_modules
from msif.models.training import TrainingUnknown


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("start", [False, True])
def test_it_is_the_largest_evidence_of_a_linear_regression(seed, start):
    """With unit noise the likelihood with weights integrated out is exact: N(y; Xw₀, I + XXᵀ/(Nα))."""
    draw = np.random.default_rng(seed)
    N, P = 30, 8
    X = draw.normal(size=(N, P)) * np.logspace(0.5, -1.5, P)
    began = draw.normal(size=P) if start else np.zeros(P)
    y = X @ (began + draw.normal(size=P)) + draw.normal(size=N)

    def surprise(log_alpha):
        covariance = np.eye(N) + X @ X.T / (N * np.exp(log_alpha))
        residual = y - X @ began
        return np.linalg.slogdet(covariance)[1] + residual @ np.linalg.solve(covariance, residual)

    best = optimize.minimize_scalar(surprise, bounds=(-15, 10), method="bounded", options={"xatol": 1e-10})
    alpha = np.exp(best.x)
    # the weights at the optimum of the mean loss with that pull
    H = X.T @ X / N
    way = np.linalg.solve(H + alpha * np.eye(P), X.T @ (y - X @ began) / N)
    σ = torch.from_numpy(np.linalg.eigvalsh(H).clip(0))
    assert evidence_pull(σ, float(way @ way), N) == pytest.approx(alpha, rel=2e-3)


@pytest.mark.parametrize("squared", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("decades", [0, 3, 12])
def test_the_equation_is_solved_whatever_the_spectrum(decades, squared):
    σ = torch.logspace(-decades, 0, 40, dtype=torch.float64).view(2, 4, 5) * 1e-3
    alpha = evidence_pull(σ, squared, 700)
    assert 700 * alpha * squared == pytest.approx(float((σ / (σ + alpha)).sum()), rel=2e-3)
    assert evidence_pull(σ.float(), squared, 700) == pytest.approx(alpha, rel=2e-3)
    with_zeros = torch.cat([σ.flatten(), torch.zeros(60)])
    assert evidence_pull(with_zeros, squared, 700) == pytest.approx(alpha, rel=2e-3)


def classifiers(sizes=(4, 5, 3)):
    torch.manual_seed(3)
    return [DeepLinear(list(sizes)).double() for _ in range(2)]


def side_of(model):
    return Side(model, track_plain(model), Classify())


def data():
    torch.manual_seed(1)
    return examples(torch.randn(12, 4).double(), torch.randint(0, 3, (12,)))


def matrix(layer):
    return torch.cat([layer.weight, layer.bias[:, None]], 1).detach()


@pytest.mark.parametrize("started", [True, False])
def test_each_module_has_a_number_by_its_own_way(started):
    last, first = classifiers()
    side = side_of(last)
    factors = fitted(last, side.tracked, Classify(), data())[2]
    found = evidence_tau(side, factors, 12, side_of(first) if started else None)
    assert list(found) == ["layers.0", "layers.1"]
    for name, own, other in zip(found, last.layers, first.layers, strict=True):
        way = matrix(own) - (matrix(other) if started else 0)
        σ, alpha = factors[name].Lambda, 1 / float(found[name])
        assert found[name].shape == (1,)
        squared = float(way.square().sum())
        assert 12 * alpha * squared == pytest.approx(float((σ / (σ + alpha)).sum()), rel=2e-3)
    assert float(found["layers.0"]) != pytest.approx(float(found["layers.1"]), rel=0.01)


def test_blocks_of_heads_and_weights_that_are_stored_transposed():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    models = [GPT2LMHeadModel(config).double() for _ in range(2)]
    with torch.no_grad():
        for parameter in models[0].parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    lm, texts = CausalLM(), [torch.randint(0, 64, (7,)).tolist() for _ in range(4)]
    sides = [Side(model, track_modules(model, "everything"), lm) for model in models]
    batches = [collate([document(number, ids) for number, ids in enumerate(texts)])]
    factors = fitted(models[0], sides[0].tracked, lm, batches)[2]
    found = evidence_tau(sides[0], factors, 24, sides[1])
    attention = models[0].transformer.h[0].attn.c_attn, models[1].transformer.h[0].attn.c_attn
    squared = sum(float((a - b).square().sum()) for a, b in zip(*(m.parameters() for m in attention), strict=True))
    name = next(name for name in found if "c_attn" in name)
    alpha = 1 / float(found[name][0])
    assert len(found[name]) == 6 and bool((found[name] == found[name][0]).all())
    spectrum = factors[name].Lambda
    assert 24 * alpha * squared == pytest.approx(float((spectrum / (spectrum + alpha)).sum()), rel=2e-3)
    assert {len(own) for own in found.values()} == {1, 6}


def document(number, ids):
    from msif.data.documents import Document

    return Document(number, torch.tensor(ids), torch.ones(len(ids), dtype=torch.bool))


def test_modules_that_the_start_lacks_are_left_out():
    last, first = classifiers()
    other = DeepLinear([4, 5, 2]).double()
    with torch.no_grad():
        for own, value in zip(other.layers[0].parameters(), first.layers[0].parameters(), strict=True):
            own.copy_(value)
    factors = fitted(last, side_of(last).tracked, Classify(), data())[2]
    whole, few = (evidence_tau(side_of(last), factors, 12, side_of(start)) for start in (first, other))
    assert list(few) == ["layers.0"] and torch.equal(few["layers.0"], whole["layers.0"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_weights_are_taken_apart_in_float32(dtype):
    """The square of a small way is zero in 16 bits."""
    last, first = classifiers()
    factors = fitted(last, side_of(last).tracked, Classify(), data())[2]
    with torch.no_grad():
        for layer, own in zip(first.layers, last.layers, strict=True):
            own.weight *= 0.01
            layer.weight.copy_(own.weight * 1.02)
            layer.bias.copy_(own.bias)
    narrow = [model.to(dtype) for model in (last, first)]
    exact = [copy.deepcopy(model).double() for model in narrow]
    found, expected = (evidence_tau(side_of(a), factors, 12, side_of(b)) for a, b in (narrow, exact))
    for name, own in found.items():
        assert float(own) == pytest.approx(float(expected[name]), rel=2e-3)


def test_what_has_not_moved_or_has_no_curvature_is_named():
    last, first = classifiers()
    factors = fitted(last, side_of(last).tracked, Classify(), data())[2]
    with torch.no_grad():
        for own, value in zip(last.layers[1].parameters(), first.layers[1].parameters(), strict=True):
            own.copy_(value)
    with pytest.raises(TrainingUnknown, match=r"'layers.1' has not moved: leave out with --modules what was frozen"):
        evidence_tau(side_of(last), factors, 12, side_of(first))
    flat = {**factors, "layers.0": copy.copy(factors["layers.0"])}
    object.__setattr__(flat["layers.0"], "Lambda", torch.zeros_like(factors["layers.0"].Lambda))
    with pytest.raises(MsifError, match=r"'layers.0' has no curvature: leave it out with --modules"):
        evidence_tau(side_of(last), flat, 12)
