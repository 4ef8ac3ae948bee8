"""What a method gave at one budget."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.common.cache import Arrays


@dataclass(frozen=True)
class Point:
    """One method at one damping and one budget.

    Attributes:
        budget: iterations of an iterative method, None for the others.
        scores: (Q, N), float64.
        overhead: seconds before the first query, such as fitting factors.
        query: seconds a query, with its gradient and the scoring of its candidates; right-hand sides that share passes
            share their time.
        overhead_passes, passes: passes of one vector over H's data, before the first query and for each: a gradient of
            every sequence, or a product with H. Those over queries and candidates, and training, are left out.
        memory: peak bytes above what was held before.
        residual, held_out_residual: ‖b − (H + D) x‖ / ‖b‖ of each query, where x was kept.
    """

    method: str
    damping: str
    budget: int | None
    scores: np.ndarray
    overhead: float
    query: float
    overhead_passes: float = 0.0
    passes: float = 0.0
    memory: int | None = None
    residual: list[float] | None = None
    held_out_residual: list[float] | None = None


def arrays_of(points: Sequence[Point]) -> Arrays:
    """Points as a cache keeps them: what is not scores as the bytes of its JSON."""
    rows = [{key: value for key, value in vars(point).items() if key != "scores"} for point in points]
    scores = {str(number): point.scores for number, point in enumerate(points)}
    return {"rows": np.frombuffer(json.dumps(rows).encode(), dtype=np.uint8), **scores}


def points_of(arrays: Arrays) -> list[Point]:
    """The same points again."""
    return [Point(**row, scores=arrays[str(number)]) for number, row in enumerate(json.loads(bytes(arrays["rows"])))]
