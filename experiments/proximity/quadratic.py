"""Whether a loss is the quadratic that influence functions take it for, on the way from one model to another.

Along θ_0 + tΔ, over the tracked maps, the mean loss of a token is compared with its expansion

    L(θ_0 + tΔ) − L(θ_0)  ≈  t gᵀΔ + ½ t² ΔᵀHΔ

with the gradient g and the Gauss-Newton matrix H of the same data at θ_0. Three steps lie between EK-FAC's ΔᵀHΔ and the
measured loss: the exact ΔᵀHΔ; that of the loss's own Hessian, which has a part that H leaves out, and which a second
difference of the loss gives; and all higher orders.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from msif.attribution.gradients import Side
from msif.curvature.ggn import GGN
from msif.curvature.inputs import device_and_dtype
from msif.curvature.vectors import Vectors, dot
from msif.errors import MsifError
from msif.models.blocks import TrackedModule, as_matrix, matrix_of, stored
from msif.models.capture import Capture, Consumer, frozen
from msif.models.objectives import Objective
from msif.models.outer import Outer


@dataclass(frozen=True)
class Expansion:
    """In nats per supervised token: gᵀΔ, and ½ΔᵀHΔ with the exact Gauss-Newton matrix."""

    linear: float
    quadratic: float

    def at(self, t: float) -> float:
        return t * self.linear + t * t * self.quadratic


def changes_of(
    first: nn.Module, tracked: Sequence[TrackedModule], second: nn.Module, others: Sequence[TrackedModule]
) -> dict[str, Tensor]:
    """Δ = W̄_1 − W̄_0 in float32 or better, for each tracked module of the first model that the second has by name."""
    named = {module.name: module for module in others}
    changes = {}
    for module in tracked:
        if module.name in named:
            a = matrix_of(first, module)
            wide = torch.float64 if a.dtype == torch.float64 else torch.float32
            changes[module.name] = matrix_of(second, named[module.name]).to(a.device, wide) - a.to(wide)
    return changes


def second_difference(before: float, middle: float, after: float, step: float) -> float:
    """½Δᵀ∇²LΔ from the losses at t = −step, 0 and step."""
    return (before - 2 * middle + after) / (2 * step * step)


@contextmanager
def moved(
    model: nn.Module, tracked: Sequence[TrackedModule], changes: Mapping[str, Tensor], t: float
) -> Iterator[None]:
    """The model with W̄ + tΔ in its tracked maps inside the block, and its own weights back after it."""
    own = [parameter for module in tracked for parameter in stored(model, module) if parameter is not None]
    kept = {parameter: parameter.detach().clone() for parameter in own}
    try:
        with torch.no_grad():
            for module in tracked:
                _add(model, module, t * changes[module.name])
        yield
    finally:
        with torch.no_grad():
            for parameter, value in kept.items():
                parameter.copy_(value)


def _add(model: nn.Module, module: TrackedModule, change: Tensor) -> None:
    weight, bias = stored(model, module)
    as_matrix(model, module, weight).add_(change[:, : module.d_in])
    if bias is not None:
        bias.add_(change[:, -1])


@torch.no_grad()
def mean_loss(model: nn.Module, objective: Objective, batches: Iterable[Any]) -> float:
    """Mean loss of a supervised token, summed in float64.

    Raises:
        MsifError: there is no supervised token.
    """
    device, _ = device_and_dtype(model)
    loss, tokens = 0.0, 0
    with frozen(model):
        for batch in batches:
            batch = batch.to(device)
            loss += objective.losses(objective.outputs(model, batch), batch).double().sum().item()
            tokens += int(objective.supervised_counts(batch).sum())
    if tokens == 0:
        raise MsifError("the data has no supervised token to take the loss of.")
    return loss / tokens


def losses_along(
    side: Side, changes: Mapping[str, Tensor], batches: Sequence[Any], fractions: Sequence[float]
) -> list[float]:
    """The mean loss at each fraction of the way; one forward pass over the data for each."""
    losses = []
    for t in tqdm(fractions, desc="losses along the way", unit="point", disable=None):
        with moved(side.model, side.tracked, changes, t):
            losses.append(mean_loss(side.model, side.objective, batches))
    return losses


def expansion(side: Side, changes: Mapping[str, Tensor], batches: Sequence[Any]) -> Expansion:
    """g and H of the data at the model's own parameters: about four passes forward and two backward."""
    device, dtype = device_and_dtype(side.model)
    delta: Vectors = {name: change.to(device, dtype).unsqueeze(0) for name, change in changes.items()}
    product = GGN(side.model, side.tracked, side.objective, batches).matvec(delta)
    return Expansion(_slope(side, delta, batches), 0.5 * dot(delta, product).item())


def _slope(side: Side, delta: Vectors, batches: Sequence[Any]) -> float:
    """gᵀΔ per supervised token."""
    device, _ = device_and_dtype(side.model)
    consumer = _Slope(delta)
    tokens = 0
    with Capture(side.model, side.tracked, consumer) as capture:
        for batch in batches:
            batch = batch.to(device)
            tokens += int(side.objective.supervised_counts(batch).sum())
            capture.run(side.objective, batch, [side.objective.loss_gradient])
    if not math.isfinite(consumer.total):
        raise MsifError("the gradient of the data holds NaN or infinity: load the model in float32.")
    return consumer.total / tokens


class _Slope(Consumer):
    """Σ_z Σ_t g_tᵀ Δ x̄_t."""

    def __init__(self, delta: Vectors) -> None:
        self.delta, self.total = delta, 0.0

    def backward(self, module: TrackedModule, uses: Sequence[Outer]) -> None:
        change = self.delta[module.name][0]
        for use in uses:
            self.total += use.to(change.dtype).parts(change, 1).sum().item()
