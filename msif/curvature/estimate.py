"""What a fit will take: sizes by count, time by a short probe."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from msif.curvature.covariance import CovariancePass
from msif.curvature.fit import FitSettings
from msif.curvature.inputs import device_and_dtype
from msif.models.blocks import TrackedModule
from msif.models.capture import Capture
from msif.models.objectives import Objective

# eigendecompositions run at about this many d³ a second and core in float64
EIGEN_RATE = 5e9


@dataclass(frozen=True)
class Sizes:
    """Counts of a set of tracked modules; bytes are those of float32 factors."""

    modules: int
    blocks: int
    parameters: int
    factor_bytes: int
    eigen_operations: float


def sizes(tracked: Sequence[TrackedModule], groups: Mapping[str, str]) -> Sizes:
    """Blocks, parameters, and the factors' size, each A counted once for the modules that share it."""
    numbers, cubes = 0, 0.0
    for module in tracked:
        d_out, d = module.shape
        rows = module.block_rows
        if groups[module.name] == module.name:
            numbers += d * d + d
            cubes += float(d) ** 3
        numbers += d_out * rows + d_out + d_out * d
        cubes += len(module.blocks) * float(rows) ** 3
    parameters = sum(module.d_out * module.shape[1] for module in tracked)
    blocks = sum(len(module.blocks) for module in tracked)
    return Sizes(len(tracked), blocks, parameters, 4 * numbers, cubes)


def probe_fit(
    model: nn.Module,
    tracked: Sequence[TrackedModule],
    groups: Mapping[str, str],
    objective: Objective,
    batch: Any,
    settings: FitSettings,
) -> float:
    """Seconds that one batch takes in the covariance pass; the Λ pass takes about as long."""
    device, dtype = device_and_dtype(model)
    consumer = CovariancePass(tracked, groups, device, dtype, settings.label_samples)
    batch = batch.to(device)
    with Capture(model, tracked, consumer) as capture:
        for _ in range(2):  # the first one warms up
            start = time.perf_counter()
            capture.run(objective, batch, settings.cotangents(objective, CovariancePass.stream))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    return time.perf_counter() - start


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
