"""TrackStar and the multi-stage index of a model pair, with a few hundred documents in memory in place of a folder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.retraining.members import Member
from msif.attribution.damping import Damping
from msif.attribution.features import query_features
from msif.attribution.gradients import Side, query_gradients
from msif.attribution.scorers import Scores
from msif.curvature.preconditioners import EKFAC, consume
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
        columns = self.plan.columns
        rows, documents = _documents(self.plan, candidates)
        asked = query_features(self.query_side, queries, self.plan.features, "loss").cpu().double()
        correction = Correction(columns)
        if self.r.kind != "none":
            correction = mixed_correction(moment_of(documents, columns, torch.float64), asked, columns, self.r)
        unit = [F.normalize(correction.apply(one), dim=1) for one in (asked, documents)]
        return Scores((unit[0] @ unit[1].T).numpy(), rows.numpy())


class MultiStageIndexScorer:
    """⟨P_d H_pt^(−1/2) (H_ft + …)⁻¹ ∇m, P_d H_pt^(−1/2) ∇L⟩, an estimate of multi-stage influence."""

    def __init__(self, member: Member, projection: int, basis: str) -> None:
        first, last = member.pretrained.stage, member.finetuned.stage
        shared, _ = match_modules(first.side.tracked, last.side.tracked)
        settings = IndexSettings(blocks=1, projection=projection, basis=basis, dtype="float32")
        self.plan = Plan(first.side.restricted(shared), settings, store=first.factors)
        self.query_side = last.side.restricted(shared)
        self.inverse = EKFAC(last.factors, Damping(alpha="auto").later(last.tau))

    def score(self, queries: Iterable[Any], candidates: Iterable[Any]) -> Scores:
        rows, documents = _documents(self.plan, candidates)
        vectors = consume(self.inverse, query_gradients(self.query_side, queries))
        asked = self.plan.features.of_vectors(self.plan.side.tracked, vectors).cpu().double()
        return Scores((asked @ documents.T).numpy(), rows.numpy())


def _documents(plan: Plan, candidates: Iterable[Any]) -> tuple[Tensor, Tensor]:
    """Row numbers, ascending, and features, float64, (N, D)."""
    batches = list(candidates)
    rows = torch.cat([batch.indices for batch in batches])
    order = rows.argsort()
    return rows[order], document_features(plan, batches)[order].double()
