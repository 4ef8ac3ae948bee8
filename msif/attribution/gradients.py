"""Gradients of queries: ∇m(q) for every tracked module, formed once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from msif.curvature.inputs import device_and_dtype
from msif.curvature.vectors import Vectors
from msif.errors import MsifError
from msif.models.blocks import TrackedModule
from msif.models.capture import Consumer, FiniteGuard
from msif.models.check import CheckedCapture
from msif.models.objectives import Measurement, Objective
from msif.models.outer import Outer, sequence_gradients


@dataclass(frozen=True)
class Side:
    """A model as one end of an influence: where queries are measured, or where candidates were trained on."""

    model: nn.Module
    tracked: Sequence[TrackedModule]
    objective: Objective

    def restricted(self, names: Iterable[str]) -> Side:
        """The same side with only the named modules."""
        kept = set(names)
        return Side(self.model, [module for module in self.tracked if module.name in kept], self.objective)


class _GradientPass(Consumer):
    """Collects per-sequence gradients, in the order in which the sequences come."""

    def __init__(self, side: Side) -> None:
        device, self.dtype = device_and_dtype(side.model)
        self.device = device
        self.collected: dict[str, list[Tensor]] = {module.name: [] for module in side.tracked}
        self.shapes = {module.name: module.shape for module in side.tracked}
        self._guard = FiniteGuard("the query gradient")

    def begin(self, batch: Any, objective: Objective) -> None:
        self._reached: set[str] = set()

    def backward(self, module: TrackedModule, uses: Sequence[Outer]) -> None:
        gradient = sequence_gradients([use.to(self.dtype) for use in uses], module.d_out)
        self.collected[module.name].append(gradient)
        self._reached.add(module.name)
        self._guard.watch(module.name, gradient.sum())

    def end(self, batch: Any) -> None:
        for name in self.collected.keys() - self._reached:
            zeros = torch.zeros(len(batch), *self.shapes[name], device=self.device, dtype=self.dtype)
            self.collected[name].append(zeros)
        self._guard.check(batch)


def query_gradients(side: Side, queries: Iterable[Any], measurement: str | Measurement = "loss") -> Vectors:
    """Module name -> ∇m of each query, (Q, d_out, d), rows ordered by the queries' ``indices``.

    Args:
        queries: batches of queries, their indices 0 … Q−1 in any order.
        measurement: a name that the objective knows, or a callable (outputs, batch) -> (B,), lower for likelier
            answers, so that a positive score names a proponent.

    Raises:
        MsifError: an unknown measurement, no query, or NaN or infinity in a gradient.
    """
    vectors, order = collected_gradients(side, queries, measurement)
    rows = query_rows(order).to(next(side.model.parameters()).device)
    if rows.tolist() == list(range(len(rows))):
        return vectors
    return {name: vectors.pop(name)[rows] for name in list(vectors)}


def collected_gradients(
    side: Side, queries: Iterable[Any], measurement: str | Measurement
) -> tuple[Vectors, list[Tensor]]:
    """The same with rows in the order in which the queries come, and the ``indices`` of each batch."""
    objective = side.objective
    measure = objective.measurement(measurement) if isinstance(measurement, str) else measurement
    consumer = _GradientPass(side)
    order: list[Tensor] = []
    with CheckedCapture(side.model, side.tracked, consumer) as capture:
        for batch in queries:
            cotangent = lambda outputs, batch: objective.measurement_gradient(outputs, batch, measure)  # noqa: E731
            capture.run(objective, batch.to(consumer.device), [cotangent])
            order.append(batch.indices)
    vectors: Vectors = {}
    for name in list(consumer.collected):
        parts = consumer.collected.pop(name)
        if parts:
            vectors[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
    return vectors, order


def query_rows(indices: Sequence[Tensor]) -> Tensor:
    """Where query 0, 1, … Q−1 stands among all rows, (Q,), from the ``indices`` of each batch in turn.

    Raises:
        MsifError: no query, or indices that are not 0 … Q−1.
    """
    if not indices:
        raise MsifError("there is no query.")
    numbers = torch.cat([batch.cpu() for batch in indices])
    if numbers.sort().values.tolist() != list(range(len(numbers))):
        raise MsifError(f"the queries' indices must be 0 to {len(numbers) - 1}, each once: number them so.")
    return numbers.argsort()
