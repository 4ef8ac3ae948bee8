"""The hop of a stage that trained a low-rank adapter on frozen weights (docs/method.md, "Through an adapter")."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property

import torch
from torch import Tensor

from msif.curvature.cg import conjugate_gradients
from msif.curvature.factors import Factors, ModuleFactors
from msif.curvature.filters import ProximalHop
from msif.curvature.preconditioners import EKFAC, Preconditioner
from msif.curvature.vectors import Vectors
from msif.errors import MsifError
from msif.models.adapted import LowRank

log = logging.getLogger(__name__)

Pull = float | Mapping[str, tuple[float, float]]
"""α: one number for all of an adapter, as it was asked for; or for each module name that of A and that of B, the
natural scale 1/τ of each, which is raised where a map's system would not be positive definite with it."""

DENSE = 4096  # unknowns of a map, r (d_out + d_in), up to which its system is factorised
ITERATIONS, TOLERANCE = 1000, 1e-8  # of conjugate gradients above that
CHUNK_ELEMENTS = 2**24  # of queries' vectors at a time, in float64
ABOVE = 1.01  # by what a raised α is above the bound


class AdapterHop(Preconditioner):
    """V ↦ V − H J (Jᵀ H J + S + αI)⁻¹ Jᵀ V for each map of an adapter, J (dA, dB) = c (dB A + B dA).

    This is the transpose of what a displacement of the frozen weights becomes once the adapter has answered to it, and
    no inverse: it is not symmetric, and V keeps its units. A module without a map passes unchanged; one trained whole
    gets α (H + αI)⁻¹ V. H is EK-FAC, undamped; S = c (dBᵀ Γ, Γ dAᵀ) comes of Γ, the mean gradient of the stage.

    A training ends before its optimum, and then S, whose spectral norm is c ‖Γ‖₂, may outweigh what curvature and pull
    hold against it. c ‖Γ‖₂ is the least α that is enough whatever H is: natural scales below it are raised to it.

    Cost of a map and query: four products of rank r; where the system is not factorised, four for each iteration.

    Args:
        maps: module name -> what the adapter adds to its weight.
        gradient: gives Γ, module name -> (d_out, d); called once, when it is first needed.
        alpha: the pull of A and B to where they started, positive.
        whole: names of the modules that were trained whole.
        dense: unknowns of a map up to which its system is factorised.

    Raises:
        MsifError: α is not positive, or not one number beside modules that were trained whole; there are no factors for
            a module; the system of a map is not positive definite with the number that was asked for.
    """

    blockwise = True

    def __init__(
        self,
        factors: Factors,
        maps: Mapping[str, LowRank],
        gradient: Callable[[], Vectors],
        alpha: Pull,
        whole: Iterable[str] = (),
        *,
        dense: int = DENSE,
    ) -> None:
        numbers = [alpha] if isinstance(alpha, (int, float)) else [value for pair in alpha.values() for value in pair]
        if any(not (math.isfinite(value) and value > 0) for value in numbers):
            raise MsifError(f"the hop of an adapter needs a pull above 0 (--alpha is {min(numbers)}): give --alpha X.")
        self.factors, self.maps, self.alpha, self.dense = factors, maps, alpha, dense
        self._make_gradient = gradient
        self.whole, self.raised = set(whole), set[str]()
        if self.whole and not isinstance(alpha, (int, float)):
            raise MsifError(f"module '{min(self.whole)}' was trained whole beside the adapter: give --alpha a number.")

    @cached_property
    def gradient(self) -> Vectors:
        """Γ."""
        return self._make_gradient()

    @property
    def _proximal(self) -> EKFAC:
        assert isinstance(self.alpha, (int, float))
        return EKFAC(self.factors, ProximalHop(self.alpha))

    def apply(self, vectors: Vectors) -> Vectors:
        before = len(self.raised)
        found = {name: self._apply_one(name, V) for name, V in vectors.items()}
        if len(self.raised) > before:
            log.info(
                "the adapter's fine-tuning is not at an optimum: in %d of its %d maps α is raised from 1/τ to c‖Γ‖, "
                "which is enough there",
                len(self.raised),
                len(self.maps),
            )
        return found

    def _pull(self, name: str) -> tuple[float, float]:
        """α of A and of B of a map."""
        if isinstance(self.alpha, (int, float)):
            return self.alpha, self.alpha
        low, (a, b) = self.maps[name], self.alpha[name]
        moved = self.gradient[name][:, : low.A.shape[1]].double()
        enough = ABOVE * abs(low.scale) * float(torch.linalg.matrix_norm(moved, 2))
        if enough > min(a, b):
            self.raised.add(name)
        return max(a, enough), max(b, enough)

    def _apply_one(self, name: str, V: Tensor) -> Tensor:
        if name in self.whole:
            proximal = self._proximal
            result = proximal.apply({name: V})[name]
            self.scales[name] = proximal.scales[name]
            return result
        if name not in self.maps:
            return V
        if name not in self.factors:
            raise MsifError(
                f"there are no factors for module '{name}': fit them with the same --modules for every stage."
            )
        factors = self.factors[name].to(V.device, torch.float64)
        alpha = self._pull(name)
        # in the adapter's parameters, and so no eigenvalue's neighbours
        self.scales[name] = {f"alpha of {side}": torch.tensor([own]) for side, own in zip("AB", alpha, strict=True)}
        system = _System(name, factors, self.maps[name], self.gradient[name], alpha, self.dense)
        dtype = torch.float64 if V.dtype == torch.float64 else torch.float32
        parts = V.to(dtype).split(max(1, CHUNK_ELEMENTS // V[0].numel()))
        return torch.cat([part - system.answer(part.double()).to(dtype) for part in parts])


class _System:
    """M = Jᵀ H J + S + αI of one map, in the eigenbasis of H, in float64.

    Unknowns are U = Q_Gᵀ dB, (d_out, r), and X = [dA 0] Q_A, (r, d), which has no part of a bias's column. With
    a = c [A 0] Q_A, b = c Q_Gᵀ B and g = c Q_Gᵀ Γ Q_A,

        J (U, X) = U a + b X,     M = [[D_U, C], [Cᵀ, D_X]],     C X = (Λ ⊙ (b X)) aᵀ + g Xᵀ

    D_U is r × r for each row and D_X for each column, both positive definite. So U is eliminated, and M is positive
    definite where its Schur complement T = D_X − Cᵀ D_U⁻¹ C is. That is factorised, or solved by conjugate gradients
    that D_X preconditions. Leading dimensions are queries.
    """

    def __init__(
        self, name: str, factors: ModuleFactors, low: LowRank, gradient: Tensor, alpha: tuple[float, float], dense: int
    ) -> None:
        assert factors.Lambda is not None
        self.name, self.factors, self.alpha = name, factors, alpha
        self.Lambda = factors.Lambda.flatten(0, 1)
        device, d = self.Lambda.device, self.Lambda.shape[1]
        A, B = low.A.to(device), low.B.to(device)
        self.rank, self.biased = A.shape[0], d - A.shape[1] > 0
        A = torch.nn.functional.pad(A, (0, d - A.shape[1]))
        self.a = low.scale * (A if factors.Q_A is None else A @ factors.Q_A)
        self.b = low.scale * self._rows(B)
        self.g = low.scale * factors.rotate(gradient.to(device, torch.float64)).flatten(0, 1)
        self.q = self._bias_row(d)
        eye = torch.eye(self.rank, dtype=torch.float64, device=device)
        self.D_U = (self.Lambda @ _squares(self.a.T)).unflatten(1, (self.rank, -1)) + alpha[1] * eye
        self.D_X = (self.Lambda.T @ _squares(self.b)).unflatten(1, (self.rank, -1)) + alpha[0] * eye
        self.L_U, self.L_X = torch.linalg.cholesky(self.D_U), torch.linalg.cholesky(self.D_X)
        self.L_T = self._factorised() if low.A.numel() + low.B.numel() <= dense else None

    def answer(self, V: Tensor) -> Tensor:
        """H J M⁻¹ Jᵀ V, (Q, d_out, d)."""
        rotated = self.factors.rotate(V).flatten(1, 2)
        U, X = self.solve(rotated @ self.a.T, self._within(self.b.T @ rotated))
        moved = self.Lambda * (U @ self.a + self.b @ X)
        return self.factors.rotate_back(moved.unflatten(1, (self.factors.blocks, -1)))

    def solve(self, U: Tensor, X: Tensor) -> tuple[Tensor, Tensor]:
        """M⁻¹ (U, X)."""
        rest = self._within(X - self._back(self._without_rows(U)))
        if self.L_T is None:
            found = self._by_iterations(rest)
        else:
            found = torch.cholesky_solve(rest.flatten(1).T, self.L_T).T.reshape(rest.shape)
        return self._without_rows(U - self._forth(found)), found

    def matvec(self, vectors: Vectors) -> Vectors:
        """T X."""
        return {name: self._schur(X) for name, X in vectors.items()}

    def _schur(self, X: Tensor) -> Tensor:
        own = torch.einsum("jkl,qlj->qkj", self.D_X, X)
        return self._within(own - self._back(self._without_rows(self._forth(X))))

    def _forth(self, X: Tensor) -> Tensor:
        """C X, (Q, d_out, r)."""
        return (self.Lambda * (self.b @ X)) @ self.a.T + self.g @ X.mT

    def _back(self, U: Tensor) -> Tensor:
        """Cᵀ U, (Q, r, d)."""
        return self.b.T @ (self.Lambda * (U @ self.a)) + U.mT @ self.g

    def _without_rows(self, U: Tensor) -> Tensor:
        """D_U⁻¹ U."""
        return torch.cholesky_solve(U.permute(1, 2, 0), self.L_U).permute(2, 0, 1)

    def _within(self, X: Tensor) -> Tensor:
        """Without what would be a change of the bias."""
        return X if self.q is None else X - (X @ self.q)[..., None] * self.q

    def _rows(self, B: Tensor) -> Tensor:
        """Q_Gᵀ B."""
        if self.factors.Q_G is None:
            return B
        return (self.factors.Q_G.mT @ B.unflatten(0, (self.factors.blocks, -1))).flatten(0, 1)

    def _bias_row(self, d: int) -> Tensor | None:
        """The bias column in the eigenbasis, (d,); None without one."""
        if not self.biased:
            return None
        row = torch.eye(d, dtype=torch.float64, device=self.Lambda.device)[-1]
        row = row if self.factors.Q_A is None else self.factors.Q_A[-1]
        return row / row.norm()

    def _factorised(self) -> Tensor:
        """The Cholesky factor of T, (r·d, r·d)."""
        C = torch.einsum("ij,kj,il->iklj", self.Lambda, self.a, self.b)
        C.diagonal(dim1=1, dim2=2).add_(self.g[..., None])
        C = C.flatten(2)
        T = -C.flatten(0, 1).T @ torch.cholesky_solve(C, self.L_U).flatten(0, 1)
        T.view(self.rank, -1, self.rank, len(self.D_X)).diagonal(dim1=1, dim2=3).add_(self.D_X.permute(1, 2, 0))
        if self.q is not None:
            outside = torch.kron(torch.eye(self.rank).to(self.q), torch.outer(self.q, self.q))
            inside = torch.eye(len(T)).to(T) - outside
            T = inside @ T @ inside + outside
        factor, failed = torch.linalg.cholesky_ex((T + T.T) / 2)
        if bool(failed):
            raise self._indefinite()
        return factor

    def _by_iterations(self, rest: Tensor) -> Tensor:
        """T⁻¹ rest. A random right-hand side comes with it, in which every direction has a part: were T indefinite in
        one that the queries hardly have, it would be seen."""
        source = torch.Generator().manual_seed(0)
        probe = torch.randn(1, *rest.shape[1:], generator=source, dtype=torch.float64).to(rest.device)
        sides = torch.cat([rest, self._within(probe)])
        some = sides.flatten(1).norm(dim=1) > 0
        try:
            solution = conjugate_gradients(
                self, {self.name: sides[some]}, preconditioner=_Blocks(self), iterations=ITERATIONS, tolerance=TOLERANCE
            )
        except MsifError as error:
            raise self._indefinite() from error
        if not solution.converged:
            worst = float(solution.residuals[-1].max())
            log.warning("%s: a relative residual of %.2g after %d iterations", self.name, worst, ITERATIONS)
        sides[some] = solution.x[self.name]
        return sides[:-1]

    def _indefinite(self) -> MsifError:
        enough = float(torch.linalg.matrix_norm(self._within(self.g), 2))
        return MsifError(
            f"the adapter's system at module '{self.name}' is not positive definite with --alpha "
            f"{min(self.alpha):.3g}, as where the fine-tuning is not at an optimum: give a larger one "
            f"({enough:.2g} is enough for this module)."
        )


class _Blocks(Preconditioner):
    """D_X⁻¹."""

    def __init__(self, system: _System) -> None:
        self.system = system

    def apply(self, vectors: Vectors) -> Vectors:
        return {name: self._one(X) for name, X in vectors.items()}

    def _one(self, X: Tensor) -> Tensor:
        return self.system._within(torch.cholesky_solve(X.permute(2, 1, 0), self.system.L_X).permute(2, 1, 0))


def _squares(rows: Tensor) -> Tensor:
    """The outer square of each row, flat: (n, r) -> (n, r²)."""
    return (rows[:, :, None] * rows[:, None, :]).flatten(1)
