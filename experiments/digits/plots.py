"""What the tables look like."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.methods import Method
from experiments.digits.methods import SOURCE, SWEEP
from experiments.digits.report import EKFAC, EXACT, ensemble_table
from experiments.digits.study import Study
from msif.evaluation.intervals import bootstrap
from msif.reporting.plots import figure

ALPHAS = ("no hop", "0.0001", "0.001", "0.01", "1/ηK", "0.1")


def plot_all(folder: Path, study: Study, changes: Mapping[tuple[str, int], np.ndarray]) -> None:
    with figure(folder / "damping.png", 5.0, 4.0, columns=2) as panels:
        for axes, family in zip(panels, (EKFAC, EXACT), strict=True):
            damping(axes, study, family)
        panels[0].set_ylim(bottom=min(0.0, panels[0].get_ylim()[0]), top=panels[1].get_ylim()[1])
        panels[1].set_ylim(panels[0].get_ylim())
    with figure(folder / "ensembles.png", 5.0, 4.0) as axes:
        ensembles(axes, study)
    with figure(folder / "counterfactual.png", 6.4, 4.0) as axes:
        counterfactual(axes, changes)


def damping(axes: Any, study: Study, family: str) -> None:
    """Averaged scores against λ_pt, a line for each α."""
    score = {m.name: study.judge.together(study.scored[m.name]) for m in study.methods if m.family == family}
    natural = 1 / study.settings.pretrain.rate_sum
    places = sorted([(natural, "1/ηK"), *((value, f"{value:g}") for value in SWEEP)])
    for number, alpha in enumerate(ALPHAS):
        points = [(x, score.get(Method(family, shown, alpha).name)) for x, shown in places]
        points = [(x, y) for x, y in points if y is not None]
        if len(points) > 1:
            label = f"α = {alpha}" if alpha != "no hop" else alpha
            axes.plot(*zip(*points, strict=True), marker=".", label=label, color=f"C{number}")
    source = score[Method(family, SOURCE, SOURCE).name]
    axes.axhline(source, color="black", linestyle=":", label="SOURCE filters")
    axes.axvline(natural, color="grey", linewidth=0.8)
    axes.annotate("1/ηK", (natural, 0.02), xycoords=("data", "axes fraction"), color="grey")
    axes.set(xscale="log", xlabel="λ_pt", ylabel="linear datamodelling score", title=family)
    axes.legend(fontsize="small")


def ensembles(axes: Any, study: Study) -> None:
    """Scores against the number of models, up to the ceiling."""
    table = ensemble_table(study)
    sizes = [int(column.split()[0]) for column in table.columns[3:]]
    for row in table.rows:
        shown = ", ".join(f"{letter} = {value}" for letter, value in zip("λα", row[1:3], strict=True) if value)
        label = row[0] + (f" ({SOURCE})" if row[1] == SOURCE else f" ({shown})" if shown else "")
        axes.plot(sizes, row[3:], marker="o", label=label)
    axes.axhline(study.judge.ceiling, color="black", linestyle="--", label="noise ceiling")
    axes.set(xscale="log", xlabel="models averaged", ylabel="linear datamodelling score")
    axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    axes.minorticks_off()
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(0, 0.7))


def counterfactual(axes: Any, changes: Mapping[tuple[str, int], np.ndarray]) -> None:
    """Mean changes with intervals, a group of bars for each k."""
    titles = list(dict.fromkeys(title for title, _ in changes))
    ks = sorted({k for _, k in changes})
    height = 0.8 / len(ks)
    for place, k in enumerate(ks):
        found = [bootstrap(changes[title, k]) for title in titles]
        means = [interval.mean for interval in found]
        spread = [[i.mean - i.low for i in found], [i.high - i.mean for i in found]]
        axes.barh(np.arange(len(titles)) + place * height, means, height, xerr=spread, label=f"{k} images removed")
    axes.set_yticks(np.arange(len(titles)) + 0.4 - height / 2, titles)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(xlabel="change of the query's loss")
    axes.legend(fontsize="small")
