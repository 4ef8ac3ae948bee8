"""Stages at models as `python -m msif.foretell` moves them, and with factors of their own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from msif.attribution.halves import Halves, foretold
from msif.attribution.moves import moved_side, of_half
from msif.attribution.stages import FittedStage, factors_of
from msif.curvature.fit import FitSettings, fit
from msif.curvature.vectors import Vectors


def moved_stages(
    first: FittedStage, last: FittedStage | None, halves: Halves
) -> Iterator[tuple[FittedStage, FittedStage | None]]:
    """At the models of each half, the last moved like the first; factors are those of the models themselves."""
    assert first.tau is not None and first.batches is not None
    changes = foretold(first.side, factors_of(first, "pretrained"), first.tau, first.batches, halves)
    for number in range(halves.count):
        change = of_half(changes, number)
        yield _at(first, change), last and _at(last, change)


def refitted(stage: FittedStage, settings: FitSettings) -> FittedStage:
    """With factors of its own model."""
    side = stage.side
    assert stage.batches is not None
    with tempfile.TemporaryDirectory() as folder:
        store = fit(side.model, side.tracked, side.objective, stage.batches, Path(folder) / "factors", settings)
        return replace(stage, factors=store.load_all())


def _at(stage: FittedStage, change: Vectors) -> FittedStage:
    return replace(stage, side=moved_side(stage.side, change))
