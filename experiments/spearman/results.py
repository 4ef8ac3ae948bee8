"""All points of a run, and what each one's scores are worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from experiments.spearman.configuration import Configuration
from experiments.spearman.points import Point
from experiments.spearman.truth import FULL, TRUTH
from msif.evaluation.correlation import spearman

Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Results:
    """Points by method and damping, judged by the truth of their damping."""

    def __init__(self, points: Sequence[Point], c: Configuration) -> None:
        self.c = c
        self.points = [point for point in points if point.method not in (TRUTH, FULL)]
        self.truths = {point.damping: point for point in points if point.method == TRUTH}
        self.full = next((point for point in points if point.method == FULL), None)

    @cached_property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(point.method for point in self.points))

    def at(self, damping: str) -> list[Point]:
        return [point for point in self.points if point.damping == damping]

    def curve(self, method: str, damping: str) -> list[Point]:
        """A method's points at a damping, by budget."""
        own = [point for point in self.at(damping) if point.method == method]
        return sorted(own, key=lambda point: point.budget or 0)

    def last(self, method: str, damping: str) -> Point | None:
        """The point of the largest budget."""
        return next(reversed(self.curve(method, damping)), None)

    def judged(self, point: Point, measure: Measure = spearman) -> np.ndarray:
        """The correlation with the truth of the point's damping, (Q,)."""
        return measure(point.scores, self.truths[point.damping].scores)

    def mean(self, point: Point) -> float:
        """Mean Spearman over queries."""
        return float(self.judged(point).mean())
