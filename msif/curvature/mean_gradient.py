"""Mean gradients of a stage's own loss, of all sequences or of parts of them, by one pass over its data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from msif.curvature.inputs import device_and_dtype
from msif.curvature.vectors import Vectors
from msif.errors import MsifError
from msif.models.blocks import TrackedModule
from msif.models.capture import Consumer, FiniteGuard
from msif.models.check import CheckedCapture
from msif.models.objectives import Objective
from msif.models.outer import Outer, add_total
from msif.progress import progress

Members = Callable[[Tensor], Tensor]
"""The ``indices`` of B sequences -> whether each is in each of K sets, bool (K, B)."""


class _Totals(Consumer):
    """Σ_z ∇L(z) of each module over K sets of sequences, and the supervised tokens of all that went by."""

    def __init__(
        self, tracked: Sequence[TrackedModule], members: Members, count: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.members = members
        self.sums = {m.name: torch.zeros(count, *m.shape, device=device, dtype=dtype) for m in tracked}
        self.supervised = 0
        self._guard = FiniteGuard("the gradient of the training data")

    def begin(self, batch: Any, objective: Objective) -> None:
        self.supervised += int(objective.supervised_counts(batch).sum())
        chosen = self.members(batch.indices.cpu())
        self._rows = [row.nonzero().flatten().to(batch.indices.device) for row in chosen]

    def backward(self, module: TrackedModule, uses: Sequence[Outer]) -> None:
        for total, rows in zip(self.sums[module.name], self._rows, strict=True):
            if len(rows):
                whole = len(rows) == len(uses[0].right)
                add_total(total, uses if whole else [use.of(rows) for use in uses])
        self._guard.watch(module.name, self.sums[module.name].sum())

    def end(self, batch: Any) -> None:
        self._guard.check(batch)


def mean_gradients(
    model: nn.Module,
    tracked: Sequence[TrackedModule],
    objective: Objective,
    batches: Iterable[Any],
    members: Members,
    count: int,
) -> Vectors:
    """(1/N) Σ_{z ∈ S_k} ∇L(z) of ``count`` sets S_k with the data's own labels, N supervised tokens of *all* sequences:
    module name -> (K, d_out, d).

    Raises:
        MsifError: nothing is supervised, or NaN or infinity in a gradient.
    """
    device, dtype = device_and_dtype(model)
    consumer = _Totals(tracked, members, count, device, dtype)
    with CheckedCapture(model, tracked, consumer) as capture:
        for batch in (one.to(device) for one in progress(batches, desc="gradients", unit="batch")):
            capture.run(objective, batch, [objective.loss_gradient])
    if not consumer.supervised:
        raise MsifError("no token of the training data is supervised: give the data that the model was trained on.")
    return {name: sums / consumer.supervised for name, sums in consumer.sums.items()}


def mean_gradient(
    model: nn.Module, tracked: Sequence[TrackedModule], objective: Objective, batches: Iterable[Any]
) -> Vectors:
    """Γ = (1/N) Σ_z ∇L(z) of all sequences: module name -> (d_out, d); see ``mean_gradients``."""
    everything: Members = lambda indices: torch.ones(1, len(indices), dtype=torch.bool)  # noqa: E731
    sums = mean_gradients(model, tracked, objective, batches, everything, 1)
    return {name: own[0] for name, own in sums.items()}
