"""Preconditioners: whatever turns gradients into (H + λI)⁻¹ of them.

Gradients travel as ``Vectors``, see ``msif.curvature.vectors``.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from msif.curvature.factors import Factors, ModuleFactors
from msif.curvature.filters import DampedInverse, Filter
from msif.curvature.vectors import Vectors
from msif.errors import MsifError


class Preconditioner:
    """A base class of what applies a linear map to every vector: symmetric and positive, but for an adapter's hop.

    Attributes:
        blockwise: whether modules do not mix, so that they may be given one at a time.
        solves: whether each vector takes a solver's run over the stage's data.
        scales: module -> what its eigenvalues were damped by (``Filter.scales``), once it has been applied.
    """

    blockwise = False
    solves = False

    @cached_property
    def scales(self) -> dict[str, dict[str, Tensor]]:
        return {}

    def apply(self, vectors: Vectors) -> Vectors:
        raise NotImplementedError


def consume(preconditioner: Preconditioner, vectors: Vectors) -> Vectors:
    """``preconditioner.apply(vectors)``; where it can, each vector's memory is released as soon as it is used."""
    if not preconditioner.blockwise:
        return preconditioner.apply(vectors)
    result: Vectors = {}
    for name in list(vectors):
        result |= preconditioner.apply({name: vectors.pop(name)})
    return result


class Identity(Preconditioner):
    """No curvature: the gradient dot product."""

    blockwise = True

    def apply(self, vectors: Vectors) -> Vectors:
        return vectors


class EKFAC(Preconditioner):
    """Q_G [f(Λ) ⊙ (Q_Gᵀ V Q_A)] Q_Aᵀ for each module (George et al. 2018; Grosse et al. 2023, arXiv 2308.03296).

    Cost: two products a side and query, no pass over data. Factors are read one module at a time, and Λ is never
    changed: damping lives in the filter alone.

    Raises:
        MsifError: there are no factors for a module.
    """

    blockwise = True

    def __init__(self, factors: Factors, filter: Filter | None = None) -> None:
        self.factors = factors
        self.filter = DampedInverse() if filter is None else filter

    def apply(self, vectors: Vectors) -> Vectors:
        return {name: self._apply_one(name, V) for name, V in vectors.items()}

    def _apply_one(self, name: str, V: Tensor) -> Tensor:
        dtype = torch.float64 if V.dtype == torch.float64 else torch.float32
        if name not in self.factors:
            raise MsifError(
                f"there are no factors for module '{name}': fit them with the same --modules for every stage."
            )
        return self._filtered(self.factors[name].to(V.device, dtype), V.to(dtype), name)

    def _filtered(self, factors: ModuleFactors, V: Tensor, name: str) -> Tensor:
        rotated = factors.rotate(V)
        rotated *= self._filter_of(self.spectrum(factors), name)
        return factors.rotate_back(rotated)

    def spectrum(self, factors: ModuleFactors) -> Tensor:
        """What the filter takes of a module, (nb, r, d)."""
        assert factors.Lambda is not None
        return factors.Lambda

    def _filter_of(self, Lambda: Tensor, name: str) -> Tensor:
        """f(Λ), with a note of what is in f."""
        self.scales[name] = self.filter.scales(Lambda, name)
        return self.filter(Lambda, name)
