"""Sums that a pass over data adds to, and that a checkpoint saves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from msif.models.capture import FiniteGuard


class RunningSums:
    """The part that fitting passes share: named sums, counts, and a look at the sums after every batch."""

    def __init__(self, what: str, counts: list[str]) -> None:
        self.counts = dict.fromkeys(counts, 0)
        self._guard = FiniteGuard(what)
        self._sums: dict[str, Tensor] = {}

    def end(self, batch: Any) -> None:
        self._guard.check(batch)

    def state(self) -> dict[str, Tensor]:
        """The running sums; what a checkpoint holds."""
        return self._sums

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes the sums of a checkpoint."""
        for name, total in self._sums.items():
            total.copy_(tensors[name])
