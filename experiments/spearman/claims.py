"""What the experiment was to show, and what it shows."""

from __future__ import annotations

from experiments.spearman.results import Results
from msif.reporting.tables import Table

RIVALS = ("GDP", "CKA", "Arnoldi", "TRAK")
LEVELS = (0.90, 0.95, 0.99)


def claims(results: Results) -> Table:
    """Each claim, the figure that it stands or falls with, and which it does."""
    detailed = results.c.detailed
    rows = [["EK-FAC, Spearman at least 0.65", detailed, *_at_least(results, "EK-FAC", None, 0.65)]]
    rows += [
        [f"EK-FAC above {', '.join(RIVALS[:-1])} and {RIVALS[-1]}", damping, *_above_rivals(results, damping)]
        for damping in results.c.dampings
    ]
    for method in ("EK-FAC-CG", f"EK-FAC-CG, {max(results.c.label_samples)} labels"):
        for level, budget in ((0.90, 12), (0.95, 20)):
            claim = f"{method}: Spearman at least {level:.2f} after {budget} iterations"
            rows.append([claim, detailed, *_at_least(results, method, budget, level)])
        claim = f"{method}: Spearman 0.99 in at most a tenth of the products of CG"
        rows.append([claim, detailed, *_a_tenth(results, method, 0.99)])
    return Table(["claim", "damping", "measured", "holds"], rows, "What was to be shown")


def products(results: Results) -> Table:
    """Products for each query until a mean Spearman is reached, by damping."""
    rows = [
        [
            damping,
            level,
            _said(*_needed(results, "CG", damping, level)),
            _said(*_needed(results, "EK-FAC-CG", damping, level)),
        ]
        for damping in results.c.dampings
        for level in LEVELS
    ]
    title = "Products a query until the mean Spearman is reached, at the budgets that were looked at"
    return Table(["damping", "Spearman", "CG", "EK-FAC-CG"], rows, title, {"Spearman": ".2f"})


def _at_least(results: Results, method: str, budget: int | None, level: float) -> tuple[str, str]:
    found = next((p for p in results.curve(method, results.c.detailed) if p.budget == budget), None)
    if found is None:
        return "–", "not measured"
    value = results.mean(found)
    return f"{value:.3f}", _yes(value >= level)


def _above_rivals(results: Results, damping: str) -> tuple[str, str]:
    own = results.last("EK-FAC", damping)
    rivals = [point for point in results.at(damping) if point.method.startswith(RIVALS)]
    if own is None or not rivals:
        return "–", "not measured"
    best = max(rivals, key=results.mean)
    value, other = results.mean(own), results.mean(best)
    return f"{value:.3f} against {other:.3f} ({best.method})", _yes(value > other)


def _a_tenth(results: Results, method: str, level: float) -> tuple[str, str]:
    damping = results.c.detailed
    plain, plain_reached = _needed(results, "CG", damping, level)
    own, reached = _needed(results, method, damping, level)
    if plain is None or own is None:
        return "–", "not measured"
    measured = f"{_said(own, reached)} against {_said(plain, plain_reached)}"
    if not reached or (not plain_reached and 10 * own > plain):
        return measured, "not reached" if not reached else "not decided"
    return measured, _yes(10 * own <= plain)


def _needed(results: Results, method: str, damping: str, level: float) -> tuple[float | None, bool]:
    """(products a query, whether they reach the level): of the first point that does, else of the last."""
    curve = results.curve(method, damping)
    found = next((point for point in curve if results.mean(point) >= level), None)
    if found is not None:
        return found.passes, True
    return (curve[-1].passes if curve else None), False


def _said(count: float | None, reached: bool) -> str:
    if count is None:
        return "–"
    return f"{count:.0f}" if reached else f"more than {count:.0f}"


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"
