"""How gradients are scaled before they are projected: by the inverse roots of second moments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from msif.attribution.gradients import Side
from msif.curvature.eigenvalues import LambdaPass
from msif.curvature.factors import ModuleFactors
from msif.curvature.inputs import device_and_dtype
from msif.models.blocks import TrackedModule
from msif.models.check import CheckedCapture
from msif.models.training.moments import SecondMoments, factored
from msif.progress import progress

# √V is taken to be at least this share of its root mean square over the whole model: what hardly ever has a gradient
# (keys' biases, words that do not occur) says nothing, and must not be blown up to the size of all else. Of a factored
# V the same holds of rows and columns among themselves, and of its mean
FLOOR = 1e-4
# documents from which second moments are estimated, at most
ESTIMATED_FROM = 512


@dataclass(frozen=True)
class Scale:
    """1/√V of a parameter W̄ (d_out, d): the outer product of its rows and columns with a bias column, or a matrix.

    Attributes:
        rows, columns: (d_out,) and (d_in,); None where there is a matrix.
        bias: (d_out,), or None.
        matrix: (d_out, d), with the bias column.
    """

    rows: Tensor | None
    columns: Tensor | None
    bias: Tensor | None
    matrix: Tensor | None = None


def mean_square(moments: Mapping[str, SecondMoments]) -> float:
    """The mean of V over all parameters."""
    total, count = 0.0, 0
    for one in moments.values():
        if isinstance(one.weight, tuple):
            rows, columns = one.weight
            total += float(rows.double().sum() * columns.double().sum())
            count += len(rows) * len(columns)
        else:
            total += float(one.weight.double().sum())
            count += one.weight.numel()
        if one.bias is not None:
            total, count = total + float(one.bias.double().sum()), count + len(one.bias)
    return total / max(count, 1)


def scale_of(moments: SecondMoments, mean: float, device: torch.device | str, dtype: torch.dtype) -> Scale:
    """1/√V of one parameter; mean: of V over all parameters, see ``FLOOR``."""
    least = FLOOR**2 * mean
    bias = None if moments.bias is None else moments.bias.double().clamp(min=least).rsqrt()
    if isinstance(moments.weight, tuple):
        rows, columns = (part.double() for part in moments.weight)
        rows, columns = (part.clamp(min=FLOOR**2 * float(part.mean())) for part in (rows, columns))
        columns = columns * max(1.0, least / float(rows.mean() * columns.mean()))
        found = [rows.rsqrt(), columns.rsqrt(), bias, None]
    else:
        matrix = moments.weight.double().clamp(min=least).rsqrt()
        found = [None, None, None, matrix if bias is None else torch.cat([matrix, bias[:, None]], 1)]
    return Scale(*(None if part is None else part.to(device, dtype) for part in found))


def estimate_moments(side: Side, batches: Iterable[Any]) -> dict[str, SecondMoments]:
    """Module name -> rows ⊗ columns of the mean square of documents' gradients, per supervised token.

    An optimizer's V is of a batch's mean gradient; that it is larger or smaller by one factor does not matter.
    """
    device, dtype = device_and_dtype(side.model)
    identity = {module.name: _no_basis(module) for module in side.tracked}
    own = {module.name: module.name for module in side.tracked}
    consumer = LambdaPass(side.tracked, own, identity, device, dtype)
    with CheckedCapture(side.model, side.tracked, consumer) as capture:
        for batch in progress(batches, desc="second moments", unit="batch"):
            capture.run(side.objective, batch.to(device), [side.objective.loss_gradient])
            if consumer.counts["sequences"] >= ESTIMATED_FROM:  # of a stream, whose length is not known
                break
    return {module.name: _rank_one(module, consumer.Lambda(module.name)) for module in side.tracked}


def _no_basis(module: TrackedModule) -> ModuleFactors:
    blocks, rows, d = len(module.blocks), module.block_rows, module.shape[1]
    return ModuleFactors(Q_A=None, Q_G=None, S_A=torch.ones(d), S_G=torch.ones(blocks, rows))


def _rank_one(module: TrackedModule, Lambda: Tensor) -> SecondMoments:
    V = Lambda.flatten(0, 1).float()
    weight = V[:, : module.d_in]
    return SecondMoments(factored(weight) if len(V) > 1 else weight, V[:, module.d_in] if module.bias else None)
