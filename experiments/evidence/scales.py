"""1/τ of every module as either has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.common.evidence import by_evidence
from experiments.evidence.methods import EVIDENCE, STATE
from experiments.retraining.members import Member
from msif.attribution.stages import FittedStage
from msif.reporting.tables import Table


def scale_table(members: Sequence[Member]) -> Table:
    """Means over models and the blocks of a module."""
    rows = []
    for stage in ("pre-training", "fine-tuning"):
        found: dict[str, list[Mapping[str, float]]] = {STATE: [], EVIDENCE: []}
        for member in members:
            first, last = member.pretrained.stage, member.finetuned.stage
            own, before = (first, None) if stage == "pre-training" else (last, first)
            found[STATE].append(_scales(own))
            found[EVIDENCE].append(_scales(by_evidence(own, before)))
        for name in found[EVIDENCE][0]:
            rows.append([stage, name, *(float(np.mean([one[name] for one in found[by]])) for by in found)])
    columns = ["stage", "module", STATE, EVIDENCE]
    return Table(columns, rows, f"1/τ: {len(members)} pairs", dict.fromkeys(columns[2:], ".2g"))


def _scales(stage: FittedStage) -> dict[str, float]:
    assert stage.tau is not None
    return {name: float((1 / tau).mean()) for name, tau in stage.tau.items()}
