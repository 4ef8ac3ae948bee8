"""Roots of R⁻¹. Scores depend on R⁻¹ alone, so that any W with WᵀW = R⁻¹ will do.

The inverse of R's Cholesky factor takes a twentieth of an eigendecomposition's time; of fewer rows than features a root
in few directions takes less again. A share of R's mean eigenvalue is added to its diagonal.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from msif.errors import MsifError

# of a block's mean eigenvalue, added to all: where documents are fewer than features, what is stored in 16 bits has
# errors of a hundredth of it in directions that no document has
FLOOR = 1e-4


class Root(ABC):
    """W with WᵀW = R⁻¹ of one block, (s, s)."""

    dtype: torch.dtype

    @abstractmethod
    def apply(self, features: Tensor) -> Tensor:
        """W φ of (n, s)."""

    @abstractmethod
    def transposed(self, features: Tensor) -> Tensor:
        """Wᵀ φ of (n, s)."""


class CholeskyRoot(Root):
    """L⁻¹ of R + floor = L Lᵀ.

    Raises:
        MsifError: R holds NaN or infinity, or is zero.
    """

    def __init__(self, R: Tensor) -> None:
        damped = R.clone()
        damped.diagonal().add_(_floor(R.diagonal().sum(), len(R)))
        self.factor, failed = torch.linalg.cholesky_ex(damped)
        self.dtype = R.dtype
        if int(failed):
            raise MsifError("R cannot be factored in this dtype: use float64.")

    def apply(self, features: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.factor, features.T, upper=False).T

    def transposed(self, features: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.factor.T, features.T, upper=True).T


class FewRoot(Root):
    """(R + floor)^(−1/2) of R = UᵀU with few rows U (n, s), n < s: the floor's but in the directions of the rows."""

    def __init__(self, rows: Tensor) -> None:
        floor = _floor(rows.square().sum(), rows.shape[1])
        _, singular, self.directions = torch.linalg.svd(rows, full_matrices=False)
        self.outside = floor.rsqrt()
        self.change = (singular.square() + floor).rsqrt() - self.outside
        self.dtype = rows.dtype

    def apply(self, features: Tensor) -> Tensor:
        return features * self.outside + (features @ self.directions.T * self.change) @ self.directions

    def transposed(self, features: Tensor) -> Tensor:
        return self.apply(features)  # it is symmetric


def _floor(trace: Tensor, size: int) -> Tensor:
    """
    Raises:
        MsifError: R holds NaN or infinity, or is zero.
    """
    if not bool(trace.isfinite()) or not float(trace) > 0:
        raise MsifError("R is zero or not finite, so no gradient can be corrected by it: give --r none.")
    return FLOOR * trace / size
