"""What proponents are, drawn from the table."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.common.tables import only, read_tables
from experiments.trackstar.world import CLASSES
from msif.reporting.plots import figure
from msif.reporting.style import bar

TITLE = "What the first ten proponents are"
COUNT = "sentences that state it"


def draw(folder: Path) -> None:
    """Stacked shares of proponents, a panel a method."""
    rows = only(read_tables(folder / "trackstar.json"), TITLE)
    names = list(dict.fromkeys(row["method"] for row in rows))
    with figure(folder / "proponents", 2.6, 3.6, columns=len(names), sharey=True) as panels:
        for panel, name in zip(np.atleast_1d(panels), names, strict=True):
            own = [row for row in rows if row["method"] == name]
            bottom = np.zeros(len(own))
            for number, kind in enumerate(CLASSES):
                shares = np.array([row[kind] for row in own])
                panel.bar([row[COUNT] for row in own], shares, bottom=bottom, label=kind, **bar(number))
                bottom += shares
            panel.set_title(name, fontsize=9)
            panel.set_xlabel(f"{COUNT} (number)", fontsize=8)
        first = np.atleast_1d(panels)[0]
        first.set_ylabel("first ten proponents (share)")
        panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
