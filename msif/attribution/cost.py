"""What a scorer's passes take, by count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from msif.attribution.projection import Projection
from msif.attribution.scoring import route_costs
from msif.curvature.work import Work, products, temporaries
from msif.models.blocks import TrackedModule
from msif.models.capture import Cotangent
from msif.models.outer import CHUNK_ELEMENTS


@dataclass(frozen=True)
class Cost:
    """Beside the model's own passes: one over queries, one over candidates, and one over index data if there are any.

    Attributes:
        vector: numbers that a query's vectors hold, in float32.
        making: numbers that they take while they are made.
        candidates: the gradient that candidates' passes start from.
        batch: (documents, positions, queries) -> of a batch of candidates.
        query: of a query's vectors, once its gradient is there.
        index: the gradient that the passes over index data start from; None where there are none.
        index_batch: (documents, positions) -> of a batch of them.
        solve: of their curvature, once.
        stored: bytes of a candidate that are read in place of its forward and backward pass.
        models: that a candidate goes through beside that of the candidates' side.
        copied: bytes of weights that are copied before.
    """

    vector: float
    making: float
    candidates: Cotangent
    batch: Callable[[int, int, int], Work]
    query: Work
    index: Cotangent | None = None
    index_batch: Callable[[int, int], Work] = lambda B, T: Work()
    solve: Work = Work()  # noqa: RUF009
    stored: float = 0.0
    models: Sequence[nn.Module] = ()
    copied: float = 0.0


def score_work(
    tracked: Sequence[TrackedModule], B: int, T: int, queries: int, rank: int | None, normalized: bool
) -> Work:
    """Of a batch's scores by gradients, or by tokens; norms need gradients in any case."""
    total = Work()
    for module in tracked:
        parameters, uses = module.d_out * module.d_in, products(module)
        r = rank if rank is not None and rank < min(module.d_out, module.d_in) else None  # else it stays dense
        costs = route_costs(T, module.d_out, module.d_in, queries, r)
        route = min(costs, key=lambda route: costs[route])
        formed = uses > 0 and route == "gradient"
        matrices = temporaries(B, parameters, min(B * parameters, CHUNK_ELEMENTS))
        total += Work(uses * B * costs[route], uses * B * T * (module.d_out + module.d_in))
        if formed:  # of all uses one gradient
            total += Work((1 - uses) * B * (costs[route] - T * parameters)) + matrices
        for _ in range(len(module.uses) - uses):
            total += _lookup_work(B * T, module.d_in, queries, r, formed)
        if normalized and len(module.uses) == 1 and module.is_table:
            total += Work(elements=4 * B * T * module.d_in)
        elif normalized:
            total += matrices if formed else Work(uses * B * T * parameters) + matrices * 2
    return total


def _lookup_work(positions: int, d_in: int, queries: int, rank: int | None, formed: bool) -> Work:
    """Of rows that are added to a gradient, or scored as they are."""
    if formed:
        return Work(elements=2 * positions * d_in)
    if rank is None:
        return Work(elements=3 * queries * positions * d_in)
    return Work(queries * positions * rank * d_in, 3 * queries * positions * rank)


def cka_work(tracked: Sequence[TrackedModule], B: int, T: int, queries: int) -> Work:
    """Of a batch's gradients, the Gram matrices of their blocks, and their products with the queries'."""
    total = Work()
    for module in tracked:
        (d_out, d), grams = module.shape, module.d_out * module.block_rows
        total += Work(B * (products(module) * T * d_out * d + grams * d + queries * grams))
        total += temporaries(9 * B, d_out * d, min(B * d_out * d, CHUNK_ELEMENTS))
        total += temporaries(4 * B, grams, min(B * grams, CHUNK_ELEMENTS))
    return total


def projection_work(tracked: Sequence[TrackedModule], projection: Projection) -> Callable[[int, int], Work]:
    """(documents, positions) -> of their projected gradients; a side that is kept whole takes no product."""
    tokens, documents = Work(), Work()
    for module in tracked:
        (d_out, d), (p_out, p_in) = module.shape, projection.shape(module)
        right, left = p_in * d if p_in < d else 0, p_out * d_out if p_out < d_out else 0
        for use in module.uses:
            looked_up = use.kind == "lookup"
            elements = d + p_in + p_out + (0 if looked_up else d_out)
            tokens += Work(right + p_out * p_in + (0 if looked_up else left), elements)
            documents += Work(0, 4 * p_out * p_in)
    return lambda B, T: tokens * (B * T) + documents * B


def feature_work(tracked: Sequence[TrackedModule], size: int, B: int, T: int, whole: bool) -> Work:
    """Of a batch's p × p features, from whole gradients or from both sides."""
    total = Work()
    for module in tracked:
        d_out, d = module.shape
        for use in module.uses:
            looked_up = use.kind == "lookup"
            if whole and d_out > 1:
                total += Work(0 if looked_up else B * T * d_out * d, B * T * d)
            else:
                total += Work(B * T * size * (d + size + (0 if looked_up else d_out)), B * T * (d + d_out))
        if whole and d_out > 1:
            total += Work(B * size * d_out * (d + size)) + temporaries(2 * B, d_out * d, d_out * d)
    return total
