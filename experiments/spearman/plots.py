"""The plots, drawn from the tables: Spearman against time, against iterations, residuals, and ablations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.tables import Record, only, read_tables
from msif.reporting.plots import figure
from msif.reporting.style import COLOURS, GREY, LEVEL, bar, line

BLACK, BLUE, ORANGE, RED, SKY, GREEN, PINK, YELLOW = COLOURS
# colour, mark: one colour a family, no mark twice in one lightness; iterative methods as lines
STYLES = {
    "EK-FAC-CG": (RED, "o"),
    "EK-FAC-LiSSA": (ORANGE, "^"),
    "CG": (BLUE, "s"),
    "LiSSA": (SKY, "v"),
    "EK-FAC": (BLACK, "*"),
    "EK-FAC, MLP only": (BLACK, "P"),
    "K-FAC": (GREEN, "D"),
    "diagonal": (GREEN, "d"),
    "Arnoldi": (PINK, "<"),
    "Arnoldi, with complement": (PINK, ">"),
    "TRAK, 1 model": (BLUE, "X"),
    "TRAK, {} models": (BLUE, "p"),
    "TRAK, {} models, Q per example": (BLUE, "h"),
    "LoGra": (YELLOW, "8"),
    "GDP": (LEVEL, "H"),
    "cosine": (LEVEL, "X"),
    "CKA": (GREY, "*"),
    "CKA, whole gradients": (GREY, "P"),
}
SOLVERS = (("CG", "EK-FAC-CG"), ("LiSSA", "EK-FAC-LiSSA"))
ABLATED = ("EK-FAC", "K-FAC", "diagonal")
SPEARMAN = "mean over queries (Spearman correlation)"


class Rows:
    """The rows of a run's tables by damping.

    Attributes:
        seconds: of what kind the times are.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "spearman.json"
        configuration = json.loads(path.read_text(encoding="utf-8"))["configuration"]
        tables = read_tables(path)
        titles = [title.partition(":")[0] for title in tables if title.startswith("Damping ")]
        self.by_damping = {title.removeprefix("Damping "): only(tables, f"{title}:") for title in titles}
        self.dampings = list(self.by_damping)
        self.detailed = next(t for t in tables if "costs at damping" in t).rpartition("damping ")[2]
        self.seconds = "CPU seconds" if configuration.get("device", "cpu") == "cpu" else "seconds"

    def curve(self, method: str, damping: str) -> list[Record]:
        """A method's rows at a damping, by budget."""
        own = [row for row in self.by_damping[damping] if row["method"] == method]
        return sorted(own, key=lambda row: row["iterations"] or 0)

    def query(self, row: Record) -> float:
        return row[f"a query, {self.seconds}"]

    def first(self, row: Record) -> float:
        """With all that comes before a first query."""
        return self.query(row) + row[f"before, {self.seconds}"]

    def methods(self) -> dict[str, tuple[str, str]]:
        """Colour and mark by the names that the tables have."""
        present = dict.fromkeys(row["method"] for rows in self.by_damping.values() for row in rows)
        found = {}
        for name, style in STYLES.items():
            before, _, after = name.partition("{}")
            for method in present:
                if method == name or ("{}" in name and _number(method, before, after)):
                    found[method] = style
        return found


def _number(method: str, before: str, after: str) -> bool:
    return method.startswith(before) and method.endswith(after) and method[len(before) : -len(after)].isdigit()


def draw(folder: Path) -> None:
    """All of them, from ``spearman.json``."""
    results = Rows(folder)
    for damping in results.dampings:
        name = damping.replace(" ", "-").replace(".", "")
        _against_time(folder / f"time-{name}", results, damping)
    _against_iterations(folder / "iterations", results)
    _residuals(folder / "residuals", results)
    _ablations(folder / "ablations", results)


