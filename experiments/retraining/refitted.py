"""Halves whose models have factors of their own, as `python -m msif.foretell` and a run on each model give."""

from __future__ import annotations

from typing import Any

from experiments.common.refitted import refitted_stages
from experiments.retraining.members import LABEL_SAMPLES, Member
from msif.attribution.damping import Damping
from msif.attribution.halves import Halves
from msif.attribution.scorers import EnsembleScorer, Scorer
from msif.attribution.stages import build_scorer
from msif.curvature.fit import FitSettings


def refitted(method: str, damping: Damping, halves: Halves, **options: Any) -> Any:
    """From a pair to the mean over models of halves, each with the curvature at its own weights."""

    def scorer(m: Member) -> Scorer:
        last = m.finetuned.stage if method == "multi-stage" else None
        moved = refitted_stages(m.pretrained.stage, last, halves, FitSettings(label_samples=LABEL_SAMPLES))
        return EnsembleScorer([build_scorer(method, *stages, damping, **options) for stages in moved])

    return scorer
