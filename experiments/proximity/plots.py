"""How far models moved, drawn from the tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.tables import Record, only, read_tables
from msif.reporting.plots import figure
from msif.reporting.style import bar, line

MOVED = "‖θ_ft − θ_pt‖ / ‖θ_pt‖ (ratio)"
TOP = ("top 1%", "top 10%", "top 50%")
EXPANSIONS = ("½t²Δᵀ∇²LΔ", "½t²ΔᵀHΔ, exact", "½t²ΔᵀHΔ, EK-FAC")


def draw(folder: Path) -> None:
    """proximity, and eigenspace and way where the tables are."""
    tables = read_tables(folder / "proximity.json")
    with figure(folder / "proximity", 7.2, 4.2) as axes:
        draw_layers(axes, only(tables, "‖θ_ft − θ_pt‖ / ‖θ_pt‖ by layer"))
    if shares := only(tables, "Share of"):
        with figure(folder / "eigenspace") as axes:
            draw_eigenspace(axes, shares)
    if increases := only(tables, "Increase of"):
        with figure(folder / "way") as axes:
            draw_way(axes, [row for row in increases if row["t gᵀΔ"] is not None])


def draw_layers(axes: Any, rows: Sequence[Record]) -> None:
    """The layers on x, a line for each kind."""
    layers = [row for row in rows if row["layer"].isdigit()]
    for number, kind in enumerate(name for name in rows[0] if name != "layer"):
        values = [(int(row["layer"]), row[kind]) for row in layers if row[kind] is not None]
        if values:
            axes.plot(*zip(*values, strict=True), label=kind, **line(number))
        else:  # outside of the layers
            level = rows[-1][kind]
            if level is not None:
                axes.axhline(level, linestyle=":", color=line(number)["color"], label=kind)
    axes.set(xlabel="layer (number)", ylabel=MOVED, ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))


def draw_eigenspace(axes: Any, rows: Sequence[Record]) -> None:
    """Bars of the shares, a group for each kind."""
    places, width = np.arange(len(rows)), 0.8 / len(TOP)
    for number, top in enumerate(TOP):
        heights = [row[top] or 0.0 for row in rows]
        axes.bar(places + (number - 1) * width, heights, width, label=top, **bar(number))
        axes.axhline(float(top.split()[1].rstrip("%")) / 100, linestyle=":", linewidth=1, color=bar(number)["color"])
    axes.set(ylabel="part of ‖θ_ft − θ_pt‖² (share)", ylim=(0, 1))
    axes.set_xticks(places, [row["kind"] for row in rows], rotation=20, ha="right")
    title = "eigen-directions of\nlargest Λ (dotted: random)"
    beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    axes.legend(title=title, fontsize="small", title_fontsize="small", **beside)


def draw_way(axes: Any, rows: Sequence[Record]) -> None:
    """The loss along the way beside its expansions, whose terms at t = 1 stand in the last row."""
    measured = [(0.0, 0.0), *((float(row["t"]), row["measured"]) for row in rows)]
    axes.plot(*zip(*measured, strict=True), label="measured", **line(0))
    t, end = np.linspace(0, 1, 51), rows[-1]
    for number, name in enumerate(EXPANSIONS, start=1):
        drawn = {**line(number), "marker": None}
        axes.plot(t, end["t gᵀΔ"] * t + end[name] * t**2, label=f"t gᵀΔ + {name}", **drawn)
    axes.set(xlabel="t, from the pre-trained to the fine-tuned maps (share of the way)")
    axes.set(ylabel="increase of the loss (nats a token)")
    axes.legend(fontsize="small")
