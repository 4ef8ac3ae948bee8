"""The table and the plots: what each method's scores are worth, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.spearman.configuration import Configuration
from experiments.spearman.points import Point
from experiments.spearman.truth import FULL, TRUTH
from msif.evaluation.correlation import pearson, spearman
from msif.reporting.plots import figure
from msif.reporting.tables import Table, write_results

CURVES = ("CG", "EK-FAC-CG", "LiSSA", "EK-FAC-LiSSA")
MEGABYTE = 1e6
FORMATS = {
    "Spearman": ".3f",
    "sd": ".3f",
    "Pearson": ".3f",
    "Pearson sd": ".3f",
    "all parameters": ".3f",
    "overhead s": ".3g",
    "query s": ".3g",
    "passes before": ".1f",
    "passes": ".1f",
    "memory MB": ".0f",
    "residual": ".2g",
    "held-out residual": ".2g",
}


def report(points: Sequence[Point], c: Configuration, folder: Path, configuration: dict[str, Any]) -> None:
    """Writes ``spearman.md``, ``spearman.json`` and the plots."""
    truths = {point.damping: point for point in points if point.method == TRUTH}
    full = next((point for point in points if point.method == FULL), None)
    tables = [_overview(points, truths, c), *(_table(points, truths[damping], full, damping) for damping in c.dampings)]
    tables.append(_solved([*truths.values(), *([full] if full else [])]))
    write_results(folder, "spearman", tables, configuration)
    for damping in c.dampings:
        rows = _at(points, damping)
        name = damping.replace(" ", "-").replace(".", "")
        _plot_time(folder / f"time-{name}.png", rows, truths[damping], damping)
    _plot_iterations(folder / "iterations.png", points, truths, c)


def _at(points: Sequence[Point], damping: str) -> list[Point]:
    return [point for point in points if point.damping == damping and point.method not in (TRUTH, FULL)]


def _overview(points: Sequence[Point], truths: dict[str, Point], c: Configuration) -> Table:
    """Mean Spearman of each method at its largest budget, damping by damping."""
    best: dict[str, dict[str, Point]] = {}
    for point in points:
        if point.method in (TRUTH, FULL):
            continue
        held = best.setdefault(point.method, {})
        if point.damping not in held or (point.budget or 0) > (held[point.damping].budget or 0):
            held[point.damping] = point
    rows = [
        [method, *(_mean(spearman, held.get(damping), truths[damping]) for damping in c.dampings)]
        for method, held in best.items()
    ]
    rows.sort(key=lambda row: -(row[1 + c.dampings.index(c.detailed)] or -1.0))
    title = "Mean Spearman with the truth, each method at its largest budget, by damping"
    return Table(["method", *c.dampings], rows, title, dict.fromkeys(c.dampings, ".3f"))


def _mean(measure: Any, point: Point | None, truth: Point) -> float | None:
    return None if point is None else float(measure(point.scores, truth.scores).mean())


def _table(points: Sequence[Point], truth: Point, full: Point | None, damping: str) -> Table:
    rows = []
    for point in _at(points, damping):
        ranks, linear = spearman(point.scores, truth.scores), pearson(point.scores, truth.scores)
        rows.append(
            [
                point.method,
                point.budget,
                ranks.mean(),
                ranks.std(),
                linear.mean(),
                linear.std(),
                float(spearman(point.scores, full.scores).mean()) if full and full.damping == damping else None,
                point.overhead,
                point.query,
                point.overhead_passes,
                point.passes,
                None if point.memory is None else point.memory / MEGABYTE,
                _typical(point.residual),
                _typical(point.held_out_residual),
            ]
        )
    rows.sort(key=lambda row: (row[0], row[1] or 0))
    columns = ["method", "iterations", *FORMATS]
    return Table(columns, rows, f"Damping {damping}: mean and standard deviation over queries", FORMATS)


def _typical(values: list[float] | None) -> float | None:
    return None if values is None else float(np.median(values))


def _solved(truths: Sequence[Point]) -> Table:
    rows = [
        [truth.method, truth.damping, truth.budget, max(truth.residual or []), truth.query * len(truth.scores)]
        for truth in truths
    ]
    columns = ["solved", "damping", "iterations", "largest residual", "seconds"]
    return Table(columns, rows, "The truth", {"largest residual": ".1e", "seconds": ".0f"})


def _plot_time(path: Path, points: Sequence[Point], truth: Point, damping: str) -> None:
    """Spearman against the seconds of a query; methods with an overhead are marked, and the frontier is drawn."""
    with figure(path, 8.0, 5.0) as axes:
        values = [(point, _mean(spearman, point, truth)) for point in points]
        for method in dict.fromkeys(point.method for point in points):
            own = sorted((point.query, value) for point, value in values if point.method == method)
            curve = method in CURVES
            axes.plot(*zip(*own, strict=True), "o-" if curve else "s", markersize=4, linewidth=1, label=method)
        for point, value in values:
            if point.overhead > 0:
                axes.plot(
                    [point.query, point.query + point.overhead], [value, value], color="0.8", linewidth=1, zorder=0
                )
        frontier = _frontier([(point.query, value) for point, value in values])
        axes.step(
            *zip(*frontier, strict=True), where="post", color="black", linewidth=0.8, linestyle=":", label="frontier"
        )
        axes.set(xscale="log", xlabel="seconds a query (grey: with the overhead)", ylabel="mean Spearman")
        axes.set_title(f"damping {damping}")
        axes.legend(fontsize=6, ncols=2, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _frontier(pairs: Sequence[tuple[float, float | None]]) -> list[tuple[float, float]]:
    """The points that no other beats in both time and Spearman."""
    best, kept = -np.inf, []
    for seconds, value in sorted((seconds, value) for seconds, value in pairs if value is not None):
        if value > best:
            best = value
            kept.append((seconds, value))
    return kept


def _plot_iterations(path: Path, points: Sequence[Point], truths: dict[str, Point], c: Configuration) -> None:
    """Spearman against iterations, for each solver and damping."""
    with figure(path, 4.5, 3.5, columns=2) as axes:
        for panel, methods in zip(axes, (CURVES[:2], CURVES[2:]), strict=True):
            for number, damping in enumerate(c.dampings):
                for method, style in zip(methods, ("--", "-"), strict=True):
                    own = sorted(
                        (point.budget or 0, _mean(spearman, point, truths[damping]))
                        for point in _at(points, damping)
                        if point.method == method
                    )
                    if own:
                        label = f"{method}, {damping}"
                        panel.plot(*zip(*own, strict=True), style, color=f"C{number}", marker=".", label=label)
            panel.set(xscale="symlog", xlabel="iterations", ylabel="mean Spearman")
            panel.legend(fontsize=6)
