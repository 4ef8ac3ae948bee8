"""Noise of other first weights: what a training from other first weights leaves of the difference (docs/method.md).

    δ = (H + 1/τ)⁻¹ (1/τ) ξ,

ξ with the spread of each module's weights, which stands for that of the first ones. In a direction of curvature σ it is
ξ/(1 + τσ), for that far a training damps what it began with.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from msif.attribution.damping import Tau
from msif.attribution.gradients import Side
from msif.curvature.factors import Factors
from msif.curvature.filters import times_blocks
from msif.draws import generator
from msif.models.blocks import TrackedModule, matrix_of

log = logging.getLogger(__name__)

NOISE_STREAM = 10
BEARABLE = 0.3
"""Nats a token. Of noise that serves the models of docs/nearby.md curvature foretells 0.04 to 0.15; they lose more, and
SmolLM2-135M twice of what is foretold."""


def pulls_of_noise(side: Side, tau: Tau, noise: float, count: int, seed: int) -> Iterator[tuple[str, Tensor]]:
    """(1/τ) ξ of so many draws, (module name, (count, d_out, d)) a module at a time.

    Args:
        noise: in standard deviations of each module's weights.
    """
    draws = [generator(seed, NOISE_STREAM, number=number) for number in range(count)]
    pulls = {name: 1 / own for name, own in tau.items()}
    for module in side.tracked:
        weights, spread = _weights(side, module)
        xi = np.stack([draw.standard_normal(module.shape, np.float32) for draw in draws])
        scaled = noise * spread * torch.from_numpy(xi).to(weights)
        yield module.name, times_blocks(scaled, pulls, module.name, len(module.blocks))


def bearable_noise(side: Side, factors: Factors, tau: Tau) -> float:
    """As much as a training leaves, 1, or what raises the loss by ``BEARABLE`` nats where that is less; it is told."""
    rise = foretold_rise(side, factors, tau)
    noise = min(1.0, math.sqrt(BEARABLE / rise)) if rise else 1.0
    log.info("noise %.2g is taken, for 1 raises the loss by %.2g nats a token as curvature foretells", noise, rise)
    return noise


def foretold_rise(side: Side, factors: Factors, tau: Tau) -> float:
    """½ E[δᵀ H δ] of noise of 1, in nats a supervised token: ½ Σ σ s²/(1 + τσ)², s the spread of a module's weights."""
    total = 0.0
    for module in side.tracked:
        _, spread = _weights(side, module)
        curvature = factors[module.name].Lambda
        assert curvature is not None
        times = curvature * tau[module.name].to(curvature)[:, None, None]
        left = curvature / (1 + times) ** 2
        total += 0.5 * float(spread) ** 2 * float(left.sum(dtype=torch.float64))
    return total


def _weights(side: Side, module: TrackedModule) -> tuple[Tensor, Tensor]:
    """W̄ in float32 at least, and the standard deviation of its entries."""
    weights = matrix_of(side.model, module)
    weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
    return weights, weights.std(correction=0)
