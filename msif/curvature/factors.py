"""The EK-FAC factors of one module, and what a set of them offers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from msif.errors import MsifError

log = logging.getLogger(__name__)

# of eigenvectors in float32, and random vectors by which it is seen
ACCURACY, PROBES = 1e-5, 8


@dataclass(frozen=True)
class ModuleFactors:
    """EK-FAC of one module with nb blocks of r rows; d = d_in + bias.

    Attributes:
        Q_A: (d, d), eigenvectors of A in its columns; one tensor for all modules that read the same input. None stands
            for the identity.
        Q_G: (nb, r, r), eigenvectors of each block's G in its columns, or None.
        S_A: (d,) and S_G: (nb, r), the eigenvalues, ascending, or the diagonals where the basis is the identity; EK-FAC
            does not use them, K-FAC does.
        Lambda: (nb, r, d), the corrected eigenvalues, undamped; None until the Λ pass has run.
    """

    Q_A: Tensor | None
    Q_G: Tensor | None
    S_A: Tensor
    S_G: Tensor
    Lambda: Tensor | None = None

    @property
    def blocks(self) -> int:
        return self.S_G.shape[0]

    def to(self, device: torch.device | str, dtype: torch.dtype) -> ModuleFactors:
        return replace(self, **{k: v.to(device, dtype) for k, v in vars(self).items() if v is not None})

    def rotate(self, V: Tensor) -> Tensor:
        """Q_Gᵀ V Q_A for V (..., nb·r, d) -> (..., nb, r, d)."""
        split = V.unflatten(-2, (self.blocks, -1))
        if self.Q_G is not None:
            split = self.Q_G.transpose(1, 2) @ split
        return split.clone() if self.Q_A is None and self.Q_G is None else _times(split, self.Q_A)

    def rotate_back(self, V: Tensor) -> Tensor:
        """Q_G V Q_Aᵀ for V (..., nb, r, d) -> (..., nb·r, d)."""
        if self.Q_G is not None:
            V = self.Q_G @ V
        return _times(V, None if self.Q_A is None else self.Q_A.T).flatten(-3, -2)


def _times(V: Tensor, Q: Tensor | None) -> Tensor:
    return V if Q is None else V @ Q


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
    """(eigenvalues ascending (..., d), eigenvectors (..., d, d)) of a covariance.

    Of float32 sums in float32, at half the time of float64, where a look at them finds a residual and a departure from
    orthogonality below ``ACCURACY`` (1.5e-6 is usual at d = 1,536); else in float64. On the matrix's own
    device, or on the CPU where that fails. LAPACK's divide and conquer does not converge for a few matrices; its QR
    iteration then does the work, which takes several times as long.

    Raises:
        MsifError: the matrix holds NaN or infinity, or neither algorithm converges.
    """
    if not bool(torch.isfinite(matrix).all()):
        raise MsifError(f"a covariance of module '{name}' holds NaN or infinity: fit again with --dtype float32.")
    if matrix.dtype == torch.float32:
        narrow = _in_float32(matrix)
        if narrow is not None:
            return narrow
    wide = matrix.double()
    wide = (wide + wide.transpose(-1, -2)) / 2
    found = _by_division(wide)
    if found is None and wide.device.type != "cpu":
        log.info("the eigenvectors of module '%s' are not found on %s; they are computed on the CPU", name, wide.device)
        found = _by_division(wide.cpu())
    if found is None:
        log.info("the eigenvectors of module '%s' do not converge; they are computed by QR iteration", name)
        found = _by_qr_iteration(wide.cpu(), name)
    values, vectors = (part.to(matrix.device, matrix.dtype) for part in found)
    return values, vectors.contiguous()


def _in_float32(matrix: Tensor) -> tuple[Tensor, Tensor] | None:
    """None where float32 is not enough, or fails."""
    largest = matrix.abs().amax((-2, -1), keepdim=True)
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))  # squares would underflow
    scaled = matrix / scale
    scaled = (scaled + scaled.transpose(-1, -2)) / 2
    found = _by_division(scaled)
    if found is None or not _is_accurate(scaled, *found):
        return None
    values, vectors = found
    return values * scale[..., 0], vectors.contiguous()


def _is_accurate(matrix: Tensor, values: Tensor, vectors: Tensor) -> bool:
    """Whether ‖A − Q S Qᵀ‖/‖A‖ and ‖QᵀQ − I‖/√d are small, by their products with a few random vectors.

    In float32, whose own rounding here is about 1e-6: copies in float64 would take a sixth of the time.
    """
    generator = torch.Generator().manual_seed(0)
    Z = torch.randn(matrix.shape[-1], PROBES, generator=generator).to(matrix.device)
    A, Q, S = matrix, vectors, values
    rotated = Q.transpose(-1, -2) @ Z
    residual = (A @ Z - Q @ (S[..., None] * rotated)).norm(dim=(-2, -1)) / PROBES**0.5
    drift = (Q.transpose(-1, -2) @ (Q @ Z) - Z).norm(dim=(-2, -1)) / Z.norm()
    small = residual <= ACCURACY * A.norm(dim=(-2, -1))
    return bool((small & (drift <= ACCURACY)).all())


def _by_division(wide: Tensor) -> tuple[Tensor, Tensor] | None:
    """Eigenvalues and eigenvectors by divide and conquer; None where it fails."""
    try:
        values, vectors = torch.linalg.eigh(wide)
    except RuntimeError as error:
        # a GPU's library fails in many ways, and for want of memory; the CPU's in one
        if wide.device.type == "cpu" and not isinstance(error, torch.linalg.LinAlgError):
            raise
        return None
    finite = bool(torch.isfinite(values).all() and torch.isfinite(vectors).all())
    return (values, vectors) if finite else None


def _by_qr_iteration(wide: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """The same of (..., d, d) on the CPU, one matrix at a time."""
    from scipy.linalg import eigh

    try:
        parts = [eigh(one.numpy(), driver="ev") for one in wide.reshape(-1, *wide.shape[-2:])]
    except np.linalg.LinAlgError as error:
        raise MsifError(
            f"the eigenvectors of a covariance of module '{name}' do not converge: leave it out with --modules, or fit "
            "on more data."
        ) from error
    values, vectors = (torch.from_numpy(np.stack(part)) for part in zip(*parts, strict=True))
    return values.view(wide.shape[:-1]), vectors.view(wide.shape)
