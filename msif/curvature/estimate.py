"""What a fit will take: sizes by count, time by count and the speed of a small batch."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log2
from typing import Any

from torch import nn

from msif.curvature.convergence import PROBES
from msif.curvature.covariance import CovariancePass
from msif.curvature.fit import FitSettings
from msif.curvature.inputs import find_input_groups
from msif.curvature.probe import Speed, measure
from msif.curvature.residency import Residency, room_beside, weight_bytes
from msif.curvature.store import PARTS, files_of
from msif.curvature.work import Work, covariance_work, lambda_work
from msif.data.sample import Plan
from msif.errors import one_line
from msif.models.blocks import TrackedModule
from msif.models.objectives import Objective
from msif.models.select import coverage

log = logging.getLogger(__name__)

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
    speed: Speed,
    plan: Plan,
    tracked: Sequence[TrackedModule],
    settings: FitSettings,
    times: tuple[int, int] = (1, 1),
) -> tuple[float, float]:
    """Of all passes, with all that is read and written in them, and of the eigenvectors between them.

    Args:
        times: how many passes for covariances, and how many for Λ, each of them for a group of modules.
    """
    samples, groups = settings.label_samples, speed.groups
    size = sizes(tracked, groups)
    numbers = size.factor_bytes / 4
    passes = sum(times) * (speed.passes(plan, "labels", samples) + plan.reading)
    passes += speed.over(plan, lambda B, T: covariance_work(tracked, groups, B, T, samples))
    passes += speed.over(plan, lambda B, T: lambda_work(tracked, groups, B, T, samples))
    # their convergence is looked at as the data doubles; checkpoints, layers, and layers with Λ are written
    looks = 2 + log2(max(1.0, plan.batches))
    passes += speed.of(Work(PROBES * numbers, 3 * numbers) * looks) + 4 * size.factor_bytes / DISK
    return passes, speed.eigenvectors(size.eigen.items())


def describe_fit(
    model: nn.Module,
    tracked: Sequence[TrackedModule],
    objective: Objective,
    plan: Plan,
    settings: FitSettings,
    memory: int | None,
    stream: bool,
) -> str:
    """Blocks, passes, memory, disk and time of a fit; of a model without weights all but the time."""
    device = next(model.parameters()).device
    speed = None if device.type == "meta" else fit_speed(model, tracked, objective, plan, settings)
    groups = _shared(model, tracked, objective, plan) if speed is None else speed.groups
    size = sizes(tracked, groups)
    weights = weight_bytes([model])
    tokens = max(B * T for B, T in plan.shapes)
    config: Any = getattr(model, "config", None)
    width = config.get_text_config().vocab_size if speed is None else speed.outputs
    outputs = 2 * 4 * width * tokens
    room = room_beside([model], width * tokens, memory)
    residency = Residency(tracked, groups, tokens, 4)
    passes = {part: residency.partition(files_of(groups), part, room) for part in PARTS}
    modules = files_of(groups)
    held = max(
        residency.bytes_of([name for file in files for name in modules[file]], part)
        for part, several in passes.items()
        for files in several
    )
    query = 4 * size.parameters
    lines = [
        f"tracked     {coverage(model, tracked)}",
        f"blocks      {size.blocks} in {size.modules} modules, {size.parameters:,} parameters",
        f"on disk     {human_bytes(size.factor_bytes)} in float32",
        f"memory      about {human_bytes(weights + held + outputs)}: weights {human_bytes(weights)}, sums and factors "
        f"{human_bytes(held)}, a batch's outputs {human_bytes(outputs)}; {human_bytes(query)} a query later",
        f"passes      {len(passes['eigenvectors'])} for covariances, {len(passes['lambda'])} for Λ",
    ]
    if speed is not None:
        times = len(passes["eigenvectors"]), len(passes["lambda"])
        seconds, eigen = fit_seconds(speed, plan, tracked, settings, times)
        if stream:
            lines.append(f"time        {human_seconds(seconds)} a document, of a stream of unknown length")
        else:
            parts = f"{sum(times)} passes {human_seconds(seconds)}, eigenvectors {human_seconds(eigen)}"
            lines.append(f"time        about {human_seconds(seconds + eigen)}: {parts}")
    return "\n".join(lines)


def _shared(model: nn.Module, tracked: Sequence[TrackedModule], objective: Objective, plan: Plan) -> Mapping[str, str]:
    """Which modules share an input, of a model without weights; none where its forward pass asks for numbers."""
    few = plan.small_batch(8, 1).to(next(model.parameters()).device)
    try:
        groups = find_input_groups(model, tracked, objective, few)
    except RuntimeError as error:
        log.info("inputs are counted once for each module: %s", one_line(error))
        groups = {}
    return {module.name: groups.get(module.name, module.name) for module in tracked}


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
