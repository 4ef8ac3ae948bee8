"""The plots: Spearman against time, against iterations, residuals, and ablations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.spearman.results import Results
from msif.reporting.plots import figure

# colour, marker: one colour a family, iterative methods as lines
STYLES = {
    "EK-FAC-CG": ("#d62728", "o"),
    "EK-FAC-LiSSA": ("#ff9d3b", "^"),
    "CG": ("#1f77b4", "o"),
    "LiSSA": ("#7fc4ef", "^"),
    "EK-FAC": ("#111111", "*"),
    "EK-FAC, MLP only": ("#111111", "P"),
    "K-FAC": ("#2ca02c", "s"),
    "diagonal": ("#2ca02c", "D"),
    "Arnoldi": ("#9467bd", "s"),
    "Arnoldi, with complement": ("#9467bd", "D"),
    "TRAK, 1 model": ("#8c564b", "v"),
    "TRAK, {} models": ("#8c564b", "s"),
    "TRAK, {} models, Q per example": ("#8c564b", "X"),
    "LoGra": ("#e377c2", "s"),
    "GDP": ("#888888", "o"),
    "cosine": ("#888888", "v"),
    "CKA": ("#888888", "s"),
    "CKA, whole gradients": ("#888888", "D"),
}
SOLVERS = (("CG", "EK-FAC-CG"), ("LiSSA", "EK-FAC-LiSSA"))
ABLATED = ("EK-FAC", "K-FAC", "diagonal")


def plots(results: Results, folder: Path, seconds: str) -> None:
    """Writes all of them; ``seconds`` says of what kind the times are."""
    for damping in results.c.dampings:
        name = damping.replace(" ", "-").replace(".", "")
        _against_time(folder / f"time-{name}.png", results, damping, seconds)
    _against_iterations(folder / "iterations.png", results)
    _residuals(folder / "residuals.png", results)
    _ablations(folder / "ablations.png", results)


def _against_time(path: Path, results: Results, damping: str, seconds: str) -> None:
    """Filled marks: a further query. Hollow ones: the first, which waits for all that is made before."""
    with figure(path, 9.0, 5.2) as axes:
        later, first = [], []
        for method, (color, marker) in _styles(results.c.trak_models).items():
            curve = [(point, results.mean(point)) for point in results.curve(method, damping)]
            if not curve:
                continue
            x, y = [point.query for point, _ in curve], [value for _, value in curve]
            size = 11 if marker == "*" else 6
            axes.plot(x, y, "-", color=color, marker=marker, markersize=size, linewidth=1.2, label=method, zorder=3)
            later += list(zip(x, y, strict=True))
            first += [(point.query + point.overhead, value) for point, value in curve]
            paid = [(point.query + point.overhead, value) for point, value in curve if point.overhead > 0]
            if paid:
                hollow = {"color": color, "marker": marker, "markersize": size, "markerfacecolor": "white"}
                axes.plot(*zip(*paid, strict=True), linestyle="none", **hollow, zorder=2)
                # the overhead of its last budget
                axes.plot([x[-1], paid[-1][0]], [y[-1]] * 2, color=color, linewidth=0.8, linestyle=":", zorder=1)
        limit = axes.get_xlim()[1]
        _draw_frontier(axes, frontier(later), limit, "0.35", "frontier, a further query")
        _draw_frontier(axes, frontier(first), limit, "#c9a227", "frontier, the first query")
        axes.set(xscale="log", xlabel=f"{seconds} a query (hollow: with all that comes before the first)")
        axes.set(ylabel="mean Spearman with the truth", title=f"damping {damping}")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _styles(models: int) -> dict[str, tuple[str, str]]:
    return {name.format(models): style for name, style in STYLES.items()}


def frontier(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (seconds, value) that no other is as good as in less time, or better than in as much."""
    best, kept = -np.inf, []
    for seconds, value in sorted(pairs, key=lambda pair: (pair[0], -pair[1])):
        if value > best:
            best = value
            kept.append((seconds, value))
    return kept


def _draw_frontier(axes: Any, points: Sequence[tuple[float, float]], limit: float, color: str, label: str) -> None:
    """A staircase that goes on to the right."""
    if points:
        stairs = [*points, (max(limit, points[-1][0]), points[-1][1])]
        axes.step(*zip(*stairs, strict=True), where="post", color=color, linewidth=4, alpha=0.35, zorder=0, label=label)


def _against_iterations(path: Path, results: Results) -> None:
    with figure(path, 5.0, 4.0, columns=2) as axes:
        for panel, methods in zip(axes, SOLVERS, strict=True):
            for method, style in zip(methods, ("--", "-"), strict=True):
                for number, damping in enumerate(results.c.dampings):
                    curve = [(point.budget, results.mean(point)) for point in results.curve(method, damping)]
                    _line(panel, curve, style, number)
            panel.set(xscale="symlog", xlabel="iterations", ylabel="mean Spearman with the truth")
            panel.grid(alpha=0.25)
            _two_legends(panel, results.c.dampings, dict(zip(("--", "-"), methods, strict=True)))


def _residuals(path: Path, results: Results) -> None:
    """The solver's own residual beside that with H of held-out sequences."""
    with figure(path, 5.0, 4.0, columns=2) as axes:
        for panel, method in zip(axes, SOLVERS[0], strict=True):
            for number, damping in enumerate(results.c.dampings):
                curve = results.curve(method, damping)
                own = [(point.budget, float(np.median(point.residual or np.nan))) for point in curve]
                other = [(point.budget, float(np.median(point.held_out_residual or np.nan))) for point in curve]
                _line(panel, own, "-", number)
                _line(panel, other, ":", number)
            panel.set(xscale="symlog", yscale="log", xlabel="iterations", ylabel="relative residual", title=method)
            panel.grid(alpha=0.25)
            _two_legends(panel, results.c.dampings, {"-": "own sequences", ":": "held-out sequences"})


def _line(panel: Any, curve: Sequence[tuple[Any, float]], style: str, number: int) -> None:
    if curve:
        panel.plot(*zip(*curve, strict=True), style, color=f"C{number}", marker=".", linewidth=1.2)


def _two_legends(panel: Any, dampings: Sequence[str], styles: dict[str, str]) -> None:
    """Colours are dampings, line styles something else."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=f"C{number}", label=damping) for number, damping in enumerate(dampings)]
    handles += [Line2D([], [], color="black", linestyle=style, label=name) for style, name in styles.items()]
    panel.legend(handles=handles, fontsize=7)


def _ablations(path: Path, results: Results) -> None:
    """EK-FAC and what is left of it when one thing is changed, mean and standard deviation over queries."""
    damping = results.c.detailed
    chosen = [point for point in results.at(damping) if point.method in ABLATED or point.method.startswith("EK-FAC,")]
    values = sorted((float(results.mean(point)), float(results.judged(point).std()), point.method) for point in chosen)
    with figure(path, 7.0, 0.8 + 0.35 * len(values)) as axes:
        means, deviations, names = zip(*values, strict=True)
        colors = ["#111111" if name == "EK-FAC" else "#9aa7b5" for name in names]
        axes.barh(names, means, xerr=deviations, color=colors, error_kw={"ecolor": "0.5", "elinewidth": 1})
        axes.set(xlabel="mean Spearman with the truth (± sd over queries)", title=f"damping {damping}")
        axes.grid(axis="x", alpha=0.25)
