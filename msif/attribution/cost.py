"""What a scorer's passes take, by count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msif.attribution.projection import Projection
from msif.attribution.scoring import route_costs
from msif.curvature.work import Work, temporaries
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
    """

    vector: float
    making: float
    candidates: Cotangent
    batch: Callable[[int, int, int], Work]
    query: Work
    index: Cotangent | None = None
    index_batch: Callable[[int, int], Work] = lambda B, T: Work()
    solve: Work = Work()  # noqa: RUF009


def score_work(
    tracked: Sequence[TrackedModule], B: int, T: int, queries: int, rank: int | None, normalized: bool
) -> Work:
    """Of a batch's scores by gradients, or by tokens; norms need gradients in any case."""
    total = Work()
    for module in tracked:
        parameters = module.d_out * module.d_in
        costs = route_costs(T, module.d_out, module.d_in, queries, rank)
        route = min(costs, key=lambda route: costs[route])
        at_once = min(B * parameters, CHUNK_ELEMENTS)
        total += Work(B * costs[route], B * T * (module.d_out + module.d_in))
        if route == "gradient":
            total += temporaries(B, parameters, at_once)
        elif normalized:
            total += Work(B * T * parameters) + temporaries(B, parameters, at_once)
        if normalized:
            total += temporaries(B, parameters, at_once)
    return total


def cka_work(tracked: Sequence[TrackedModule], B: int, T: int, queries: int) -> Work:
    """Of a batch's gradients, the Gram matrices of their blocks, and their products with the queries'."""
    total = Work()
    for module in tracked:
        (d_out, d), grams = module.shape, module.d_out * module.block_rows
        total += Work(B * (T * d_out * d + grams * d + queries * grams))
        total += temporaries(9 * B, d_out * d, min(B * d_out * d, CHUNK_ELEMENTS))
        total += temporaries(4 * B, grams, min(B * grams, CHUNK_ELEMENTS))
    return total


def projection_work(tracked: Sequence[TrackedModule], projection: Projection) -> Callable[[int, int], Work]:
    """(documents, positions) -> of their projected gradients."""
    tokens, documents = Work(), Work()
    for module in tracked:
        (d_out, d), (p_out, p_in) = module.shape, projection.shape(module)
        tokens += Work(p_in * d + p_out * d_out + p_out * p_in, d + d_out + p_in + p_out)
        documents += Work(0, 4 * p_out * p_in)
    return lambda B, T: tokens * (B * T) + documents * B
