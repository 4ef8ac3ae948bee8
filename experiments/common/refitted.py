"""Models as `python -m msif.foretell` moves them, with factors of their own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from msif.attribution.halves import Halves, foretold, moved_model
from msif.attribution.stages import FittedStage, factors_of
from msif.curvature.fit import FitSettings, fit
from msif.curvature.vectors import Vectors


def refitted_stages(
    first: FittedStage, last: FittedStage | None, halves: Halves, settings: FitSettings
) -> Iterator[tuple[FittedStage, Any]]:
    """The stages at the models of each half, the last moved like the first."""
    assert first.tau is not None and first.batches is not None
    changes = foretold(first.side, factors_of(first, "pretrained"), first.tau, first.batches, halves)
    for number in range(halves.count):
        change = {name: V[number] for name, V in changes.items()}
        yield _at(first, change, settings), last and _at(last, change, settings)


def _at(stage: FittedStage, change: Vectors, settings: FitSettings) -> FittedStage:
    """The stage at a model that was moved, with factors of it."""
    side = replace(stage.side, model=moved_model(stage.side, change))
    assert stage.batches is not None
    with tempfile.TemporaryDirectory() as folder:
        store = fit(side.model, side.tracked, side.objective, stage.batches, Path(folder) / "factors", settings)
        return replace(stage, side=side, factors=store.load_all())
