"""Intervals for means over queries, seeds or retrainings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from msif.draws import generator
from msif.errors import MsifError

BOOTSTRAP_STREAM = 7


@dataclass(frozen=True)
class Interval:
    """An estimate, and the interval that it lies in."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return format(self, ".2f")

    def __format__(self, spec: str) -> str:
        spec = spec or ".2f"
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def bootstrap(values: ArrayLike, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """The mean, and its percentile bootstrap interval (Efron 1979).

    Args:
        values: (n, …); rows are independent units, such as queries or seeds, and are drawn again with replacement.

    Raises:
        MsifError: no value, or NaN or infinity.
    """
    rows = np.asarray(values, dtype=np.float64)
    if not rows.size or not np.isfinite(rows).all():
        raise MsifError("an interval needs at least one value, and no NaN: leave queries without a score out.")
    units = rows.reshape(len(rows), -1).mean(1)
    counts = generator(seed, BOOTSTRAP_STREAM).multinomial(len(units), np.full(len(units), 1 / len(units)), resamples)
    low, high = np.quantile(counts @ units / len(units), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(units.mean()), float(low), float(high))
