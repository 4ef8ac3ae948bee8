"""Projection on the top eigenvectors of the curvature (Schioppa et al. 2022, arXiv 2112.03052).

    (H + λI)⁻¹  ≈  Σ_i v_i v_iᵀ / (σ_i + λ)        over the top k eigenpairs (σ_i, v_i) of H

H is symmetric, so Arnoldi's Hessenberg matrix is tridiagonal and this is Lanczos with full reorthogonalisation. P is
the number of tracked parameters, n that of the iterations.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from msif.curvature.filters import Scale, per_block
from msif.curvature.ggn import Operator
from msif.curvature.preconditioners import Preconditioner
from msif.curvature.vectors import Vectors
from msif.draws import generator
from msif.errors import MsifError
from msif.models.blocks import TrackedModule

log = logging.getLogger(__name__)

START_STREAM = 5


@dataclass(frozen=True)
class Eigenpairs:
    """The top k eigenpairs of H that n iterations found.

    Attributes:
        values: (k,), descending, float64.
        vectors: (k, d_out, d) a module, orthonormal over all modules together.
        residuals: (k,), ‖H v − σ v‖, float64; as of Lanczos, which measures it without a product.
        iterations: products that were spent, n.
    """

    values: Tensor
    vectors: Vectors
    residuals: Tensor
    iterations: int


def top_eigenpairs(
    operator: Operator, like: Vectors, *, top: int = 20, iterations: int = 200, seed: int = 0
) -> Eigenpairs:
    """The ``top`` largest eigenvalues of H by n = ``iterations`` products, from a seeded random start.

    Where the Krylov space is exhausted early (H of low rank, equal eigenvalues), another random direction continues
    it; with n = P the answer is exact. Memory: n + k vectors of P numbers, in the dtype of ``like``.

    Args:
        operator: symmetric; not damped.
        like: vectors of any Q, for shapes, dtypes and devices.

    Raises:
        MsifError: fewer iterations than eigenpairs, or NaN or infinity appears.
    """
    shapes = {name: V.shape[1:] for name, V in like.items()}
    size = sum(shape.numel() for shape in shapes.values())
    iterations, top = min(iterations, size), min(top, size)
    if not 1 <= top <= iterations:
        raise MsifError(
            f"{iterations} iterations cannot give {top} eigenpairs: ask for 1 or more, and for at least as many "
            "iterations."
        )
    example = next(iter(like.values()))
    basis = example.new_zeros(iterations, size)
    T = np.zeros((iterations, iterations))
    restarts = 0
    basis[0] = _random_direction(basis[:0], seed, restarts)
    remainder = 0.0
    for step in range(iterations):
        w = _flat(operator.matvec(_unflat(basis[step], shapes)))
        before = float(w.double().norm())
        if not np.isfinite(before):
            raise MsifError(
                f"the curvature product of Arnoldi iteration {step + 1} holds NaN or infinity: check the data and the "
                "weights, or use --dtype float32."
            )
        T[step, step] = float(w.double() @ basis[step].double())
        w = _orthogonalised(w, basis[: step + 1])
        remainder = float(w.double().norm())
        if step + 1 == iterations:
            break
        # what is left is rounding: the space is invariant
        if remainder <= 100 * torch.finfo(w.dtype).eps * max(before, abs(T).max()):
            restarts += 1
            basis[step + 1] = _random_direction(basis[: step + 1], seed, restarts)
        else:
            basis[step + 1] = w / remainder
            T[step, step + 1] = T[step + 1, step] = remainder
    if restarts:
        log.info("Arnoldi: the Krylov space was exhausted %d times and continued at random", restarts)
    values, rotation = np.linalg.eigh(T)
    chosen = np.argsort(values)[::-1][:top].copy()
    weights = torch.from_numpy(rotation[:, chosen].T.copy()).to(basis.device, basis.dtype)
    vectors = _unflat(weights @ basis, shapes)
    residuals = torch.from_numpy(remainder * np.abs(rotation[-1, chosen]))
    return Eigenpairs(torch.from_numpy(values[chosen]), vectors, residuals, iterations)


class Arnoldi(Preconditioner):
    """The inverse on the span of the top eigenvectors, as a preconditioner.

    x = V K⁻¹ Vᵀ b with K = Vᵀ (H + D) V, which is 1/(σ + λ) on each eigenvector where D is λI, and nothing elsewhere,
    as in the paper. Exact when ``top`` reaches P. Cost: ``iterations`` products at the first ``apply``, none after.

    Args:
        operator: H itself; the damping is added here.
        complement: also D⁻¹ on what is orthogonal to the eigenvectors, so that directions of no curvature count as
            they do in (H + D)⁻¹; not in the paper.

    After the first ``apply``, ``eigenpairs`` holds what was found.

    Raises:
        MsifError: fewer iterations than eigenpairs, a kept eigenvalue that the damping does not make positive, a vector
            that holds NaN or infinity, or ``complement`` without damping.
    """

    def __init__(
        self,
        operator: Operator,
        tracked: Sequence[TrackedModule],
        damping: Scale,
        *,
        top: int = 20,
        iterations: int = 200,
        seed: int = 0,
        complement: bool = False,
    ) -> None:
        self.operator, self.damping = operator, damping
        self.blocks = {module.name: len(module.blocks) for module in tracked}
        self.top, self.iterations, self.seed, self.complement = top, iterations, seed, complement
        self.eigenpairs: Eigenpairs | None = None

    def apply(self, vectors: Vectors) -> Vectors:
        """The projected inverse of each of Q vectors, (Q, d_out, d) a module."""
        if not all(bool(torch.isfinite(V).all()) for V in vectors.values()):
            raise MsifError("a right-hand side holds NaN or infinity: look at that query's gradient.")
        if self.eigenpairs is None:
            self.eigenpairs = top_eigenpairs(
                self.operator, vectors, top=self.top, iterations=self.iterations, seed=self.seed
            )
            worst = float(self.eigenpairs.residuals.max() / self.eigenpairs.values[0].abs().clamp(min=1e-300))
            log.info("Arnoldi: top %d eigenpairs, relative residual %.2g at worst", self.top, worst)
        V = self.eigenpairs.vectors
        coefficients = _inner(V, vectors)
        solved = torch.linalg.solve(self._projected(self.eigenpairs), coefficients)
        result = _combined(V, solved)
        if self.complement:
            outside = self._outside(vectors, coefficients)
            result = {name: R + outside[name] for name, R in result.items()}
        return result

    def _projected(self, pairs: Eigenpairs) -> Tensor:
        """Vᵀ (H + D) V, (k, k), float64."""
        damped = {name: V * self._shift(name, V) for name, V in pairs.vectors.items()}
        values = pairs.values.to(next(iter(damped.values())).device)
        K = torch.diag(values) + _inner(pairs.vectors, damped)
        smallest, largest = torch.linalg.eigvalsh(K)[[0, -1]].tolist()
        dtype = next(iter(damped.values())).dtype
        if not smallest > torch.finfo(dtype).eps * abs(largest):
            raise MsifError(
                f"the smallest of the top {len(values)} eigenvalues vanishes and the damping does not lift it: ask for "
                "fewer eigenpairs, or use --damping with a positive value."
            )
        return K

    def _outside(self, vectors: Vectors, coefficients: Tensor) -> Vectors:
        """(I − V Vᵀ) D⁻¹ (I − V Vᵀ) b."""
        assert self.eigenpairs is not None
        V = self.eigenpairs.vectors
        inside = _combined(V, coefficients)
        rest = {name: (b - inside[name]) / self._shift(name, b) for name, b in vectors.items()}
        if not all(bool(torch.isfinite(r).all()) for r in rest.values()):
            raise MsifError("the complement has no inverse without damping: use --damping with a positive value.")
        inside = _combined(V, _inner(V, rest))
        return {name: r - inside[name] for name, r in rest.items()}

    def _shift(self, name: str, V: Tensor) -> Tensor:
        """The damping of each row of a module, (d_out, 1)."""
        blocks = V.new_zeros(self.blocks[name], V.shape[1] // self.blocks[name], 1)
        return (blocks + per_block(self.damping, name, blocks)).flatten(0, 1)


def _random_direction(basis: Tensor, seed: int, number: int) -> Tensor:
    """A unit vector (P,), orthogonal to the rows of basis (j, P)."""
    source = generator(seed, START_STREAM, number)
    w = torch.from_numpy(source.standard_normal(basis.shape[1])).to(basis.device, basis.dtype)
    w = _orthogonalised(w, basis)
    return w / w.norm()


def _orthogonalised(w: Tensor, basis: Tensor) -> Tensor:
    """w (P,) less its part in the span of orthonormal rows (j, P); twice is enough (Giraud et al. 2005)."""
    for _ in range(2):
        w = w - basis.T @ (basis @ w)
    return w


def _flat(vectors: Vectors) -> Tensor:
    return torch.cat([V.flatten() for V in vectors.values()])


def _unflat(flat: Tensor, shapes: dict[str, torch.Size]) -> Vectors:
    """(P,) or (k, P) -> (k, d_out, d) a module; k = 1 for the former."""
    rows = flat.view(-1, flat.shape[-1])
    parts = rows.split([shape.numel() for shape in shapes.values()], dim=1)
    return {name: part.reshape(-1, *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _inner(V: Vectors, W: Vectors) -> Tensor:
    """⟨v_i, w_q⟩ over all modules, (k, Q), float64."""
    return torch.stack([V[name].double().flatten(1) @ W[name].double().flatten(1).T for name in V]).sum(0)


def _combined(V: Vectors, coefficients: Tensor) -> Vectors:
    """Σ_i c_iq v_i for c (k, Q): (Q, d_out, d) a module."""
    return {name: torch.einsum("kq,kij->qij", coefficients.to(part.dtype), part) for name, part in V.items()}
