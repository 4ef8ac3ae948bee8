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

BINS = 60
ROWS = 64  # of each block's Λ: enough for a histogram, however large it is
SMALLEST = 1e-30


def factors_of(run: Run) -> list[dict[str, Any]]:
    """One entry for each stage whose factors still lie where the run found them."""
    found: list[dict[str, Any]] = []
    for stage in run.manifest.get("stages") or ():
        folder = stage["factors"]
        if folder is None or not (Path(folder) / "manifest.json").is_file():
            continue
        try:
            found.append({"stage": stage["stage"], "folder": folder, **_described(folder, stage["scales"])})
        except (MsifError, OSError, ValueError, KeyError):  # another version's, or being made anew: no part of results
            continue
    return found


def _described(folder: str, scales: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    from msif.curvature.convergence import WARN_ABOVE
    from msif.curvature.store import FactorStore

    store = FactorStore.open(folder)
    values = [blocks.ravel() for blocks in _sampled(store)]
    return {
        "convergence": _convergence(store.manifest["convergence"]),
        "warn_above": WARN_ABOVE,
        "counts": store.manifest["counts"],
        "spectrum": _spectrum(np.concatenate(values), _shifts(scales)) if values else None,
        "damping": _said(scales),
        "scale": "1/τ" if "tau" in scales else "λ + α",
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


def _shifts(scales: Mapping[str, Mapping[str, float]]) -> np.ndarray | None:
    """Where each block's filter bends: at λ + α, or for SOURCE at 1/τ; None of an adapter's hop, whose α is its own."""
    if "tau" in scales:
        return 1.0 / np.array(list(scales["tau"].values()))
    added = [scales[kind] for kind in ("damping", "alpha") if kind in scales]
    return np.array([sum(own.get(block, 0.0) for own in added) for block in added[0]]) if added else None


def _said(scales: Mapping[str, Mapping[str, float]]) -> str:
    """The scales in numbers, such as "λ 0.01, α 0.002 to 0.03"."""
    letters = {"damping": "λ", "alpha": "α", "tau": "τ", "alpha of A": "α of A", "alpha of B": "α of B"}
    said = []
    for kind, own in scales.items():
        low, high = min(own.values()), max(own.values())
        said.append(f"{letters[kind]} {low:.3g}" + (f" to {high:.3g}" if high > low else ""))
    return ", ".join(said)


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
