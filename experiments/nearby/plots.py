"""The plot: each family at the models themselves and with halves that are foretold."""

from __future__ import annotations

from pathlib import Path

from experiments.nearby.methods import USUAL
from experiments.retraining.family_plot import draw_families


def draw(folder: Path) -> None:
    """nearby, of the table of this name."""
    usual = (USUAL.count, f"{USUAL.step:g}")
    sorts = {
        "at the models themselves": lambda row: (row["halves"], row["step"]) == (None, None),
        f"{USUAL.count} halves": lambda row: (row["halves"], row["step"]) == usual,
    }
    draw_families(folder, "nearby", sorts)
