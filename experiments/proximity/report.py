"""The tables and plots of the change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.proximity.distances import KINDS, Proximity
from experiments.proximity.eigenspace import TOP, Alignment, together
from experiments.proximity.measure import FRACTIONS, Curvature, Way
from experiments.proximity.plots import draw
from msif.reporting.tables import Table, write_results


def write(
    folder: Path, settings: Mapping[str, Any], near: Proximity, moved: Curvature | None, measured: Way | None
) -> None:
    """proximity.md and .json, and plots where there is something to draw."""
    tables = [by_layer(near), by_kind(near)]
    tables += [left_out("Left out, because the two models do not share it", near.left_out)] if near.left_out else []
    if moved is not None:
        tables.append(eigenspace(moved))
        tables += [left_out("Left out of the eigenbasis", moved.left_out)] if moved.left_out else []
    if measured is not None:
        tables.append(expected(measured))
    write_results(folder, "proximity", tables, settings)
    draw(folder)


def by_layer(near: Proximity) -> Table:
    """‖θ_ft − θ_pt‖ / ‖θ_pt‖, a row for each layer and a column for each kind."""
    rows: list[list[Any]] = []
    for layer in [*near.layers, None]:
        found = [near.distances.get((layer, kind)) for kind in near.kinds]
        if any(found):
            name = "outside" if layer is None else str(layer)
            rows.append([name, *(None if d is None else d.relative for d in found)])
    rows.append(["all", *(near.of_kind(kind).relative for kind in near.kinds)])
    formats = dict.fromkeys(near.kinds, ".4f")
    return Table(["layer", *near.kinds], rows, "‖θ_ft − θ_pt‖ / ‖θ_pt‖ by layer and kind of map", formats)


def by_kind(near: Proximity) -> Table:
    """All layers together."""
    entries = [(kind, near.of_kind(kind)) for kind in near.kinds] + [("all", near.all)]
    rows = [[name, d.parameters, d.first**0.5, d.moved**0.5, d.relative, d.cosine] for name, d in entries]
    columns = ["kind", "parameters", "‖θ_pt‖", "‖θ_ft − θ_pt‖", "ratio", "cosine"]
    formats = {"‖θ_pt‖": ".4g", "‖θ_ft − θ_pt‖": ".4g", "ratio": ".4f", "cosine": ".6f", "parameters": ","}
    return Table(columns, rows, "The two parameter vectors", formats)


def left_out(title: str, reasons: Mapping[str, str]) -> Table:
    return Table(["parameter", "why"], [[name, reason] for name, reason in reasons.items()], title)


def eigenspace(moved: Curvature) -> Table:
    """The shares of the change in the directions of largest Λ, beside a random change's and the curvature's own."""
    rows = []
    for kind, part in [*of_kinds(moved), ("all", together(moved.parts.values()))]:
        triples = zip(part.shares("top_moved"), part.shares("expected"), part.shares("top_curvature"), strict=True)
        rows.append([kind, *(value for triple in triples for value in triple), part.quadratic])
    columns = [name for top in TOP for name in (f"top {top:.0%}", f"random, {top:.0%}", f"Λ, {top:.0%}")]
    formats = {**dict.fromkeys(columns, ".1%"), "½ΔᵀHΔ": ".4g"}
    title = "Share of ‖θ_ft − θ_pt‖² in the eigen-directions of largest Λ"
    return Table(["kind", *columns, "½ΔᵀHΔ"], rows, title, formats)


def of_kinds(moved: Curvature) -> list[tuple[str, Alignment]]:
    found = {kind for _, kind in moved.parts}
    return [
        (kind, together(part for (_, name), part in moved.parts.items() if name == kind))
        for kind in KINDS
        if kind in found
    ]


def expected(measured: Way) -> Table:
    """Measured and predicted increases of the loss."""
    start = measured.losses[0]
    rows: list[list[Any]] = []
    quadratics = (measured.ekfac, measured.exact.quadratic, measured.hessian)
    for t, loss in zip(FRACTIONS[1:], measured.losses[1:], strict=True):
        rows.append([f"{t:g}", loss - start, t * measured.exact.linear, *(t * t * value for value in quadratics)])
    if measured.finetuned is not None:
        rows.append(["fine-tuned, all parameters", measured.finetuned - start, *[None] * 4])
    columns = ["t", "measured", "t gᵀΔ", "½t²ΔᵀHΔ, EK-FAC", "½t²ΔᵀHΔ, exact", "½t²Δᵀ∇²LΔ"]
    title = (
        f"Increase of the pre-trained model's loss ({start:.4f} nats per token, {measured.texts} texts) at θ_pt + tΔ, "
        "in nats per token"
    )
    return Table(columns, rows, title, dict.fromkeys(columns[1:], ".4g"))
