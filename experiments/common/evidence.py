"""A stage with the scale of its training as the evidence has it."""

from __future__ import annotations

from dataclasses import replace

from msif.attribution.evidence import evidence_tau
from msif.attribution.stages import FittedStage, factors_of


def by_evidence(stage: FittedStage, before: FittedStage | None = None) -> FittedStage:
    """
    Args:
        before: the stage from whose weights it starts, if it does.
    """
    assert stage.batches is not None
    tokens = sum(int(stage.side.objective.supervised_counts(batch).sum()) for batch in stage.batches)
    factors = factors_of(stage, "pretrained" if before is None else "finetuned")
    return replace(stage, tau=evidence_tau(stage.side, factors, tokens, before and before.side))
