"""Trainings in segments, each seen through a checkpoint: SOURCE (Bae et al. 2024, arXiv 2405.12186)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from msif.attribution.contributions import Contributions
from msif.attribution.cost import Cost
from msif.attribution.gradients import Side, query_gradients
from msif.attribution.partial import PartialScores
from msif.attribution.scorers import InfluenceScorer, Scores, score_batches
from msif.attribution.scoring import QueryVectors
from msif.attribution.self_influence import product
from msif.attribution.staged import Scaled
from msif.curvature.preconditioners import Preconditioner
from msif.curvature.work import Work

SegmentVectors = list[dict[str, QueryVectors]]
"""Of each segment."""


class SegmentedScorer:
    """I(z → q) = Σ_l ∇m(q; θ)ᵀ S_K ⋯ S_{l+1} R_l ∇L(z; θ_l), over the segments l of the first stage's training.

    R_l is what segment l accumulates from a gradient and S_l what it keeps of a displacement; after the first stage's
    L segments come those of fine-tuning, up to K (Bae et al. 2024, section 3.2; docs/method.md). A candidate goes
    through the models of all segments, which are all in memory.

    Args:
        query_side: the last model.
        candidate_sides: the model of each segment of the first stage, L of them, in the order of training.
        accumulated: R_1 to R_L.
        kept: S_2 to S_K.
        options: of ``InfluenceScorer``.
    """

    def __init__(
        self,
        query_side: Side,
        candidate_sides: Sequence[Side],
        accumulated: Sequence[Preconditioner],
        kept: Sequence[Preconditioner],
        **options: Any,
    ) -> None:
        self.parts = [
            InfluenceScorer(query_side, side, [own, *kept[number:]], **options)
            for number, (side, own) in enumerate(zip(candidate_sides, accumulated, strict=True))
        ]
        last = self.parts[-1]
        self.query_side, self.candidate_side = last.query_side, last.candidate_side
        self.measurement, self.left_out = last.measurement, last.left_out

    @property
    def rank_errors(self) -> Tensor | None:
        """The largest of all segments, of each query."""
        errors = [part.rank_errors for part in self.parts if part.rank_errors is not None]
        return torch.stack(errors).amax(0) if errors else None

    @property
    def applied(self) -> Sequence[Scaled]:
        return self.parts[0].applied

    @property
    def solves(self) -> bool:
        return any(preconditioner.solves for part in self.parts for preconditioner in part.preconditioners)

    def self_influence(self, documents: Iterable[Any]) -> Tensor:
        """Σ_l ∇L(d; θ_L)ᵀ S_L ⋯ S_{l+1} R_l ∇L(d; θ_l) over the L segments of the first stage, see ``SelfScorer``."""
        batches, count = list(documents), len(self.parts)
        last = query_gradients(self.candidate_side, batches)
        found = []
        for number, part in enumerate(self.parts):
            own = query_gradients(part.candidate_side, batches) if number < count - 1 else last
            found.append(product(own, last, part.preconditioners[: count - number]))
        return torch.stack(found).sum(0)

    def query_vectors(self, queries: Iterable[Any]) -> SegmentVectors:
        """Those of each segment; queries are gone over once for each."""
        batches = list(queries)
        return [part.query_vectors(batches) for part in self.parts]

    def cost(self) -> Cost:
        costs = [part.cost() for part in self.parts]
        vector = sum(cost.vector for cost in costs)
        last = costs[-1]
        return replace(
            last,
            vector=vector,
            making=vector - last.vector + last.making,
            batch=lambda B, T, queries: sum((cost.batch(B, T, queries) for cost in costs), Work()),
            query=sum((cost.query for cost in costs), Work()),
            models=[part.candidate_side.model for part in self.parts[:-1]],
        )

    def score_vectors(
        self, vectors: SegmentVectors, candidates: Iterable[Any], partial: PartialScores | None = None
    ) -> Scores:
        """One pass over candidates, each of which goes through all models."""
        with ExitStack() as stack:
            score = [stack.enter_context(part.scoring(v)) for part, v in zip(self.parts, vectors, strict=True)]
            return score_batches(candidates, lambda batch: torch.stack([one(batch) for one in score]).sum(0), partial)

    def score(self, queries: Iterable[Any], candidates: Iterable[Any]) -> Scores:
        return self.score_vectors(self.query_vectors(queries), candidates)

    def explain(
        self, vectors: SegmentVectors, candidates: Iterable[Any], queries: Sequence[int] | None = None
    ) -> list[Contributions]:
        """Parts of the scores of a few candidates, summed over segments."""
        batches = list(candidates)
        found = [part.explain(v, batches, queries) for part, v in zip(self.parts, vectors, strict=True)]
        return [
            Contributions(
                own[0].index,
                torch.stack([one.tokens for one in own]).sum(0),
                torch.stack([one.blocks for one in own]).sum(0),
            )
            for own in zip(*found, strict=True)
        ]
