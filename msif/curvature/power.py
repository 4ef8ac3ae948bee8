"""The largest eigenvalue of a damped and preconditioned curvature."""

from __future__ import annotations

import math

from msif.curvature.ggn import Operator
from msif.curvature.preconditioners import Identity, Preconditioner
from msif.curvature.vectors import Vectors, dot, normal, scaled
from msif.draws import generator
from msif.errors import MsifError

START_STREAM = 4


def largest_eigenvalue(
    operator: Operator,
    like: Vectors,
    *,
    preconditioner: Preconditioner | None = None,
    iterations: int = 10,
    seed: int = 0,
) -> float:
    """The largest eigenvalue of P A, from below, by power iterations: ⟨u, P u⟩ / ⟨v, u⟩ with u = A v.

    Args:
        operator: A, symmetric and positive definite; each iteration is one product.
        like: vectors of any Q, for shapes, dtypes and devices.
        preconditioner: P, symmetric and positive definite; None is the identity.

    Raises:
        MsifError: A vanishes or is not positive, or NaN or infinity appears.
    """
    P = preconditioner or Identity()
    v = normal(generator(seed, START_STREAM), like)
    value = 0.0
    for _ in range(iterations):
        u = operator.matvec(v)
        w = P.apply(u)
        value = float(dot(u, w) / dot(v, u))
        if not (math.isfinite(value) and value > 0):
            raise MsifError(
                f"the largest eigenvalue of the damped curvature is estimated as {value}: use a larger --damping, or "
                "--dtype float32."
            )
        v = scaled(w, dot(w, w).rsqrt())
    return value
