"""Halves whose models have factors of their own, as `python -m msif.foretell` and a run on each model give."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from experiments.retraining.members import LABEL_SAMPLES, Member
from msif.attribution.damping import Damping
from msif.attribution.halves import Halves, foretold, moved_model
from msif.attribution.scorers import EnsembleScorer, Scorer
from msif.attribution.stages import FittedStage, build_scorer, factors_of
from msif.curvature.fit import FitSettings, fit
from msif.curvature.vectors import Vectors


def refitted(method: str, damping: Damping, halves: Halves, **options: Any) -> Any:
    """From a pair to the mean over models of halves, each with the curvature at its own weights."""

    def scorer(m: Member) -> Scorer:
        first, last = m.pretrained.stage, m.finetuned.stage
        two = method == "multi-stage"
        parts = [
            build_scorer(method, moved_first, moved_last if two else None, damping, **options)
            for moved_first, moved_last in _moved(first, last if two else None, halves)
        ]
        return EnsembleScorer(parts)

    return scorer


def _moved(first: FittedStage, last: FittedStage | None, halves: Halves) -> Iterator[tuple[FittedStage, Any]]:
    assert first.tau is not None and first.batches is not None
    changes = foretold(first.side, factors_of(first, "pretrained"), first.tau, first.batches, halves)
    for number in range(halves.count):
        change = {name: V[number] for name, V in changes.items()}
        yield _at(first, change), last and _at(last, change)


def _at(stage: FittedStage, change: Vectors) -> FittedStage:
    """The stage at a model that was moved, with factors of it."""
    model: nn.Module = moved_model(stage.side, change)
    side = replace(stage.side, model=model)
    assert stage.batches is not None
    with tempfile.TemporaryDirectory() as folder:
        settings = FitSettings(label_samples=LABEL_SAMPLES)
        store = fit(model, side.tracked, side.objective, stage.batches, Path(folder) / "factors", settings)
        return replace(stage, side=side, factors=store.load_all())
