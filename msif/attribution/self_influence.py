"""Self-influence: what training on a document does to the model's loss on that very document.

    g_dᵀ P g_d,    g_d = ∇L(d; θ), the loss summed over the document's tokens, and P the damped inverse of θ's stage

(Koh and Liang 2017, arXiv 1703.04730; Grosse et al. 2023, arXiv 2308.03296). It is large for documents that are long,
odd or mislabelled, which rank high whatever is asked; a score over its square root is that of Barshan et al. 2020
(RelatIF, arXiv 2003.11630).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from msif.attribution.gradients import Side, query_gradients
from msif.curvature.preconditioners import Preconditioner, consume
from msif.curvature.vectors import Vectors, dot


@runtime_checkable
class SelfScorer(Protocol):
    """A scorer that has an inverse on its candidates' side."""

    @property
    def solves(self) -> bool:
        """Whether it takes a solver's run for each vector."""
        ...

    def self_influence(self, documents: Iterable[Any]) -> Tensor:
        """g_dᵀ P g_d of n documents, (n,), float64.

        Args:
            documents: batches, their indices 0 … n−1 in any order.
        """
        ...


def quadratic(side: Side, documents: Iterable[Any], preconditioners: Sequence[Preconditioner]) -> Tensor:
    """g_dᵀ P_1 ⋯ P_K g_d of n documents on one model, (n,), float64; whole gradients are held, a module's products at a
    time where modules do not mix.
    """
    gradients = query_gradients(side, documents)
    return product(gradients, gradients, preconditioners)


def product(left: Vectors, right: Vectors, preconditioners: Sequence[Preconditioner]) -> Tensor:
    """left_dᵀ P_1 ⋯ P_K right_d of n pairs, (n,), float64."""
    if all(preconditioner.blockwise for preconditioner in preconditioners):
        parts = [{name: right[name]} for name in left]
    else:
        parts = [right]
    total = None
    for part in parts:
        moved = dict(part)
        for preconditioner in reversed(preconditioners):
            moved = consume(preconditioner, moved)
        own = dot({name: left[name] for name in moved}, moved)
        total = own if total is None else total + own
    assert total is not None
    return total
