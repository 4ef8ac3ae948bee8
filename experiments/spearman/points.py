"""What a method gave at one budget, and where it is kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msif.atomic import atomic_path


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


def save(path: Path, points: Sequence[Point], settings: dict[str, Any]) -> None:
    """The points of one task, in one file."""
    rows = [{key: value for key, value in vars(point).items() if key != "scores"} for point in points]
    header = np.frombuffer(json.dumps({"settings": settings, "points": rows}).encode(), dtype=np.uint8)
    arrays = {str(number): point.scores for number, point in enumerate(points)}
    with atomic_path(path) as part, part.open("wb") as file:
        np.savez(file, allow_pickle=False, header=header, **arrays)


def load(path: Path, settings: dict[str, Any]) -> list[Point] | None:
    """The points of an earlier run; None where there are none, or with other settings."""
    if not path.is_file():
        return None
    with np.load(path) as file:
        header = json.loads(bytes(file["header"]))
        if header["settings"] != json.loads(json.dumps(settings)):
            return None
        return [Point(**row, scores=file[str(number)]) for number, row in enumerate(header["points"])]
