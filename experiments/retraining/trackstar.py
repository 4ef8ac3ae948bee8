"""TrackStar of a model pair, with a few hundred documents in memory in place of an index."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F

from experiments.retraining.members import Member
from msif.attribution.features import query_features
from msif.attribution.gradients import Side
from msif.attribution.scorers import Scores
from msif.index.correction import Correction, RSettings, mixed_correction, moment_of
from msif.index.plan import Plan
from msif.index.pools import indexed_modules
from msif.index.scorer import document_features
from msif.index.settings import IndexSettings
from msif.models.select import match_modules
from msif.models.training.moments import second_moments

SETTINGS = IndexSettings(blocks=1, projection=64, dtype="float32")
"""One layer: two blocks of the published 64 × 64 features."""


class TrackStarScorer:
    """Documents' gradients on the pre-trained model over its optimizer's moments, queries' on the fine-tuned one."""

    def __init__(
        self, member: Member, r: str = "mixed", moments: bool = True, settings: IndexSettings = SETTINGS
    ) -> None:
        first, last = member.pretrained, member.finetuned
        sides = [
            Side(one.model, indexed_modules(one.model, "everything", tied=False), one.objective)
            for one in (first, last)
        ]
        shared, _ = match_modules(sides[0].tracked, sides[1].tracked)
        side, self.query_side = (one.restricted(shared) for one in sides)
        V = second_moments(first.folder, first.model, side.tracked) if moments else None
        self.plan = Plan(side, settings, V)
        self.r = RSettings.parse(r)

    def score(self, queries: Iterable[Any], candidates: Iterable[Any]) -> Scores:
        batches, columns = list(candidates), self.plan.columns
        rows = torch.cat([batch.indices for batch in batches])
        order = rows.argsort()
        documents = document_features(self.plan, batches)[order].double()
        asked = query_features(self.query_side, queries, self.plan.features, "loss").cpu().double()
        correction = Correction(columns)
        if self.r.kind != "none":
            correction = mixed_correction(moment_of(documents, columns, torch.float64), asked, columns, self.r)
        unit = [F.normalize(correction.apply(one), dim=1) for one in (asked, documents)]
        return Scores((unit[0] @ unit[1].T).numpy(), rows[order].numpy())
