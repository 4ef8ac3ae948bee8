"""Every spectral filter against its formula, eigenvalue by eigenvalue, in float64."""

import math

import pytest
import torch

from msif.curvature.filters import Accumulation, DampedInverse, DampedPower, Decay, ProximalHop
from msif.errors import MsifError

NAME = "layers.0.mlp"


@pytest.fixture
def Lambda():
    """Two blocks of three rows, of very different sizes, with zeros."""
    values = torch.rand(2, 3, 4, dtype=torch.float64)
    values[1] *= 1e-6
    values[0, 0, 0] = values[1, 2, 3] = 0.0
    return values


def entries(Lambda, function):
    """A formula of (σ, block), in Python's floats."""
    blocks, rows, columns = Lambda.shape
    result = torch.empty_like(Lambda)
    for b in range(blocks):
        for i in range(rows):
            for j in range(columns):
                result[b, i, j] = function(float(Lambda[b, i, j]), b)
    return result


def same(filter, Lambda, function, rtol=1e-12):
    before = Lambda.clone()
    torch.testing.assert_close(filter(Lambda, NAME), entries(Lambda, function), rtol=rtol, atol=0.0)
    assert torch.equal(Lambda, before)  # a filter never touches Λ


def test_damped_inverse(Lambda):
    same(DampedInverse(0.3), Lambda, lambda s, _: 1 / (s + 0.3))
    same(DampedInverse(0.3, alpha=0.2), Lambda, lambda s, _: 1 / (s + 0.5))
    same(DampedInverse(0.0, alpha=0.2), Lambda, lambda s, _: 1 / (s + 0.2))


def test_relative_damping_is_of_each_block(Lambda):
    means = [float(block.mean()) for block in Lambda]
    same(DampedInverse(), Lambda, lambda s, b: 1 / (s + 0.1 * means[b]))
    same(DampedInverse(damping_scale=2.0, alpha=0.5), Lambda, lambda s, b: 1 / (s + 2 * means[b] + 0.5))
    alone = DampedInverse()(Lambda[1:], NAME)
    assert torch.equal(DampedInverse()(Lambda, NAME)[1:], alone)  # another block's size has no say


def test_a_scale_of_each_block(Lambda):
    scale = {NAME: torch.tensor([0.5, 2.0]), "other": torch.tensor([9.0])}
    value = [0.5, 2.0]
    same(DampedInverse(scale), Lambda, lambda s, b: 1 / (s + value[b]))
    same(DampedInverse(0.1, alpha=scale), Lambda, lambda s, b: 1 / (s + 0.1 + value[b]))
    same(ProximalHop(scale), Lambda, lambda s, b: value[b] / (s + value[b]))
    same(Decay(scale), Lambda, lambda s, b: math.exp(-value[b] * s))
    same(Accumulation(scale), Lambda, lambda s, b: -math.expm1(-value[b] * s) / s if s else value[b])
    same(DampedPower(-0.5, scale), Lambda, lambda s, b: (s + value[b]) ** -0.5)


def test_hop_decay_and_accumulation(Lambda):
    same(ProximalHop(0.2), Lambda, lambda s, _: 0.2 / (s + 0.2))
    same(Decay(7.0), Lambda, lambda s, _: math.exp(-7 * s))
    same(Accumulation(7.0), Lambda, lambda s, _: -math.expm1(-7 * s) / s if s else 7.0)


def test_power(Lambda):
    same(DampedPower(-0.5, 0.3), Lambda, lambda s, _: (s + 0.3) ** -0.5)
    means = [float(block.mean()) for block in Lambda]
    same(DampedPower(-0.25), Lambda, lambda s, b: (s + 0.1 * means[b]) ** -0.25)
    torch.testing.assert_close(DampedPower(-1.0, 0.3)(Lambda, NAME), DampedInverse(0.3)(Lambda, NAME))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_accumulation_has_no_seam_as_tau_sigma_vanishes(dtype):
    """(1 − exp(−τσ))/σ = τ (1 − τσ/2 + …): all digits right on both sides of where the formula is 0/0."""
    tau = 3.0
    sigma = torch.tensor([0.0, *(10.0**-k for k in range(40))], dtype=torch.float64)
    exact = torch.where(sigma > 0, -torch.expm1(-tau * sigma) / sigma.clamp(min=1e-300), torch.tensor(tau).double())
    got = Accumulation(tau)(sigma.to(dtype).view(1, 1, -1), NAME).double().flatten()
    torch.testing.assert_close(got, exact, rtol=4 * torch.finfo(dtype).eps, atol=0.0)


