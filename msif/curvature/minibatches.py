"""Random estimates of the Gauss-Newton matrix, from mini-batches of its data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from msif.curvature.ggn import GGN, Operator
from msif.curvature.vectors import Vectors, zeros
from msif.errors import MsifError


class MiniBatches:
    """Random estimates H_b of the H of a GGN, on its own model.

    A batch is drawn with the probability of its share of the supervised tokens, and its curvature is normalised by its
    own: so that E[H_b] = H exactly, however unequal the batches. Of several in a mini-batch the mean is taken.

    Args:
        operator: its batches are held in memory (token ids, no activations).

    Raises:
        MsifError: no batch has a supervised token.
    """

    def __init__(self, operator: GGN, per_draw: int = 1) -> None:
        self.operator, self.per_draw = operator, per_draw
        self.batches = list(operator.batches)
        counts = np.array([int(operator.objective.supervised_counts(batch).sum()) for batch in self.batches])
        if counts.sum() == 0:
            raise MsifError("the data has no supervised token to take the curvature over.")
        self.shares = counts / counts.sum()
        self._edges = counts.cumsum() / counts.sum()

    def draw(self, generator: np.random.Generator) -> MiniBatch:
        """The operator H_b of a mini-batch."""
        places = np.searchsorted(self._edges, generator.random(self.per_draw), side="right")
        numbers, times = np.unique(places, return_counts=True)
        parts = [self.only(int(number)) for number in numbers]
        return MiniBatch(parts, (times / times.sum()).tolist(), float(self.shares[numbers].sum()))

    def only(self, number: int) -> GGN:
        """The curvature of one batch, normalised by its own supervised tokens."""
        whole = self.operator
        return GGN(whole.model, whole.tracked, whole.objective, [self.batches[number]])


@dataclass(frozen=True)
class MiniBatch:
    """Σ_i weight_i H_i of a few batches; ``share`` is their part of the data's supervised tokens."""

    parts: Sequence[Operator]
    weights: Sequence[float]
    share: float

    def matvec(self, vectors: Vectors) -> Vectors:
        """H_b v for Q vectors at once."""
        total = zeros(vectors)
        for part, weight in zip(self.parts, self.weights, strict=True):
            product = part.matvec(vectors)
            total = {name: V.add(product[name], alpha=weight) for name, V in total.items()}
        return total
