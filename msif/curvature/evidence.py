"""The damping of a training that left no files, from its weights, their curvature and how much data it had.

A pull α of a module's weights to where they began is a Gaussian prior of precision Nα about there, with N tokens in the
mean loss. The evidence for it, which integrates the weights out in the Laplace approximation, is largest at

    N α ‖Δ‖² = γ(α),    γ(α) = Σ σ/(σ + α)

with Δ the way that the weights have gone and σ their eigenvalues; γ is how many of them the data have determined
(MacKay 1992, "Bayesian interpolation": 2αE_W = γ; a precision for each group of weights is his automatic relevance
determination). It stands in for 1/τ, which the optimizer's state tells (docs/evidence.md).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TOLERANCE = 1e-3  # of α, relatively
STEPS = 100


def evidence_pull(spectrum: Tensor, squared: float, tokens: int) -> float:
    """α of one module, to a thousandth.

    Newton's method in log α, in which log γ(α) − log(N α ‖Δ‖²) falls with a slope between −2 and −1.

    Args:
        spectrum: σ, Λ of its blocks together, of any shape, not all zero.
        squared: ‖Δ‖², positive.
        tokens: N, that the mean loss is over.
    """
    σ = spectrum.flatten()
    α = math.sqrt(float(σ.sum(dtype=torch.float64)) / (tokens * squared))  # above, as γ < Σ σ/α
    for _ in range(STEPS):
        share = σ / (σ + α)
        γ = float(share.sum(dtype=torch.float64))
        slope = 1 + float((share * (1 - share)).sum(dtype=torch.float64)) / γ
        step = math.log(γ / (tokens * α * squared)) / slope
        α *= math.exp(step)
        if abs(step) < TOLERANCE:
            break
    return α
