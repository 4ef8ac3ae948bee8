"""A random order: what every method must beat."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msif.attribution.cost import Cost
from msif.attribution.gradients import Side, query_rows
from msif.attribution.partial import PartialScores
from msif.attribution.scorers import Scores, score_batches
from msif.curvature.work import Work
from msif.draws import generator
from msif.models.objectives import Measurement

ORDER_STREAM = 8


class RandomScorer:
    """Uniform scores in [0, 1), which depend on the seed, the query's number and the candidate's row alone.

    Args:
        query_side, candidate_side: as for ``InfluenceScorer``; neither model is run.
    """

    def __init__(self, query_side: Side, candidate_side: Side, *, seed: int = 0) -> None:
        self.query_side, self.candidate_side, self.seed = query_side, candidate_side, seed
        self.measurement: str | Measurement = "loss"
        self.left_out: dict[str, str] = {}

    def query_vectors(self, queries: Iterable[Any]) -> Tensor:
        """The queries' numbers, (Q,).

        Raises:
            MsifError: no query, or indices that are not 0 … Q − 1.
        """
        return torch.arange(len(query_rows([batch.indices for batch in queries])))

    def score_vectors(self, vectors: Tensor, candidates: Iterable[Any], partial: PartialScores | None = None) -> Scores:
        def score(batch: Any) -> Tensor:
            draws = [generator(self.seed, ORDER_STREAM, number=int(row)).random(len(vectors)) for row in batch.indices]
            return torch.from_numpy(np.stack(draws))

        return score_batches(candidates, score, partial)

    def score(self, queries: Iterable[Any], candidates: Iterable[Any]) -> Scores:
        return self.score_vectors(self.query_vectors(queries), candidates)

    def cost(self) -> Cost:
        loss = self.candidate_side.objective.loss_gradient
        return Cost(1, 1, loss, lambda B, T, queries: Work(B * queries), Work())
