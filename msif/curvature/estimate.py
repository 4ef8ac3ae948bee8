"""What a fit will take: sizes by count, time by count and the speed of a small batch."""

from __future__ import annotations

import logging
import math
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
from msif.curvature.residency import OUTPUT_BYTES, Residency, covariance_bytes, room_beside, weight_bytes
from msif.curvature.store import PARTS, files_of
from msif.curvature.work import Work, covariance_work, lambda_work
from msif.data.sample import Plan
from msif.errors import one_line
from msif.models.blocks import TrackedModule
from msif.models.objectives import Objective
from msif.models.select import coverage
from msif.models.sharding import bytes_of_share

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


@dataclass(frozen=True)
class Machines:
    """What a fit or a scoring is foretold for.

    Attributes:
        processes: that share the batches.
        fsdp: whether they share the weights out too.
        memory: bytes of a device in all; None is what this one has.
    """

    processes: int = 1
    fsdp: bool = False
    memory: int | None = None

    def weights(self, models: Sequence[nn.Module]) -> float:
        """Bytes that one process holds."""
        if not self.fsdp:
            return weight_bytes(models)
        return sum(bytes_of_share(model, self.processes) for model in dict.fromkeys(models))

    def room(self, models: Sequence[nn.Module], outputs: float) -> int:
        """See ``room_beside``."""
        spared = weight_bytes(models) - self.weights(models)
        return room_beside(models, outputs, None if self.memory is None else int(self.memory + spared))

    def sent(self, models: Sequence[nn.Module], batches: float) -> float:
        """Bytes of weights that a process gets for the forward and backward passes of so many batches."""
        return 2 * weight_bytes(models) * batches * (1 - 1 / self.processes) if self.fsdp else 0.0

    def rounds(self, batches: float) -> float:
        """The part of one process's time that is left of so many batches."""
        return max(1 / self.processes, math.ceil(batches / self.processes) / max(batches, 1) if batches >= 1 else 0)


def describe_fit(
    model: nn.Module,
    tracked: Sequence[TrackedModule],
    objective: Objective,
    plan: Plan,
    settings: FitSettings,
    machines: Machines,
    stream: bool,
) -> str:
    """Blocks, passes, memory, disk and time of a fit; of a model without weights all but the time."""
    device = next(model.parameters()).device
    speed = None if device.type == "meta" else fit_speed(model, tracked, objective, plan, settings)
    groups = _shared(model, tracked, objective, plan) if speed is None else speed.groups
    size = sizes(tracked, groups)
    weights, n = machines.weights([model]), machines.processes
    tokens = max(B * T for B, T in plan.shapes)
    config: Any = getattr(model, "config", None)
    width = config.get_text_config().vocab_size if speed is None else speed.outputs
    outputs, activations = (OUTPUT_BYTES * width * tokens, 0.0) if speed is None else speed.held(plan.shapes)
    residency = Residency(tracked, groups, tokens, 4)
    modules = files_of(groups)
    room = machines.room([model], width * tokens)
    passes = {part: residency.partition(modules, part, room) for part in PARTS}
    held = max(
        residency.bytes_of([name for file in files for name in modules[file]], part)
        for part, several in passes.items()
        for files in several
    )
    times = len(passes["eigenvectors"]), len(passes["lambda"])
    query = 4 * size.parameters
    whole = human_bytes(weights + held + outputs + activations) + (" a process" if n > 1 else "")
    beside = "" if speed is None else f", its activations {human_bytes(activations)}"
    lines = [
        f"tracked     {coverage(model, tracked)}",
        f"blocks      {size.blocks} in {size.modules} modules, {size.parameters:,} parameters",
        f"on disk     {human_bytes(size.factor_bytes)} in float32",
        f"memory      about {whole}: weights {human_bytes(weights)}, sums and factors {human_bytes(held)}, "
        f"a batch's outputs {human_bytes(outputs)}{beside}; {human_bytes(query)} a query later",
        f"passes      {times[0]} for covariances, {times[1]} for Λ",
    ]
    if n > 1:
        sums = sum(covariance_bytes(module, groups[module.name] == module.name, 4) for module in tracked)
        sums += 4 * size.parameters
        gathered = machines.sent([model], sum(times) * plan.batches / n)
        lines.append(
            f"processes   {n}: each sends {human_bytes(sums)} of sums in all"
            + (f", and gets {human_bytes(gathered)} of weights" if gathered else "")
        )
    if speed is not None:
        seconds, eigen = fit_seconds(speed, plan, tracked, settings, times)
        reading = sum(times) * plan.reading  # by each process
        seconds = (seconds - reading) * machines.rounds(plan.batches) + reading
        eigen *= residency.owners(modules, "eigenvectors", n)[1]
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
