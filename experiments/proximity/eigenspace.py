"""Where in the eigenbasis of a fitted EK-FAC a change of parameters lies, and what it costs to second order.

In the basis Q_G, Q_A of docs/method.md the curvature is diagonal, Λ, so a change Δ of a module's W̄ has the coordinates
Q_Gᵀ Δ Q_A, one for each eigen-direction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.proximity.distances import Key, row_kinds
from msif.curvature.factors import Factors
from msif.errors import MsifError
from msif.models.blocks import TrackedModule
from msif.models.names import layer_of

TOP = (0.01, 0.1, 0.5)


@dataclass(frozen=True)
class Alignment:
    """Sums over the eigen-directions of some blocks; those of two sets of blocks add up.

    Attributes:
        moved: ‖Δ‖², and ``top_moved`` its part in the directions of largest Λ, for each share of ``TOP``.
        curvature: Σ Λ, and ``top_curvature`` likewise.
        expected: what ``top_moved`` would be for a random change of the same size in each block group: ‖Δ‖² times the
            share of directions taken (which rounding makes a little larger than asked for).
        quadratic: ½ Σ Λ (Q_Gᵀ Δ Q_A)², the increase of the loss per token to second order.
    """

    moved: float
    top_moved: tuple[float, ...]
    curvature: float
    top_curvature: tuple[float, ...]
    expected: tuple[float, ...]
    quadratic: float

    def __add__(self, other: Alignment) -> Alignment:
        def added(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, ...]:
            return tuple(x + y for x, y in zip(a, b, strict=True))

        return Alignment(
            self.moved + other.moved,
            added(self.top_moved, other.top_moved),
            self.curvature + other.curvature,
            added(self.top_curvature, other.top_curvature),
            added(self.expected, other.expected),
            self.quadratic + other.quadratic,
        )

    def shares(self, of: str) -> list[float | None]:
        """``top_moved``, ``expected`` or ``top_curvature`` as shares of the whole; None where that is zero."""
        whole = self.curvature if of == "top_curvature" else self.moved
        return [part / whole if whole > 0 else None for part in getattr(self, of)]


@torch.no_grad()
def alignments(
    factors: Factors, tracked: Sequence[TrackedModule], changes: Mapping[str, Tensor], hidden: int | None = None
) -> dict[Key, Alignment]:
    """By layer and kind of map, the directions sorted by Λ among those of one kind in one module.

    Args:
        changes: Δ of W̄, (d_out, d), for each of the ``tracked`` modules.
        hidden: the models' hidden size, by which an MLP's output map is known.

    Raises:
        MsifError: a module has no factors, or a change has another shape.
    """
    result: dict[Key, Alignment] = {}
    for module in tracked:
        if module.name not in factors:
            raise MsifError(f"there are no factors for module '{module.name}': fit them with the same --modules.")
        change = changes[module.name]
        if tuple(change.shape) != module.shape:
            raise MsifError(f"the change of '{module.name}' is {tuple(change.shape)}, its factors {module.shape}.")
        fitted = factors[module.name].to(change.device, torch.float64)
        assert fitted.Lambda is not None
        squares = fitted.rotate(change.double()).square()  # (nb, r, d)
        kinds = row_kinds(module, hidden)
        for kind in dict.fromkeys(kinds):
            own = torch.tensor([name == kind for name in kinds], device=change.device)
            key = (layer_of(module.name), kind)
            here = alignment(fitted.Lambda[own], squares[own])
            result[key] = result[key] + here if key in result else here
    return result


def alignment(Lambda: Tensor, squares: Tensor, top: Sequence[float] = TOP) -> Alignment:
    """Of one set of directions: eigenvalues and squared coordinates, any one shape."""
    Lambda, squares = Lambda.flatten(), squares.flatten()
    order = Lambda.argsort(descending=True)
    moved, curvature = squares[order].cumsum(0), Lambda[order].cumsum(0)
    counts = [max(1, round(share * len(order))) for share in top]
    whole = moved[-1].item()
    return Alignment(
        moved=whole,
        top_moved=tuple(moved[count - 1].item() for count in counts),
        curvature=curvature[-1].item(),
        top_curvature=tuple(curvature[count - 1].item() for count in counts),
        expected=tuple(whole * count / len(order) for count in counts),
        quadratic=0.5 * (Lambda * squares).sum().item(),
    )


def together(parts: Iterable[Alignment]) -> Alignment:
    """The sum of several.

    Raises:
        MsifError: there are none.
    """
    every = list(parts)
    if not every:
        raise MsifError("there is no block to take an alignment of.")
    return sum(every[1:], every[0])
