"""The plot of a table of families: a few sorts of their methods side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from experiments.common.tables import only, read_tables, spread
from experiments.retraining.families import OWN
from msif.reporting.plots import figure
from msif.reporting.style import GREY, bar


def draw_families(folder: Path, name: str, sorts: Mapping[str, Callable[[Mapping[str, Any]], bool]]) -> None:
    """
    Args:
        name: of the table, and of the plot.
        sorts: what the plot calls a sort -> whether a row of the table is of it.
    """
    rows = only(read_tables(folder / f"{name}.json"), "Linear datamodelling score")
    families = list(dict.fromkeys((row["asked"], row["method"]) for row in rows))
    with figure(folder / name, 8.0, 0.6 * len(families) + 1) as axes:
        for number, (label, is_of) in enumerate(sorts.items()):
            chosen = [row for row in rows if is_of(row)]
            places = [len(families) - families.index((row["asked"], row["method"])) - 0.4 * number for row in chosen]
            scores = [row[OWN] for row in chosen]
            means = [score.mean for score in scores]
            axes.barh(places, means, xerr=spread(scores), ecolor=GREY, height=0.38, label=label, **bar(1 - number))
        marks = [len(families) - number - 0.2 for number in range(len(families))]
        axes.set_yticks(marks, [f"{asked}\n{method}" for asked, method in families], fontsize="x-small")
        axes.set(xlabel="linear datamodelling score (Spearman correlation)")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize="small")
