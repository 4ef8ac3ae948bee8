"""Scores that are weighted sums of several influences: of the segments of a training, or of models nearby."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from msif.attribution.contributions import Contributions
from msif.attribution.cost import Cost
from msif.attribution.partial import PartialScores
from msif.attribution.scorers import InfluenceScorer, Scores, score_batches
from msif.attribution.scoring import QueryVectors
from msif.attribution.staged import Scaled
from msif.curvature.work import Work

PartVectors = list[dict[str, QueryVectors]]
"""Of each part."""


class CompositeScorer:
    """weight · Σ_l I_l(z → q), over influences I_l between models of the same blocks.

    A candidate goes through the models of all parts, which are all in memory.
    """

    def __init__(self, parts: Sequence[InfluenceScorer], weight: float = 1.0) -> None:
        self.parts, self.weight = list(parts), weight
        last = self.parts[-1]
        self.query_side, self.candidate_side = last.query_side, last.candidate_side
        self.measurement, self.left_out = last.measurement, last.left_out

    @property
    def rank_errors(self) -> Tensor | None:
        """The largest of all parts, of each query."""
        errors = [part.rank_errors for part in self.parts if part.rank_errors is not None]
        return torch.stack(errors).amax(0) if errors else None

    @property
    def applied(self) -> Sequence[Scaled]:
        return self.parts[0].applied

    @property
    def solves(self) -> bool:
        return any(preconditioner.solves for part in self.parts for preconditioner in part.preconditioners)

    def query_vectors(self, queries: Iterable[Any]) -> PartVectors:
        """Those of each part; queries are gone over once for each."""
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
        self, vectors: PartVectors, candidates: Iterable[Any], partial: PartialScores | None = None
    ) -> Scores:
        """One pass over candidates, each of which goes through all models."""
        with ExitStack() as stack:
            each = [stack.enter_context(part.scoring(v)) for part, v in zip(self.parts, vectors, strict=True)]
            score = lambda batch: torch.stack([one(batch) for one in each]).sum(0) * self.weight  # noqa: E731
            return score_batches(candidates, score, partial)

    def score(self, queries: Iterable[Any], candidates: Iterable[Any]) -> Scores:
        return self.score_vectors(self.query_vectors(queries), candidates)

    def explain(
        self, vectors: PartVectors, candidates: Iterable[Any], queries: Sequence[int] | None = None
    ) -> list[Contributions]:
        """Parts of the scores of a few candidates, summed over models."""
        batches = list(candidates)
        found = [part.explain(v, batches, queries) for part, v in zip(self.parts, vectors, strict=True)]
        return [
            Contributions(
                own[0].index,
                torch.stack([one.tokens for one in own]).sum(0) * self.weight,
                torch.stack([one.blocks for one in own]).sum(0) * self.weight,
            )
            for own in zip(*found, strict=True)
        ]
