"""The tables: what each method's scores are worth, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.spearman.claims import claims, products
from experiments.spearman.configuration import Configuration
from experiments.spearman.plots import draw
from experiments.spearman.points import Point
from experiments.spearman.results import Results
from msif.evaluation.correlation import pearson, spearman
from msif.reporting.tables import Table, write_results

MEGABYTE = 1e6


def report(points: Sequence[Point], c: Configuration, folder: Path, configuration: dict[str, Any]) -> None:
    """Writes ``spearman.md``, ``spearman.json`` and the plots.

    Args:
        configuration: of the run; "device" says what its seconds are, "mean damping" each damping as one number.
    """
    results = Results(points, c)
    # what a process on a CPU used, whatever else ran there; see Cost
    seconds = "CPU seconds" if configuration.get("device", "cpu") == "cpu" else "seconds"
    tables = [claims(results), _overview(results, seconds), products(results)]
    tables += [_table(results, damping, seconds) for damping in c.dampings]
    tables += [_solved(results, configuration.get("mean damping", {}), seconds), _between(results)]
    write_results(folder, "spearman", tables, configuration)
    draw(folder)


def _overview(results: Results, seconds: str) -> Table:
    """Mean Spearman of each method at its largest budget, damping by damping, and what that costs at one of them."""
    c = results.c
    rows = [_summary(results, method) for method in results.methods]
    column = 1 + c.dampings.index(c.detailed)
    rows.sort(key=lambda row: -np.inf if row[column] is None else row[column], reverse=True)
    costs = {
        "iterations": "",
        f"before, {seconds}": ".3g",
        f"a query, {seconds}": ".3g",
        "passes before": ".0f",
        "passes a query": ".1f",
    }
    title = f"Mean Spearman by damping, each method at its largest budget; costs at damping {c.detailed}"
    return Table(["method", *c.dampings, *costs], rows, title, {**dict.fromkeys(c.dampings, ".3f"), **costs})


def _summary(results: Results, method: str) -> list[Any]:
    ends = [results.last(method, damping) for damping in results.c.dampings]
    point = results.last(method, results.c.detailed)
    costs = [point.budget, point.overhead, point.query, point.overhead_passes, point.passes] if point else [None] * 5
    return [method, *(None if end is None else results.mean(end) for end in ends), *costs]


def _table(results: Results, damping: str, seconds: str) -> Table:
    full = results.full if results.full and results.full.damping == damping else None
    rows = [_row(results, point, full) for point in results.at(damping)]
    rows.sort(key=lambda row: (row[0], row[1] or 0))
    formats = {
        "Spearman": ".3f",
        "sd": ".3f",
        "Pearson": ".3f",
        "Pearson sd": ".3f",
        "all parameters": ".3f",
        f"before, {seconds}": ".3g",
        f"a query, {seconds}": ".3g",
        "passes before": ".1f",
        "passes a query": ".1f",
        "peak MB": ".0f",
        "residual": ".2g",
        "held-out residual": ".2g",
    }
    columns = ["method", "iterations", *formats]
    keep = [number for number, name in enumerate(columns) if full or name != "all parameters"]
    title = f"Damping {damping}: mean and standard deviation over queries, medians of residuals"
    return Table([columns[i] for i in keep], [[row[i] for i in keep] for row in rows], title, formats)


def _row(results: Results, point: Point, full: Point | None) -> list[Any]:
    ranks, linear = results.judged(point), results.judged(point, pearson)
    return [
        point.method,
        point.budget,
        float(ranks.mean()),
        float(ranks.std()),
        float(linear.mean()),
        float(linear.std()),
        float(spearman(point.scores, full.scores).mean()) if full else None,
        point.overhead,
        point.query,
        point.overhead_passes,
        point.passes,
        None if point.memory is None else point.memory / MEGABYTE,
        typical(point.residual),
        typical(point.held_out_residual),
    ]


def typical(values: Sequence[float] | None) -> float | None:
    return None if values is None else float(np.median(values))


def _solved(results: Results, dampings: dict[str, float], seconds: str) -> Table:
    """How well the truths are solved, and how far the one over all parameters is from that over the tracked maps."""
    rows = [
        [
            truth.method,
            truth.damping,
            dampings.get(truth.damping),
            truth.budget,
            max(truth.residual or []),
            truth.query * len(truth.scores),
            float(results.judged(truth).mean()),
        ]
        for truth in [*results.truths.values(), *([results.full] if results.full else [])]
    ]
    formats = {"mean λ": ".3g", "iterations": "", "largest residual": ".1e", seconds: ".0f", "Spearman": ".3f"}
    return Table(["solved", "damping", *formats], rows, "The truth", formats)


def _between(results: Results) -> Table:
    """Mean Spearman between the truths of two dampings: what the choice of λ alone changes."""
    names = list(results.truths)
    scores = [results.truths[name].scores for name in names]
    rows = [[name, *(float(spearman(a, b).mean()) for b in scores)] for name, a in zip(names, scores, strict=True)]
    title = "Mean Spearman between the truths of two dampings"
    return Table(["damping", *names], rows, title, dict.fromkeys(names, ".3f"))
