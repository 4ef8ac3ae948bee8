"""The EK-FAC factors of one module, and what a set of them offers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from msif.errors import MsifError


@dataclass(frozen=True)
class ModuleFactors:
    """EK-FAC of one module with nb blocks of r rows; d = d_in + bias.

    Attributes:
        Q_A: (d, d), eigenvectors of A in its columns; one tensor for all modules that read the same input.
        Q_G: (nb, r, r), eigenvectors of each block's G in its columns.
        S_A: (d,) and S_G: (nb, r), the eigenvalues, ascending; EK-FAC does not use them, K-FAC does.
        Lambda: (nb, r, d), the corrected eigenvalues, undamped; None until the Λ pass has run.
    """

    Q_A: Tensor
    Q_G: Tensor
    S_A: Tensor
    S_G: Tensor
    Lambda: Tensor | None = None

    @property
    def blocks(self) -> int:
        return self.Q_G.shape[0]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> ModuleFactors:
        return replace(self, **{k: v.to(device, dtype) for k, v in vars(self).items() if v is not None})

    def rotate(self, V: Tensor) -> Tensor:
        """Q_Gᵀ V Q_A for V (..., nb·r, d) -> (..., nb, r, d)."""
        split = V.unflatten(-2, (self.blocks, -1))
        return (self.Q_G.transpose(1, 2) @ split) @ self.Q_A

    def rotate_back(self, V: Tensor) -> Tensor:
        """Q_G V Q_Aᵀ for V (..., nb, r, d) -> (..., nb·r, d)."""
        return ((self.Q_G @ V) @ self.Q_A.T).flatten(-3, -2)


Factors = Mapping[str, ModuleFactors]
"""Module name -> its factors. In memory a dict; on disk a FactorStore, which loads lazily."""


def held(factors: Factors, device: torch.device, dtype: torch.dtype) -> dict[str, ModuleFactors]:
    """The factors on a device; modules that share a Q_A share its copy."""
    copies: dict[int, Tensor] = {}

    def moved(tensor: Tensor) -> Tensor:
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.to(device, dtype)
        return copies[id(tensor)]

    in_place = dict(factors)  # kept until the end, so that no id is given twice
    return {
        name: replace(module, **{key: moved(value) for key, value in vars(module).items() if value is not None})
        for name, module in in_place.items()
    }


def eigendecompose(matrix: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """(eigenvalues ascending (..., d), eigenvectors (..., d, d)) of a covariance, computed in float64.

    Raises:
        MsifError: the matrix holds NaN or infinity.
    """
    if not bool(torch.isfinite(matrix).all()):
        raise MsifError(f"a covariance of module '{name}' holds NaN or infinity: fit again with --dtype float32.")
    wide = matrix.double()
    wide = (wide + wide.transpose(-1, -2)) / 2
    values, vectors = torch.linalg.eigh(wide)
    return values.to(matrix.dtype), vectors.to(matrix.dtype).contiguous()
