"""What each stage's inverse was damped by in a run, block by block, as it was used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from msif.attribution.contributions import block_names
from msif.attribution.staged import Staged
from msif.job import Job
from msif.models.blocks import TrackedModule


def stage_scales(job: Job) -> list[dict[str, Any]]:
    """An entry for each stage, or segment of one, whose inverse the scores have, in the order of training.

    Its ``stage``, the folder of its ``factors``, and ``scales``: "damping" and "alpha", or "tau", each by block. They
    are known once queries' vectors have been made.
    """
    if not isinstance(job.scorer, Staged):
        return []
    names = ("training",) if job.first is job.last else ("pre-training", "fine-tuning")
    parts = [(name, part) for name, stage in zip(names, job.stages, strict=True) for part in job.parts_of(stage)]
    tracked = job.scorer.candidate_side.tracked
    found = []
    # single-stage influence of two models has the inverse of the first alone
    for (name, part), inverse in zip(parts, job.scorer.applied, strict=False):
        if inverse.scales:
            own = {"stage": name, "factors": None if part.factors is None else str(part.factors)}
            found.append({**own, "scales": by_block(inverse.scales, tracked)})
    return found


def by_block(
    scales: Mapping[str, Mapping[str, Tensor]], tracked: Sequence[TrackedModule]
) -> dict[str, dict[str, float]]:
    """Of each kind of scale block -> value; one that a module has as a whole stands under its name."""
    found: dict[str, dict[str, float]] = {}
    for module in tracked:
        for kind, values in scales.get(module.name, {}).items():
            names = block_names([module]) if len(values) == len(module.blocks) else [module.name]
            rounded = (float(f"{value:.6g}") for value in values.tolist())
            found.setdefault(kind, {}).update(zip(names, rounded, strict=True))
    return found