def _against_time(path: Path, results: Rows, damping: str) -> None:
    """Filled marks: a further query. Hollow ones: the first, which waits for all that is made before."""
    with figure(path, 9.0, 5.2) as axes:
        later, first = [], []
        for method, (color, marker) in results.methods().items():
            curve = results.curve(method, damping)
            if not curve:
                continue
            x, y = [results.query(row) for row in curve], [row["Spearman"] for row in curve]
            size = 11 if marker == "*" else 6
            axes.plot(x, y, "-", color=color, marker=marker, markersize=size, linewidth=1.2, label=method, zorder=3)
            later += list(zip(x, y, strict=True))
            waited = [(results.first(row), row["Spearman"]) for row in curve]
            first += waited
            paid = [point for point, row in zip(waited, curve, strict=True) if results.first(row) > results.query(row)]
            if paid:
                hollow = {"color": color, "marker": marker, "markersize": size, "markerfacecolor": "white"}
                axes.plot(*zip(*paid, strict=True), linestyle="none", **hollow, zorder=2)
                # the overhead of its last budget
                axes.plot([x[-1], paid[-1][0]], [y[-1]] * 2, color=color, linewidth=0.8, linestyle=":", zorder=1)
        limit = axes.get_xlim()[1]
        _draw_frontier(axes, frontier(later), limit, LEVEL, "frontier, a further query", "-")
        _draw_frontier(axes, frontier(first), limit, ORANGE, "frontier, the first query", "--")
        axes.set(xscale="log", xlabel=f"a query; hollow: with all that comes before the first ({results.seconds})")
        axes.set(ylabel=f"agreement with the truth, {SPEARMAN}", title=f"damping {damping}")
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def frontier(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (seconds, value) that no other is as good as in less time, or better than in as much."""
    best, kept = -np.inf, []
    for seconds, value in sorted(pairs, key=lambda pair: (pair[0], -pair[1])):
        if value > best:
            best = value
            kept.append((seconds, value))
    return kept


def _draw_frontier(
    axes: Any, points: Sequence[tuple[float, float]], limit: float, color: str, label: str, dashes: str
) -> None:
    """A staircase that goes on to the right."""
    if points:
        stairs = [*points, (max(limit, points[-1][0]), points[-1][1])]
        look = {"color": color, "linestyle": dashes, "linewidth": 4, "alpha": 0.35}
        axes.step(*zip(*stairs, strict=True), where="post", zorder=0, label=label, **look)


def _against_iterations(path: Path, results: Rows) -> None:
    with figure(path, 5.0, 4.0, columns=2) as axes:
        for panel, methods in zip(axes, SOLVERS, strict=True):
            for method, dashes in zip(methods, ("--", "-"), strict=True):
                for number, damping in enumerate(results.dampings):
                    curve = results.curve(method, damping)
                    _line(panel, [(row["iterations"], row["Spearman"]) for row in curve], dashes, number)
            panel.set(xscale="symlog", xlabel="iterations (number)", ylabel=SPEARMAN)
            _two_legends(panel, results.dampings, dict(zip(("--", "-"), methods, strict=True)))


def _residuals(path: Path, results: Rows) -> None:
    """The solver's own residual beside that with H of held-out sequences."""
    with figure(path, 5.0, 4.0, columns=2) as axes:
        for panel, method in zip(axes, SOLVERS[0], strict=True):
            for number, damping in enumerate(results.dampings):
                curve = results.curve(method, damping)
                for name, dashes in (("residual", "-"), ("held-out residual", ":")):
                    values = [(row["iterations"], np.nan if row[name] is None else row[name]) for row in curve]
                    _line(panel, values, dashes, number)
            panel.set(xscale="symlog", yscale="log", xlabel="iterations (number)", title=method)
            panel.set(ylabel="relative residual (ratio)")
            _two_legends(panel, results.dampings, {"-": "own sequences", ":": "held-out sequences"})


def _line(panel: Any, curve: Sequence[tuple[Any, float]], dashes: str, number: int) -> None:
    if curve:
        panel.plot(*zip(*curve, strict=True), **{**line(number), "linestyle": dashes})


def _two_legends(panel: Any, dampings: Sequence[str], styles: dict[str, str]) -> None:
    """Colours and marks are dampings, dashes something else."""
    from matplotlib.lines import Line2D

    looks = [{**line(number), "linestyle": "none"} for number in range(len(dampings))]
    handles = [Line2D([], [], label=f"damping {d}", **look) for d, look in zip(dampings, looks, strict=True)]
    handles += [Line2D([], [], color="black", linestyle=dashes, label=name) for dashes, name in styles.items()]
    panel.legend(handles=handles, fontsize=7)


def _ablations(path: Path, results: Rows) -> None:
    """EK-FAC and what is left of it when one thing is changed, mean and standard deviation over queries."""
    rows = results.by_damping[results.detailed]
    chosen = [row for row in rows if row["method"] in ABLATED or row["method"].startswith("EK-FAC,")]
    chosen.sort(key=lambda row: row["Spearman"])
    with figure(path, 7.0, 0.8 + 0.35 * len(chosen)) as axes:
        means, deviations = [row["Spearman"] for row in chosen], [row["sd"] for row in chosen]
        drawn = axes.barh([row["method"] for row in chosen], means, xerr=deviations, error_kw={"elinewidth": 1})
        for patch, row in zip(drawn, chosen, strict=True):
            look = bar(0) if row["method"] == "EK-FAC" else {"color": GREY, "edgecolor": "white"}
            patch.set(**look)
        axes.set(xlabel=f"± sd, {SPEARMAN}", title=f"damping {results.detailed}")
