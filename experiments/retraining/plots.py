"""What the tables look like."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.retraining.removal import Changes
from experiments.retraining.report import single_best
from experiments.retraining.study import Study
from msif.reporting.plots import figure
from msif.reporting.style import bar, line


def plot_all(folder: Path, study: Study) -> None:
    """removal and lds."""
    with figure(folder / "removal", 9.0, 5.5) as axes:
        removal(axes, study.changes)
    plot_datamodelling(folder, study)


def plot_datamodelling(folder: Path, study: Study) -> None:
    """lds."""
    with figure(folder / "lds", 9.0, 6.0) as axes:
        datamodelling(axes, study)


def removal(axes: Any, changes: Mapping[tuple[str, int], Changes]) -> None:
    """Change of the loss against k, a line a method, with standard errors of the mean over queries."""
    titles = sorted({title for title, _ in changes})
    ks = sorted({k for _, k in changes})
    last = {title: changes[title, ks[-1]].losses.mean() for title in titles}
    for number, title in enumerate(sorted(titles, key=lambda title: -last[title])):
        by_query = np.stack([changes[title, k].losses.mean(0) for k in ks])
        error = by_query.std(1) / np.sqrt(max(1, by_query.shape[1] - 1))
        shift = 0.08 * (number - len(titles) / 2) / len(titles)
        places = np.array(ks) * (1 + shift)  # so that bars do not hide each other
        axes.errorbar([0, *places], [0, *by_query.mean(1)], [0, *error], capsize=2, label=title, **line(number))
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="documents left out of pre-training (number)", ylabel="change of the query's loss (nats)")
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))


def datamodelling(axes: Any, study: Study) -> None:
    """Each pair by its own retrainings, with intervals: the best of the sweep beside what needs no tuning."""
    rows = single_best(study)
    means = [study.judge.own(study.scores[method.name]) for method, _ in rows]
    errors = [[i.mean - i.low for i in means], [i.high - i.mean for i in means]]
    places = np.arange(len(rows))[::-1]
    axes.barh(places, [i.mean for i in means], xerr=errors, ecolor="black", **bar(0))
    axes.set_yticks(places, [method.name + note for method, note in rows], fontsize="small")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(xlabel="datamodelling score, mean over pairs (Spearman's ρ)")