def test_limits(Lambda):
    """Long training inverts what it can; none does nothing."""
    alive = Lambda.clamp(min=1e-3)
    torch.testing.assert_close(Accumulation(1e6)(alive, NAME), 1 / alive)
    assert (Decay(1e6)(alive, NAME) < 1e-12).all() and (Decay(1e-12)(alive, NAME) > 1 - 1e-9).all()
    torch.testing.assert_close(Accumulation(1e-9)(alive, NAME), torch.full_like(alive, 1e-9))
    # the rational forms of DESIGN section 2 agree with the exponentials at both ends
    for tau in (1e-6, 1e7):
        torch.testing.assert_close(
            DampedInverse(1 / tau)(alive, NAME), Accumulation(tau)(alive, NAME), rtol=1e-3, atol=0
        )


@pytest.mark.parametrize("wrong", [-1e-9, float("nan"), float("inf")])
def test_negative_and_infinite_scales_are_refused(wrong):
    for make in (
        lambda v: DampedInverse(v),
        lambda v: DampedInverse(damping_scale=v),
        lambda v: DampedInverse(alpha=v),
        lambda v: DampedInverse({NAME: torch.tensor([1.0, v])}),
        lambda v: DampedPower(-0.5, v),
        ProximalHop,
        Decay,
        Accumulation,
    ):
        with pytest.raises(MsifError, match="must be a finite number"):
            make(wrong)


@pytest.mark.parametrize("filter", [ProximalHop, Decay, Accumulation])
def test_scales_that_must_not_vanish(filter):
    with pytest.raises(MsifError, match="larger than 0"):
        filter(0.0)
    with pytest.raises(MsifError, match="larger than 0"):
        filter({NAME: torch.tensor([1.0, 0.0])})


def test_no_damping_on_a_singular_block_is_refused(Lambda):
    for filter in (DampedInverse(0.0), DampedInverse(damping_scale=0.0), DampedPower(-0.5, 0.0)):
        with pytest.raises(MsifError, match=f"'{NAME}' is singular"):
            filter(Lambda, NAME)
    noise = Lambda.clone().float()
    noise[0, 0, 0], noise[1, 2, 3] = 1e-25, 1e-7  # not zero, and yet only rounding
    with pytest.raises(MsifError, match="is singular"):
        DampedInverse(0.0)(noise, NAME)
    regular = Lambda.clone()
    regular[0, 0, 0], regular[1, 2, 3] = 1e-3, 1e-9
    same(DampedInverse(0.0), regular, lambda s, _: 1 / s)  # a small block is not a singular one
    assert torch.isfinite(DampedInverse(1e-12)(Lambda, NAME)).all()  # any positive damping lifts it


def test_a_dead_block_stays_at_zero_with_relative_damping(Lambda):
    Lambda[1] = 0.0
    got = DampedInverse()(Lambda, NAME)
    assert (got[1] == 0).all() and torch.isfinite(got).all()
    torch.testing.assert_close(got[:1], DampedInverse()(Lambda[:1], NAME))
    with pytest.raises(MsifError, match="singular"):
        DampedInverse(0.0)(Lambda, NAME)


@pytest.mark.parametrize("scale", [0.0, 0.1, 3.0])
def test_a_dead_block_is_pulled_like_any_other(Lambda, scale):
    """Relative damping has nothing to say there, and α has: 1/α, as a solver gives."""
    Lambda[1] = 0.0
    mean = float(Lambda[0].mean())
    same(DampedInverse(damping_scale=scale, alpha=0.5), Lambda, lambda s, b: 1 / (s + (b == 0) * scale * mean + 0.5))
    alpha = {NAME: torch.tensor([0.0, 0.25])}
    got = DampedInverse(alpha=alpha)(Lambda, NAME)
    torch.testing.assert_close(got[0], DampedInverse()(Lambda, NAME)[0])
    assert (got[1] == 4.0).all()
    assert (DampedInverse(alpha={NAME: torch.tensor([0.5, 0.0])})(Lambda, NAME)[1] == 0).all()
    for whole, zero in ((ProximalHop(0.5), 1.0), (Decay(2.0), 1.0), (Accumulation(2.0), 2.0)):
        assert (whole(Lambda, NAME)[1] == zero).all()


def test_scales_are_what_a_filter_adds_to_each_block():
    Lambda = torch.arange(12, dtype=torch.float64).view(2, 3, 2)
    damped = DampedInverse(None, 0.5, {"m": torch.tensor([1.0, 2.0])})
    found = damped.scales(Lambda, "m")
    assert found["damping"].tolist() == [0.5 * 2.5, 0.5 * 8.5] and found["alpha"].tolist() == [1.0, 2.0]
    torch.testing.assert_close(1 / damped(Lambda, "m"), Lambda + sum(found.values()).view(2, 1, 1))
    assert DampedInverse(0.25).scales(Lambda, "m")["damping"].tolist() == [0.25, 0.25]
    for unrolled in (Decay(3.0), Accumulation(3.0)):
        assert unrolled.scales(Lambda, "m")["tau"].tolist() == [3.0, 3.0]
