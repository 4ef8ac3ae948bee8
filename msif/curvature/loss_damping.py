"""The damping that the loss of a stage's own data tells, for trainings of which nothing else is known."""

from __future__ import annotations

import logging
import math

import torch

from msif.curvature.preconditioners import Factors
from msif.curvature.vectors import Vectors
from msif.errors import MsifError

log = logging.getLogger(__name__)

LEAST = 0.1
"""Of the mean of Λ: a λ below it would go by directions of which the data tell nothing."""


def damping_of_loss(factors: Factors, gradient: Vectors, loss: float) -> float:
    """The λ at which a Newton step accounts for the loss, Γᵀ (H + λI)⁻¹ Γ = 2 L̄, to a hundredth (docs/method.md).

    Factors are read once, one module at a time; Λ and the squares of Γ in its basis are in memory.

    Args:
        gradient: Γ, the mean gradient: module name -> (1, d_out, d).
        loss: L̄, the mean loss.

    Raises:
        MsifError: there is no such λ above ``LEAST``.
    """
    spectra, squares = [], []
    for name, V in gradient.items():
        own = factors[name].to(V.device, V.dtype)
        assert own.Lambda is not None
        spectra.append(own.Lambda.flatten())
        squares.append(own.rotate(V).square().flatten())
    Λ, square = torch.cat(spectra), torch.cat(squares)
    below = lambda λ: float((square / (Λ + λ)).sum(dtype=torch.float64)) > 2 * loss  # noqa: E731
    low = LEAST * float(Λ.mean(dtype=torch.float64))
    high = float(square.sum(dtype=torch.float64)) / (2 * loss) if loss > 0 else 0.0  # that of H = 0
    if not (0 < low < high and below(low)):
        raise MsifError(
            "the loss of the training data is more than a Newton step accounts for, so it does not tell a damping: "
            "this model has not learnt them by heart, leave --halves out."
        )
    while high > 1.01 * low:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if below(middle) else (low, middle)
    log.info("--halves: the loss of the training data tells a damping of %.2g in the place of 1/τ", low)
    return low
