"""MRR and hits against damping, drawn from the tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.common.tables import Record, only, read_tables, spread
from experiments.fact_tracing.measures import MEASURES
from experiments.fact_tracing.methods import GDP, MULTI_STAGE, SINGLE_STAGE, SOURCE
from msif.reporting.plots import figure
from msif.reporting.style import line

CURVES = (MULTI_STAGE, SINGLE_STAGE)
LEVELS = (SOURCE, GDP)
SEARCH = ("representation similarity, pre-trained model", "BM25+", "sentence embeddings", "random order")
MARKED = {"0.1 mean": (0, (1, 1)), "1/τ": (0, (5, 2))}  # dampings of the curves that are no number
UNITS = {"MRR": "MRR (mean of 1/rank)", "hit@10": "hit@10 (share of facts)"}
NAME = "fact_tracing"


def draw(folder: Path) -> None:
    """Above plain scores, below those over unit norm; MRR on the left, hits in the first ten on the right.

    Methods without an absolute damping are level lines, those of the curves' relative and natural dampings in the
    curves' colours.
    """
    swept = only(read_tables(folder / f"{NAME}.json"), "Damping")
    every = [row for row in only(read_tables(folder / f"{NAME}_all.json"), "Every") if row["maps"] == "all"]
    every = [row for row in every if row["facts"] == max(row["facts"] for row in every)]
    with figure(folder / f"{NAME}_damping", width=5.2, height=3.6, rows=2, columns=2) as axes:
        for norm, row in zip(("no", "unit"), axes, strict=True):
            for measure, axis in zip(MEASURES, row, strict=False):
                for number, family in enumerate(CURVES):
                    _curve(axis, _of(swept, family, norm), measure, family, number)
                    for m in (m for m in _of(every, family, norm) if m["λ"] in MARKED):
                        _level(axis, m, measure, f"{family}, λ = {m['λ']}", number, MARKED[m["λ"]])
                for number, family in enumerate((*LEVELS, *SEARCH), start=len(CURVES)):
                    for m in _of(every, family, "no" if family in SEARCH else norm):
                        _level(axis, m, measure, family, number, line(number)["linestyle"])
                axis.set(xscale="log", ylabel=UNITS[measure], ylim=(0, None))
                title = "plain" if norm == "no" else "candidates of unit norm"
                axis.set(xlabel="damping λ (nats a token)", title=title)
        axes[0][1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _of(rows: Sequence[Record], family: str, norm: str) -> list[Record]:
    return [row for row in rows if row["method"] == family and row["norm"] == norm]


def _curve(axis: Any, rows: Sequence[Record], measure: str, family: str, number: int) -> None:
    points = sorted((float(row["λ"]), row[measure]) for row in rows if _is_number(row["λ"]) and row[measure])
    if points:
        found = [interval for _, interval in points]
        places, means = [damping for damping, _ in points], [interval.mean for interval in found]
        axis.errorbar(places, means, yerr=spread(found), capsize=2, label=family, **line(number))


def _level(axis: Any, row: Record, measure: str, label: str, number: int, dashes: Any) -> None:
    axis.axhline(row[measure], color=line(number)["color"], linestyle=dashes, linewidth=1, label=label)


def _is_number(text: Any) -> bool:
    try:
        float(text)
    except (TypeError, ValueError):
        return False
    return True
