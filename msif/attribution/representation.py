"""Similarity of representations: no gradients, what a model makes of two texts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from msif.attribution.cost import Cost
from msif.attribution.gradients import Side, query_rows
from msif.attribution.partial import PartialScores
from msif.attribution.scorers import Scores, score_batches
from msif.curvature.work import Work
from msif.models.capture import frozen
from msif.models.objectives import Measurement


class RepresentationScorer:
    """Cosine of the last hidden layer, after its norm, averaged over tokens: of a query with its answer and a document.

    One model reads both. Cost: a forward pass a document.

    Args:
        side: a model of transformers; what it tracks and its objective are not read.
    """

    def __init__(self, side: Side) -> None:
        self.query_side = self.candidate_side = side
        self.measurement: str | Measurement = "loss"
        self.left_out: dict[str, str] = {}

    def query_vectors(self, queries: Iterable[Any]) -> Tensor:
        """Unit means, (Q, hidden).

        Raises:
            MsifError: no query, or indices that are not 0 … Q − 1.
        """
        parts, numbers = [], []
        with frozen(self.query_side.model), torch.no_grad():
            for batch in queries:
                parts.append(self._unit(batch))
                numbers.append(batch.indices)
        rows = query_rows(numbers)
        return torch.cat(parts)[rows.to(parts[0].device)]

    def score_vectors(self, vectors: Tensor, candidates: Iterable[Any], partial: PartialScores | None = None) -> Scores:
        with frozen(self.candidate_side.model), torch.no_grad():
            return score_batches(candidates, lambda batch: self._unit(batch) @ vectors.T, partial)

    def score(self, queries: Iterable[Any], candidates: Iterable[Any]) -> Scores:
        return self.score_vectors(self.query_vectors(queries), candidates)

    def cost(self) -> Cost:
        config: Any = self.candidate_side.model.config
        hidden = config.get_text_config().hidden_size
        loss = self.candidate_side.objective.loss_gradient
        return Cost(hidden, hidden, loss, lambda B, T, queries: Work(B * hidden * (T + queries)), Work())

    def _unit(self, batch: Any) -> Tensor:
        model: Any = self.candidate_side.model
        batch = batch.to(next(model.parameters()).device)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        hidden = model.base_model(**inputs, use_cache=False).last_hidden_state
        means = pooled(hidden, batch.attention_mask).double()
        return F.normalize(means, dim=1, eps=torch.finfo(means.dtype).tiny).float()


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens: (B, T, d) and (B, T) -> (B, d), float32."""
    weights = mask.unsqueeze(2).float()
    return (hidden.float() * weights).sum(1) / weights.sum(1)
