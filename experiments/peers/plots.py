"""The plot: the best setting of each toolkit's methods."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.common.tables import Record, only, read_tables, spread
from experiments.peers.rows import OWN
from msif.evaluation.intervals import Interval
from msif.reporting.plots import figure
from msif.reporting.style import GREY, bar

SCORE = "each model by its own"


def draw(folder: Path) -> None:
    """peers, of the table of this name."""
    rows = best_settings(only(read_tables(folder / "peers.json"), "Linear datamodelling score"))
    places = np.arange(len(rows))[::-1]
    with figure(folder / "peers", 8.0, 0.4 * len(rows) + 1) as axes:
        for place, row in zip(places, rows, strict=True):
            own = row["toolkit"] == OWN
            axes.barh(place, row[SCORE].mean, xerr=spread([row[SCORE]]), ecolor=GREY, height=0.7, **bar(int(not own)))
        names = [f"{row['toolkit']}: {row['method']}\n{row['setting']}" for row in rows]
        axes.set_yticks(places, names, fontsize="x-small")
        axes.set(xlabel="linear datamodelling score (Spearman correlation)")


def best_settings(rows: list[Record]) -> list[Record]:
    """The first row of each toolkit's method over the same maps, for a table is best first; what failed is left out."""
    found: dict[tuple[str, str, bool], Record] = {}
    for row in rows:
        if isinstance(row[SCORE], Interval):
            found.setdefault((row["toolkit"], row["method"], "unembedding" in row["setting"]), row)
    return list(found.values())
