"""The cheaper readings of the same factors: K-FAC without eigenvalue correction, and the diagonal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import Tensor

from msif.curvature.factors import Factors, ModuleFactors
from msif.curvature.filters import Filter
from msif.curvature.preconditioners import EKFAC
from msif.errors import MsifError


class KFAC(EKFAC):
    """EK-FAC with the eigenvalues of the Kronecker product in place of Λ (Martens and Grosse 2015, arXiv 1503.05671).

    K-FAC takes positions for independent, and x for independent of g:

        H = (1/N) Σ_z E[vec ∇L vec ∇Lᵀ]  ≈  (1/N) Σ_t E[g gᵀ] ⊗ E[x̄ x̄ᵀ]  =  (T/N) G ⊗ A

    with A and G means over T live positions and H per supervised token, N of them. So Λ_ij is replaced by
    (T/N) (S_G)_i (S_A)_j, in the same units, and an absolute damping means what it means everywhere else; a relative
    one is relative to the mean of these eigenvalues. Cost: that of EK-FAC; Λ is not read.

    Args:
        counts: T as "positions" and N as "supervised": ``FactorStore.manifest["counts"]``.

    Raises:
        MsifError: the counts are missing or not positive, or there are no factors for a module.
    """

    def __init__(self, factors: Factors, counts: Mapping[str, int], filter: Filter | None = None) -> None:
        positions, supervised = counts.get("positions", 0), counts.get("supervised", 0)
        if positions <= 0 or supervised <= 0:
            raise MsifError(
                f"K-FAC needs the numbers of live positions and of supervised tokens ({positions} and {supervised} "
                "here): fit the factors again."
            )
        super().__init__(_Uncorrected(factors, positions / supervised), filter)


class _Uncorrected(Mapping[str, ModuleFactors]):
    """Factors whose Λ is ratio · S_G ⊗ S_A, made when a module is asked for."""

    def __init__(self, factors: Factors, ratio: float) -> None:
        self.factors, self.ratio = factors, ratio

    def __getitem__(self, name: str) -> ModuleFactors:
        module = self.factors[name]
        # a covariance has no negative eigenvalue but by rounding
        rows, columns = module.S_G.clamp(min=0), module.S_A.clamp(min=0)
        return replace(module, Lambda=self.ratio * rows[:, :, None] * columns)

    def __contains__(self, name: object) -> bool:
        return name in self.factors  # without reading them

    def __iter__(self) -> Iterator[str]:
        return iter(self.factors)

    def __len__(self) -> int:
        return len(self.factors)


class Diagonal(EKFAC):
    """f(diag H) ⊙ V for each module: each parameter on its own.

    The diagonal is not fitted apart: it is that of EK-FAC's curvature, seen in the basis of the parameters,

        diag(H)_ij  ≈  Σ_kl (Q_G)_ik² Λ_kl (Q_A)_jl²  =  [(Q_G ∘ Q_G) Λ (Q_A ∘ Q_A)ᵀ]_ij

    which differs from the exact one by the correlations between coordinates of the eigenbasis, which EK-FAC leaves
    out. Its sum over a block is the sum of Λ, which is the exact trace, so that damping, absolute or relative, means
    what it means for EK-FAC. Cost: two products a module and ``apply``, no pass over data.

    Raises:
        MsifError: there are no factors for a module.
    """

    def _filtered(self, factors: ModuleFactors, V: Tensor, name: str) -> Tensor:
        return V * self._filter_of(self.spectrum(factors), name).flatten(0, 1)

    def spectrum(self, factors: ModuleFactors) -> Tensor:
        return curvature_diagonal(factors)


def curvature_diagonal(factors: ModuleFactors) -> Tensor:
    """(Q_G ∘ Q_G) Λ (Q_A ∘ Q_A)ᵀ: the diagonal of EK-FAC's curvature at each parameter, (nb, r, d)."""
    assert factors.Lambda is not None
    diagonal = factors.Lambda if factors.Q_G is None else factors.Q_G.square() @ factors.Lambda
    return diagonal if factors.Q_A is None else diagonal @ factors.Q_A.square().T
