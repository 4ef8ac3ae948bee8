"""Preconditioners: whatever turns gradients into (H + λI)⁻¹ of them.

Gradients travel as ``Vectors``: module name -> (Q, d_out, d), Q of them at once, d = d_in + bias.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from msif.curvature.factors import Factors
from msif.curvature.filters import DampedInverse, Filter

Vectors = dict[str, Tensor]


class Preconditioner(Protocol):
    """Applies a symmetric positive map to every vector; may take a vector's memory over."""

    def apply(self, vectors: Vectors) -> Vectors: ...


class Identity:
    """No curvature: the gradient dot product."""

    def apply(self, vectors: Vectors) -> Vectors:
        return vectors


class EKFAC:
    """Q_G [f(Λ) ⊙ (Q_Gᵀ V Q_A)] Q_Aᵀ for each module (George et al. 2018; Grosse et al. 2023, eq. 21).

    Cost: two products a side and query, no pass over data. Factors are read one module at a time, and Λ is never
    changed: damping lives in the filter alone.
    """

    def __init__(self, factors: Factors, filter: Filter | None = None) -> None:
        self.factors = factors
        self.filter = DampedInverse() if filter is None else filter

    def apply(self, vectors: Vectors) -> Vectors:
        return {name: self._apply_one(name, vectors.pop(name)) for name in list(vectors)}

    def _apply_one(self, name: str, V: Tensor) -> Tensor:
        dtype = torch.float64 if V.dtype == torch.float64 else torch.float32
        factors = self.factors[name].to(V.device, dtype)
        assert factors.Lambda is not None
        rotated = factors.rotate(V.to(dtype))
        rotated *= self.filter(factors.Lambda, name)
        return factors.rotate_back(rotated)
