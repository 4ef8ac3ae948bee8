"""MRR and hits against damping."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.fact_tracing.measures import MEASURES, Measured, intervals
from experiments.fact_tracing.methods import GDP, MULTI_STAGE, SINGLE_STAGE, SOURCE
from msif.reporting.plots import figure

CURVES = (MULTI_STAGE, SINGLE_STAGE)
LEVELS = (SOURCE, GDP)
SEARCH = ("representation similarity, pre-trained model", "BM25+", "sentence embeddings", "random order")
MARKS = {"0.1 mean": ":", "1/τ": "--"}  # dampings of the curves that are no number


def plot_dampings(path: Path, measured: Sequence[Measured]) -> None:
    """Above plain scores, below those over unit norm; MRR on the left, hits in the first ten on the right.

    Methods without an absolute damping are level lines, those of the curves' relative and natural dampings in the
    curves' colours.
    """
    with figure(path, width=5.2, height=3.6, rows=2, columns=2) as axes:
        for row, unit in enumerate((False, True)):
            for column, axis in enumerate(axes[row]):
                for number, family in enumerate(CURVES):
                    members = [m for m in measured if m.method.family == family and m.unit == unit]
                    _curve(axis, members, column, family, f"C{number}")
                for number, family in enumerate((*LEVELS, *SEARCH), start=len(CURVES)):
                    own = unit and family not in SEARCH
                    for m in (m for m in measured if m.method.family == family and m.unit == own):
                        _level(axis, m, column, family, f"C{number}", "-")
                axis.set(xscale="log", ylabel=MEASURES[column], ylim=(0, None))
                axis.set(xlabel="damping λ", title="candidates of unit norm" if unit else "plain")
        axes[0][1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _curve(axis: Any, members: Sequence[Measured], column: int, family: str, color: str) -> None:
    swept = sorted((float(m.method.damping), m) for m in members if _is_number(m.method.damping))
    found = [(damping, intervals(m.values)[column]) for damping, m in swept]
    points = [(damping, interval) for damping, interval in found if interval is not None]
    if points:
        errors = [[i.mean - i.low for _, i in points], [i.high - i.mean for _, i in points]]
        places = [damping for damping, _ in points], [i.mean for _, i in points]
        axis.errorbar(*places, yerr=errors, fmt="o-", color=color, label=family, capsize=2, markersize=4)
    for m in members:
        if m.method.damping in MARKS:
            _level(axis, m, column, f"{family}, λ = {m.method.damping}", color, MARKS[m.method.damping])


def _level(axis: Any, m: Measured, column: int, label: str, color: str, style: str) -> None:
    axis.axhline(m.values[:, column].mean(), color=color, linestyle=style, linewidth=1, label=label)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
