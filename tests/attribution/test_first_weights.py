"""Noise of other first weights, against what dense inverses leave of it, in float64."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import tiny_lm
from test_halves import STEP, TAU, stage_of, stages  # noqa: F401
from test_influence import dense_inverse

from msif.attribution.damping import Damping
from msif.attribution.first_weights import BEARABLE, bearable_noise, foretold_rise
from msif.attribution.halves import Halves
from msif.attribution.stages import build_scorer
from msif.draws import generator


def spread_of(model, module):
    """The standard deviation of what the module's matrix holds."""
    inner = model.get_submodule(module.path)
    return (
        torch.cat([inner.weight, inner.bias[:, None]] if module.bias else [inner.weight], 1).detach().std(correction=0)
    )


def xi_by_hand(halves, number, first):
    """Noise of one half: the modules one after the other, each by the spread of its weights."""
    draw, found = generator(halves.seed, 10, number=number), {}
    for module in first.side.tracked:
        spread = spread_of(first.side.model, module)
        found[module.name] = halves.noise * spread * torch.from_numpy(draw.standard_normal(module.shape, np.float32))
    return found


def test_noise_stays_where_nothing_was_learnt(stages):  # noqa: F811
    first, _ = stages
    halves = Halves(2, STEP, seed=1, noise=0.7)
    build = lambda given: build_scorer("single-stage", first, None, Damping(0.02), halves=given)  # noqa: E731
    found, plain = build(halves).displacements(), build(Halves(2, STEP, seed=1)).displacements()
    alone_ = build(Halves(2, 0, seed=1, noise=0.7)).displacements()
    for number in range(2):
        xi = xi_by_hand(halves, number, first)
        for module in first.side.tracked:
            inverse = dense_inverse(first.factors[module.name], 1 / TAU)
            expected = (inverse @ (xi[module.name].double() / TAU).flatten()).view(module.shape)
            torch.testing.assert_close(alone_[module.name][number], expected)
            torch.testing.assert_close(found[module.name][number], plain[module.name][number] + expected)
            assert 0.1 * xi[module.name].norm() < expected.norm() < xi[module.name].norm()
    assert not torch.equal(alone_[module.name][0], alone_[module.name][1])


def test_a_step_that_is_shortened_leaves_noise_as_it_is(caplog):
    stage = stage_of(tiny_lm(0), "maps")
    faint = {name: replace(one, Lambda=one.Lambda / 1e3) for name, one in stage.factors.items()}
    stage = replace(stage, factors=faint)
    step, noise, both = (
        build_scorer("single-stage", stage, None, halves=Halves(2, *given)).displacements()
        for given in (("auto",), (0.0, 0, 0.2), ("auto", 0, 0.2))
    )
    assert "models bear 0.5 of the step" in caplog.text
    for name, own in both.items():
        torch.testing.assert_close(own, step[name] + noise[name])


def test_noise_alone_needs_no_pass_over_data(stages):  # noqa: F811
    first, _ = stages
    blind = replace(first, batches=[None])  # would fail
    without = replace(first, batches=None)
    scorer = build_scorer("single-stage", without, None, Damping(0.02), halves=Halves(2, 0, noise=0.5))
    assert scorer.displacements().keys() == {module.name for module in first.side.tracked}
    with pytest.raises(AttributeError):
        build_scorer("single-stage", blind, None, Damping(0.02), halves=Halves(2, 0.1, noise=0.5)).displacements()


def test_noise_of_a_block_is_damped_by_its_own_tau(stages):  # noqa: F811
    first, _ = stages
    module = next(m for m in first.side.tracked if len(m.blocks) > 1)
    flat = replace(first.factors[module.name], Lambda=torch.full_like(first.factors[module.name].Lambda, 0.5))
    tau = {**first.tau, module.name: torch.arange(1.0, len(module.blocks) + 1).double()}
    stage = replace(first, factors={**first.factors, module.name: flat}, tau=tau)
    halves = Halves(2, 0, seed=4, noise=1.0)
    (found,) = [
        V[1]
        for name, V in build_scorer("single-stage", stage, None, Damping(0.02), halves=halves).displacements().items()
        if name == module.name
    ]
    xi = xi_by_hand(halves, 1, first)[module.name].double().unflatten(0, (len(module.blocks), -1))
    kept = 1 / (1 + 0.5 * tau[module.name])
    torch.testing.assert_close(found, (xi * kept[:, None, None]).flatten(0, 1))


def with_curvature(stage, times):
    scaled = {name: replace(one, Lambda=times * one.Lambda) for name, one in stage.factors.items()}
    return replace(stage, factors=scaled)


def rise_by_hand(stage):
    """½ s² tr(M H M), M = (1 + τH)⁻¹, from dense matrices."""
    total = 0.0
    for module in stage.side.tracked:
        factors = stage.factors[module.name]
        H = torch.linalg.inv(dense_inverse(factors, 0.5)) - 0.5 * torch.eye(module.shape[0] * module.shape[1])
        left = dense_inverse(factors, 1 / TAU) / TAU
        spread = spread_of(stage.side.model, module)
        total += 0.5 * float(spread) ** 2 * torch.trace(left @ H @ left)
    return float(total)


def test_the_rise_of_the_loss_is_that_of_the_curvature(stages):  # noqa: F811
    first, _ = stages
    expected = rise_by_hand(first)
    assert foretold_rise(first.side, first.factors, first.tau) == pytest.approx(expected, rel=1e-5)
    assert expected > 0
    flat = with_curvature(first, 0.0)
    assert foretold_rise(first.side, flat.factors, flat.tau) == 0


def test_each_block_of_a_module_damps_by_its_own_tau(stages):  # noqa: F811
    first, _ = stages
    module = next(m for m in first.side.tracked if len(m.blocks) > 1)
    side = first.side.restricted([module.name])
    tau = {module.name: torch.arange(1.0, len(module.blocks) + 1).double()}
    own = first.factors[module.name].Lambda
    s = float(spread_of(side.model, module))
    expected = sum(0.5 * s**2 * (L / (1 + t * L) ** 2).sum() for t, L in zip(tau[module.name], own, strict=True))
    assert foretold_rise(side, first.factors, tau) == pytest.approx(float(expected), rel=1e-5)


def test_noise_is_what_a_deep_model_bears(stages, caplog):  # noqa: F811
    """All of it where curvature is small; where it would raise the loss too much, only so much as raises it so far."""
    first, _ = stages
    tau = {name: own / 1e6 for name, own in first.tau.items()}  # a training so short that it damps nothing
    steep = replace(with_curvature(first, 1e4), tau=tau)
    rise = foretold_rise(first.side, steep.factors, tau)
    assert rise > 2 * BEARABLE
    with caplog.at_level(logging.INFO, logger="msif"):
        noise = bearable_noise(first.side, steep.factors, tau)
    assert noise == pytest.approx((BEARABLE / rise) ** 0.5) and noise**2 * rise == pytest.approx(BEARABLE)
    assert f"{rise:.2g} nats" in caplog.text and f"{noise:.2g}" in caplog.text
    assert bearable_noise(first.side, first.factors, first.tau) == 1
    flat = with_curvature(first, 0.0)
    assert bearable_noise(first.side, flat.factors, flat.tau) == 1
    for stage, amount in ((steep, noise), (first, 1.0)):
        build = lambda given, stage=stage: build_scorer("single-stage", stage, None, halves=given)  # noqa: E731
        found, expected = (build(Halves(2, STEP, noise=own)).displacements() for own in ("auto", amount))
        for name, own in found.items():
            assert torch.equal(own, expected[name])
