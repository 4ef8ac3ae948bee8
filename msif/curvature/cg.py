"""Conjugate gradients on the damped Gauss-Newton matrix, plain or preconditioned by EK-FAC.

Solves (H + D) x = b for Q right-hand sides that share each pass over data (Hestenes and Stiefel 1952; Martens 2010).
Vectors are kept in their own dtype, inner products are taken in float64.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from msif.curvature.filters import Scale, times_blocks
from msif.curvature.ggn import Operator
from msif.curvature.preconditioners import Identity, Preconditioner
from msif.curvature.vectors import Part, Vectors, add, check_right_hand_sides, dot, zeros
from msif.errors import MsifError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Solution:
    """What a solver found.

    Attributes:
        x: the solution, (Q, d_out, d) a module.
        residuals: ‖b − (H + D) x‖ / ‖b‖ before the first iteration and after each, (iterations + 1, Q), float64.
        converged: whether every right-hand side met the tolerance; else the limit of iterations ended it.
    """

    x: Vectors
    residuals: Tensor
    converged: bool

    @property
    def iterations(self) -> int:
        return len(self.residuals) - 1


class Damped:
    """H + D, with D = λ times the identity, λ one number or one for each block of ``tracked``."""

    def __init__(self, operator: Operator, tracked: Sequence[Part], damping: Scale) -> None:
        self.operator, self.damping = operator, damping
        self.blocks = {module.name: len(module.blocks) for module in tracked}

    def matvec(self, vectors: Vectors) -> Vectors:
        """(H + D) v."""
        products = self.operator.matvec(vectors)
        return {
            name: products[name] + times_blocks(V, self.damping, name, self.blocks[name]) for name, V in vectors.items()
        }


def relative_residual(operator: Operator, x: Vectors, b: Vectors) -> Tensor:
    """‖b − operator · x‖ / ‖b‖, (Q,), float64; one product.

    With an operator over sequences that the solver never saw it says what the solver's own residual cannot: a small
    set is solved to any tolerance, and may have the wrong curvature.

    Raises:
        MsifError: a right-hand side is zero, or holds NaN or infinity.
    """
    norms = check_right_hand_sides(b)
    r = add(b, operator.matvec(x), torch.full_like(norms, -1.0))
    return dot(r, r).sqrt() / norms


def conjugate_gradients(
    operator: Operator,
    b: Vectors,
    *,
    preconditioner: Preconditioner | None = None,
    iterations: int = 100,
    tolerance: float = 1e-4,
    callback: Callable[[Vectors], None] | None = None,
) -> Solution:
    """Solves operator · x = b; each iteration is one product.

    Args:
        operator: symmetric positive definite, such as ``Damped(GGN(...), ...)``.
        preconditioner: an approximate inverse; x starts from it too. How many products EK-FAC saves depends on the
            model: docs/spearman.md has ratios of 2.5 to 4.4 on one.
        tolerance: relative residual at which a right-hand side is done.
        callback: called with x after each iteration.

    Raises:
        MsifError: the operator is not positive definite, or NaN or infinity appears.
    """
    M = preconditioner or Identity()
    norms = check_right_hand_sides(b)
    if preconditioner is None:
        x, r = zeros(b), b
    else:
        x = M.apply(b)
        r = add(b, operator.matvec(x), torch.full_like(norms, -1.0))
    history = [dot(r, r).sqrt() / norms]
    z = M.apply(r)
    p, rz = z, dot(r, z)
    for _ in range(iterations):
        active = history[-1] > tolerance
        if not bool(active.any()):
            break
        product = _product_of(active, operator, p)
        curvature = dot(p, product)
        if bool((active & ~(curvature > 0)).any()):
            raise MsifError(
                "conjugate gradients broke down: a direction has no positive curvature. Use a larger --damping, "
                "or --dtype float32."
            )
        # one that is done stands still
        step = torch.where(active, rz / curvature, torch.zeros_like(rz))
        x, r = add(x, p, step), add(r, product, -step)
        history.append(dot(r, r).sqrt() / norms)
        if not bool(torch.isfinite(history[-1]).all()):
            raise MsifError("conjugate gradients diverged to NaN or infinity: use a larger --damping.")
        if callback:
            callback(x)
        z = M.apply(r)
        new = dot(r, z)
        p = add(z, p, torch.where(active, new / rz, torch.zeros_like(rz)))
        rz = new
    return Solution(x, torch.stack(history), bool((history[-1] <= tolerance).all()))


def _product_of(active: Tensor, operator: Operator, p: Vectors) -> Vectors:
    """operator · p; zero, and not computed, for a right-hand side that is done."""
    if bool(active.all()):
        return operator.matvec(p)
    rows = active.nonzero().flatten().to(next(iter(p.values())).device)
    products = operator.matvec({name: V[rows] for name, V in p.items()})
    return {name: torch.zeros_like(V).index_copy(0, rows, products[name]) for name, V in p.items()}


class CG(Preconditioner):
    """The damped inverse by conjugate gradients, as a preconditioner; ``solution`` keeps the last residuals.

    Args:
        approximate: EK-FAC with the same damping, to precondition and to start from; None for plain CG.
    """

    solves = True

    def __init__(
        self,
        operator: Operator,
        tracked: Sequence[Part],
        damping: Scale,
        approximate: Preconditioner | None = None,
        *,
        iterations: int = 100,
        tolerance: float = 1e-4,
    ) -> None:
        self.damped = Damped(operator, tracked, damping)
        self.approximate = approximate
        self.iterations, self.tolerance = iterations, tolerance
        self.solution: Solution | None = None

    def apply(self, vectors: Vectors) -> Vectors:
        self.solution = conjugate_gradients(
            self.damped,
            vectors,
            preconditioner=self.approximate,
            iterations=self.iterations,
            tolerance=self.tolerance,
        )
        worst = float(self.solution.residuals[-1].max())
        ended = "tolerance met" if self.solution.converged else "limit of iterations"
        log.info("CG: %d iterations (%s), relative residual %.2g at worst", self.solution.iterations, ended, worst)
        return self.solution.x
