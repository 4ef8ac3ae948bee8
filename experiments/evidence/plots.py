"""The plot: each family with either."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from experiments.evidence.methods import EVIDENCE, STATE
from experiments.retraining.family_plot import draw_families


def draw(folder: Path) -> None:
    """evidence, of the table of this name."""
    sorts = {f"τ of {by}": partial(_is_told, by) for by in (STATE, EVIDENCE)}
    draw_families(folder, "evidence", sorts)


def _is_told(by: str, row: Mapping[str, Any]) -> bool:
    return bool(row["τ told by"] == by)
