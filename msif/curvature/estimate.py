"""What a fit will take: sizes by count, time by count and the speed of a small batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log2

from torch import nn

from msif.curvature.convergence import PROBES
from msif.curvature.covariance import CovariancePass
from msif.curvature.fit import FitSettings
from msif.curvature.probe import Speed, measure
from msif.curvature.work import Work, covariance_work, lambda_work
from msif.data.sample import Plan
from msif.models.blocks import TrackedModule
from msif.models.objectives import Objective

DISK = 1e9  # bytes a second


@dataclass(frozen=True)
class Sizes:
    """Counts of a set of tracked modules; bytes are those of float32 factors.

    Attributes:
        eigen: dimension -> how many matrices of it are decomposed.
    """

    modules: int
    blocks: int
    parameters: int
    factor_bytes: int
    eigen: Mapping[int, int]


def sizes(tracked: Sequence[TrackedModule], groups: Mapping[str, str]) -> Sizes:
    """Blocks, parameters, and the factors' size, each A counted once for the modules that share it.

    Of a side whose basis is the identity there is only a diagonal.
    """
    numbers, eigen = 0, Counter[int]()
    for module in tracked:
        d_out, d = module.shape
        rows = module.block_rows
        if groups[module.name] == module.name:
            numbers += d
            if module.column_basis == "eigenvectors":
                numbers += d * d
                eigen[d] += 1
        numbers += d_out + d_out * d
        if module.row_basis == "eigenvectors":
            numbers += d_out * rows
            eigen[rows] += len(module.blocks)
    parameters = sum(module.d_out * module.shape[1] for module in tracked)
    blocks = sum(len(module.blocks) for module in tracked)
    return Sizes(len(tracked), blocks, parameters, 4 * numbers, eigen)


def fit_speed(
    model: nn.Module, tracked: Sequence[TrackedModule], objective: Objective, plan: Plan, settings: FitSettings
) -> Speed:
    """Of the model, with the cotangent "labels" of a fit."""
    return measure(
        model, tracked, objective, plan, {"labels": settings.cotangents(objective, CovariancePass.stream)[0]}
    )


def fit_seconds(
    speed: Speed, plan: Plan, tracked: Sequence[TrackedModule], settings: FitSettings
) -> tuple[float, float]:
    """Of both passes, with all that is read and written in them, and of the eigenvectors between them."""
    samples, groups = settings.label_samples, speed.groups
    size = sizes(tracked, groups)
    numbers = size.factor_bytes / 4
    passes = 2 * (speed.passes(plan, "labels", samples) + plan.reading)
    passes += speed.over(plan, lambda B, T: covariance_work(tracked, groups, B, T, samples))
    passes += speed.over(plan, lambda B, T: lambda_work(tracked, groups, B, T, samples))
    # their convergence is looked at as the data doubles; checkpoints, layers, and layers with Λ are written
    looks = 2 + log2(max(1.0, plan.batches))
    passes += speed.of(Work(PROBES * numbers, 3 * numbers) * looks) + 4 * size.factor_bytes / DISK
    return passes, speed.eigenvectors(size.eigen.items())


def human_bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_seconds(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
