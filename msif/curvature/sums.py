"""Sums that a pass over data adds to, and that a checkpoint saves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from msif.models.capture import Consumer, FiniteGuard
from msif.models.objectives import Objective


class RunningSums(Consumer):
    """The part that fitting passes share: named sums, counts, and a look at the sums after every batch.

    Attributes:
        counts: sequences, live positions and supervised tokens that went in; the same of every pass over one data.
    """

    stream: int
    """Of label draws, so that each pass has its own."""

    def __init__(self, what: str) -> None:
        self.counts = dict.fromkeys(("sequences", "positions", "supervised"), 0)
        self._guard = FiniteGuard(what)
        self._sums: dict[str, Tensor] = {}

    def begin(self, batch: Any, objective: Objective) -> None:
        self.counts["sequences"] += len(batch)
        self.counts["positions"] += int(objective.live(batch).sum())
        self.counts["supervised"] += int(objective.supervised_counts(batch).sum())

    def end(self, batch: Any) -> None:
        self._guard.check(batch)

    def state(self) -> dict[str, Tensor]:
        """The running sums; what a checkpoint holds."""
        return self._sums

    def estimates(self) -> Iterator[tuple[str, Tensor]]:
        """(name, matrix) of everything that is fitted, as it stands."""
        raise NotImplementedError

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes the sums of a checkpoint."""
        for name, total in self._sums.items():
            total.copy_(tensors[name])
