"""The plot: each family at the models themselves and with halves that are foretold."""

from __future__ import annotations

from pathlib import Path

from experiments.common.tables import only, read_tables, spread
from experiments.nearby.methods import USUAL
from msif.reporting.plots import figure
from msif.reporting.style import GREY, bar

SCORE = "each model by its own"


def draw(folder: Path) -> None:
    """nearby, of the table of this name."""
    rows = only(read_tables(folder / "nearby.json"), "Linear datamodelling score")
    families = list(dict.fromkeys((row["asked"], row["method"]) for row in rows))
    sorts = {"at the models themselves": (None, None), f"{USUAL.count} halves": (USUAL.count, f"{USUAL.step:g}")}
    with figure(folder / "nearby", 8.0, 0.6 * len(families) + 1) as axes:
        for number, (title, (count, step)) in enumerate(sorts.items()):
            chosen = [row for row in rows if (row["halves"], row["step"]) == (count, step)]
            places = [len(families) - families.index((row["asked"], row["method"])) - 0.4 * number for row in chosen]
            scores = [row[SCORE] for row in chosen]
            means = [score.mean for score in scores]
            axes.barh(places, means, xerr=spread(scores), ecolor=GREY, height=0.38, label=title, **bar(1 - number))
        marks = [len(families) - number - 0.2 for number in range(len(families))]
        axes.set_yticks(marks, [f"{asked}\n{method}" for asked, method in families], fontsize="x-small")
        axes.set(xlabel="linear datamodelling score (Spearman correlation)")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize="small")
