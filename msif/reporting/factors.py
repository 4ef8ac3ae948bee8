"""The factors that a run used: how settled they are, and where the damping lies in their spectrum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msif.errors import MsifError
from msif.reporting.runs import Run

if TYPE_CHECKING:
    from msif.curvature.store import FactorStore

STAGES = {"pretrained_factors": "pre-training", "finetuned_factors": "fine-tuning"}
BINS = 60
ROWS = 64  # of each block's Λ: enough for a histogram, however large it is
SMALLEST = 1e-30


def factors_of(run: Run) -> list[dict[str, Any]]:
    """One entry for each stage whose factors still lie where the run found them."""
    found: list[dict[str, Any]] = []
    for key, stage in STAGES.items():
        folder = run.config.get(key)
        if not isinstance(folder, str) or not (Path(folder) / "manifest.json").is_file():
            continue
        try:
            found.append({"stage": stage, "folder": folder, **_described(folder, run.config, stage)})
        except (MsifError, OSError, ValueError, KeyError):  # another version's, or being made anew: no part of results
            continue
    return found


def _described(folder: str, config: Mapping[str, Any], stage: str) -> dict[str, Any]:
    from msif.curvature.convergence import WARN_ABOVE
    from msif.curvature.store import FactorStore

    store = FactorStore.open(folder)
    values, means = [], []
    for blocks in _sampled(store):
        values.append(blocks.ravel())
        means += blocks.reshape(len(blocks), -1).mean(1).tolist()
    shifts = _shifts(config, stage, np.array(means))
    return {
        "convergence": _convergence(store.manifest["convergence"]),
        "warn_above": WARN_ABOVE,
        "counts": store.manifest["counts"],
        "spectrum": _spectrum(np.concatenate(values), shifts) if values else None,
        "damping": _said(config, stage),
    }


def _convergence(changes: Mapping[str, float]) -> list[list[Any]]:
    """(kind of factor, median, worst, where) of the relative changes per doubling of the data."""
    kinds: dict[str, dict[str, float]] = {}
    for name, value in changes.items():
        module, _, kind = name.rpartition(":")
        kinds.setdefault(kind, {})[module] = value
    return [
        [kind, float(np.median(list(own.values()))), max(own.values()), max(own, key=lambda name: own[name])]
        for kind, own in kinds.items()
    ]


def _sampled(store: FactorStore) -> Iterator[np.ndarray]:
    """Λ of each module, (blocks, some rows, d)."""
    from safetensors import safe_open

    from msif.curvature.store import files_of, lambda_file

    for file, members in files_of(store.groups).items():
        with safe_open(store.path / lambda_file(file), framework="np") as handle:
            for name in members:
                part = handle.get_slice(f"{name}:Lambda")
                rows = part.get_shape()[1]
                yield np.asarray(part[:, :: max(1, rows // ROWS)], dtype=np.float64)


def _shifts(config: Mapping[str, Any], stage: str, means: np.ndarray) -> np.ndarray | None:
    """λ + α of each block where the configuration alone tells it; None for a scale that was read from training."""
    damping, alpha = _numbers(config)
    pull = alpha if stage == "fine-tuning" else 0.0
    if damping == "auto" or pull == "auto" or config.get("method") == "source":
        return None
    own = (config.get("damping_scale") or 0.0) * means if damping is None else np.full_like(means, damping)
    return own + (pull or 0.0)


def _numbers(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """(damping, α) of a command's configuration or of the library's, which keeps them together."""
    given = config.get("damping")
    if isinstance(given, Mapping):
        return given.get("damping"), given.get("alpha")
    return given, config.get("alpha")


def _said(config: Mapping[str, Any], stage: str) -> str:
    damping, alpha = _numbers(config)
    scale = config.get("damping_scale")
    if damping is None:
        said = f"λ = {scale} × the mean of each block's Λ"
    else:
        said = "λ = 1/τ of the stage's own training" if damping == "auto" else f"λ = {damping}"
    if stage == "fine-tuning" and alpha not in (None, 0, 0.0):
        said += ", α = 1/τ of fine-tuning" if alpha == "auto" else f", α = {alpha}"
    return said


def _spectrum(values: np.ndarray, shifts: np.ndarray | None) -> dict[str, Any]:
    """A histogram of log10 Λ, and of what is added to it; ``below`` is the share of Λ under its median."""
    positive = values[values > SMALLEST]
    if not len(positive):
        return {"counts": [], "low": 0.0, "high": 0.0, "zero": 1.0, "shift": None}
    logs = np.log10(positive)
    ends = [float(np.quantile(logs, 0.001)), float(logs.max())]
    shift = None
    if shifts is not None and (added := shifts[shifts > SMALLEST]).size:
        spread = [float(np.log10(value)) for value in (added.min(), np.median(added), added.max())]
        shift = {"spread": spread, "below": float((values < np.median(added)).mean())}
        ends = [min(ends[0], spread[0]), max(ends[1], spread[2])]
    counts, _ = np.histogram(np.clip(logs, ends[0], ends[1]), bins=BINS, range=(ends[0], max(ends[1], ends[0] + 1e-6)))
    zero = 1.0 - len(positive) / len(values)
    return {"counts": counts.tolist(), "low": ends[0], "high": ends[1], "zero": zero, "shift": shift}
