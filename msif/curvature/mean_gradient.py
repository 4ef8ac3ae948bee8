"""The mean gradient of a stage's own loss, by one pass over its data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


class _Total(Consumer):
    """Σ_z ∇L(z) of each module, and the supervised tokens that went in."""

    def __init__(self, tracked: Sequence[TrackedModule], device: torch.device, dtype: torch.dtype) -> None:
        self.sums = {module.name: torch.zeros(module.shape, device=device, dtype=dtype) for module in tracked}
        self.supervised = 0
        self._guard = FiniteGuard("the gradient of the training data")

    def begin(self, batch: Any, objective: Objective) -> None:
        self.supervised += int(objective.supervised_counts(batch).sum())

    def backward(self, module: TrackedModule, uses: Sequence[Outer]) -> None:
        total: Tensor = self.sums[module.name]
        add_total(total, uses)
        self._guard.watch(module.name, total.sum())

    def end(self, batch: Any) -> None:
        self._guard.check(batch)


def mean_gradient(
    model: nn.Module, tracked: Sequence[TrackedModule], objective: Objective, batches: Iterable[Any]
) -> Vectors:
    """Γ = (1/N) Σ_z ∇L(z) with the data's own labels, N supervised tokens in all: module name -> (d_out, d).

    Raises:
        MsifError: nothing is supervised, or NaN or infinity in a gradient.
    """
    device, dtype = device_and_dtype(model)
    consumer = _Total(tracked, device, dtype)
    with CheckedCapture(model, tracked, consumer) as capture:
        for batch in batches:
            capture.run(objective, batch.to(device), [objective.loss_gradient])
    if not consumer.supervised:
        raise MsifError("no token of the training data is supervised: give the data that the model was trained on.")
    return {name: total / consumer.supervised for name, total in consumer.sums.items()}
