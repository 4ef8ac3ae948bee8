"""What the tables look like, drawn from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.tables import Record, only, read_tables, spread
from experiments.digits.methods import SOURCE, SWEEP
from experiments.digits.report import EKFAC, EXACT
from experiments.digits.settings import Schedule
from msif.reporting.plots import figure
from msif.reporting.style import LEVEL, bar, line

ALPHAS = ("no hop", "0.0001", "0.001", "0.01", "1/ηK", "0.1")
SCORE = "linear datamodelling score (Spearman correlation)"


def draw(folder: Path) -> None:
    """Everything that the tables of a folder allow."""
    (sweep,) = read_tables(folder / "sweep.json").values()
    (chosen,) = read_tables(folder / "lds.json").values()
    configuration = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["configuration"]
    natural = 1 / Schedule(**configuration["pretrain"]).rate_sum
    with figure(folder / "damping", 5.0, 4.0, columns=2) as panels:
        for axes, family in zip(panels, (EKFAC, EXACT), strict=True):
            damping(axes, [row for row in sweep if row["method"] == family], family, natural)
        panels[0].set_ylim(bottom=min(0.0, panels[0].get_ylim()[0]), top=panels[1].get_ylim()[1])
        panels[1].set_ylim(panels[0].get_ylim())
    with figure(folder / "ensembles", 8.4, 4.0) as axes:
        ensembles(axes, only(read_tables(folder / "ensembles.json"), ""), ceiling(chosen))
    with figure(folder / "counterfactual", 6.4, 4.0) as axes:
        counterfactual(axes, only(read_tables(folder / "counterfactual.json"), ""))


def ceiling(rows: Sequence[Record]) -> float:
    """What the expected loss itself would score: a score over its share of the ceiling."""
    best = max(rows, key=lambda row: row["averaged"])
    return best["averaged"] / best["of the ceiling"]


def damping(axes: Any, rows: Sequence[Record], title: str, natural: float) -> None:
    """Averaged scores against λ_pt, a line for each α."""
    score = {(row["λ_pt"], row["α"]): row["averaged"] for row in rows}
    places = sorted([(natural, "1/ηK"), *((value, f"{value:g}") for value in SWEEP)])
    for number, alpha in enumerate(ALPHAS):
        points = [(x, score[shown, alpha]) for x, shown in places if (shown, alpha) in score]
        if len(points) > 1:
            axes.plot(*zip(*points, strict=True), label=f"α = {alpha}" if alpha != "no hop" else alpha, **line(number))
    axes.axhline(score[SOURCE, SOURCE], color=LEVEL, linestyle=(0, (1, 1)), label="SOURCE filters")
    axes.axvline(natural, color=LEVEL, linewidth=0.8)
    axes.annotate("1/ηK", (natural, 0.02), xycoords=("data", "axes fraction"), color=LEVEL)
    axes.set(xscale="log", xlabel="λ_pt (nats)", ylabel=SCORE, title=title)
    axes.legend(fontsize="small")


def ensembles(axes: Any, rows: Sequence[Record], level: float) -> None:
    """Scores against the number of models, up to the ceiling."""
    columns = [name for name in rows[0] if name.endswith(("model", "models"))]
    sizes = [int(column.split()[0]) for column in columns]
    for number, row in enumerate(rows):
        given = {"λ": row["λ_pt"], "α": row["α"]}
        shown = ", ".join(f"{letter} = {value}" for letter, value in given.items() if value)
        label = row["method"] + (f" ({SOURCE})" if row["λ_pt"] == SOURCE else f" ({shown})" if shown else "")
        axes.plot(sizes, [row[column] for column in columns], label=label, **line(number))
    axes.axhline(level, color=LEVEL, linestyle=(0, (6, 2)), label="noise ceiling")
    axes.set(xscale="log", xlabel="models averaged (number)", ylabel=SCORE)
    axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    axes.minorticks_off()
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))


def counterfactual(axes: Any, rows: Sequence[Record]) -> None:
    """Mean changes with intervals, a group of bars for each k."""
    ks = sorted({row["k"] for row in rows})
    found = {(row["removed: top images by"], row["k"]): row["change of the query's loss, 95 %"] for row in rows}
    titles = [row["removed: top images by"] for row in rows if row["k"] == ks[-1]]
    height = 0.8 / len(ks)
    for place, k in enumerate(ks):
        own = [found[title, k] for title in titles]
        means, where = [interval.mean for interval in own], np.arange(len(titles)) + place * height
        error = {"xerr": spread(own), "error_kw": {"elinewidth": 1}}
        axes.barh(where, means, height, label=f"{k} images removed", **error, **bar(place))
    axes.set_yticks(np.arange(len(titles)) + 0.4 - height / 2, titles)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(xlabel="change of the query's loss, 95 % (nats)")
    axes.legend(fontsize="small")
