"""Sums that a pass over data adds to, and that a checkpoint saves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from msif import distributed
from msif.models.capture import Consumer, FiniteGuard
from msif.models.objectives import Objective

Estimate = tuple[str, Tensor, float]
"""(name, sum (…, d), what it is a mean over)."""


def mean(total: Tensor, divisor: float) -> Tensor:
    """Of a sum; zero of nothing."""
    return total / max(divisor, torch.finfo(total.dtype).tiny)


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

    def estimates(self) -> Iterator[Estimate]:
        """(name, sum, divisor) of everything that is fitted, as it stands; both add up over processes."""
        raise NotImplementedError

    def add_up(self, owners: Mapping[str, int]) -> None:
        """Counts of all processes together; each module's sums with its owner, and nowhere else.

        Args:
            owners: module -> number of a process.
        """
        self.counts = dict(zip(self.counts, map(int, distributed.total(list(self.counts.values()))), strict=True))
        for name in list(self._sums):
            owner = owners[name.partition(".")[2]]
            distributed.add_up(self._sums[name], owner)
            if owner != distributed.rank():
                del self._sums[name]

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes the sums of a checkpoint."""
        for name, total in self._sums.items():
            total.copy_(tensors[name])
