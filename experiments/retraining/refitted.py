"""Halves whose models have factors of their own, as `python -m msif.foretell` and a run on each model give."""

from __future__ import annotations

from typing import Any

from experiments.common.refitted import moved_stages, refitted
from experiments.retraining.members import LABEL_SAMPLES, Member
from msif.attribution.damping import Damping
from msif.attribution.halves import Halves
from msif.attribution.scorers import EnsembleScorer, Scorer
from msif.attribution.stages import build_scorer
from msif.curvature.fit import FitSettings

FIT = FitSettings(label_samples=LABEL_SAMPLES)


def with_own_factors(method: str, damping: Damping, halves: Halves, **options: Any) -> Any:
    """From a pair to the mean over models of halves, each with the curvature at its own weights."""

    def scorer(m: Member) -> Scorer:
        last = m.finetuned.stage if method == "multi-stage" else None
        moved = moved_stages(m.pretrained.stage, last, halves)
        each = [(refitted(stage, FIT), later and refitted(later, FIT)) for stage, later in moved]
        return EnsembleScorer([build_scorer(method, *stages, damping, **options) for stages in each])

    return scorer
