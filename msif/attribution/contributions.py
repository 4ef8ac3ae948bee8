"""Where a score comes from: its parts by token of the candidate and by parameter block."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from msif.attribution.gradients import Side
from msif.attribution.scoring import QueryVectors, over_norms
from msif.curvature.inputs import device_and_dtype
from msif.models.blocks import TrackedModule
from msif.models.capture import Consumer, Cotangent
from msif.models.check import CheckedCapture
from msif.models.objectives import Objective
from msif.models.outer import Outer, squared_norms, squares


@dataclass(frozen=True)
class Contributions:
    """Parts of the scores of one candidate; positive for a proponent, like the scores.

    Attributes:
        index: the candidate's row number.
        tokens: float64, (Q, T): the part of each token's position.
        blocks: float64, (Q, K): the part of each parameter block, in the order of ``block_names``.
        norm: of the candidate's gradient over the tracked modules; None where it is not known.
        scores: float64, (Q,): the sum of either.
    """

    index: int
    tokens: Tensor
    blocks: Tensor
    norm: float | None = None

    def only(self, query: int) -> Contributions:
        """Those of one query, Q = 1."""
        return Contributions(self.index, self.tokens[query : query + 1], self.blocks[query : query + 1], self.norm)

    def scaled(self, factor: float) -> Contributions:
        return Contributions(self.index, self.tokens * factor, self.blocks * factor, self.norm)

    @property
    def scores(self) -> Tensor:
        return self.blocks.sum(1)


def block_names(tracked: Iterable[TrackedModule]) -> list[str]:
    """ "MODULE" for a module of one block, "MODULE:q3" for a head's, in the order of ``Contributions.blocks``."""
    return [
        module.name if len(module.blocks) == 1 else f"{module.name}:{block.label}"
        for module in tracked
        for block in module.blocks
    ]


class _ContributionPass(Consumer):
    def __init__(
        self,
        tracked: Iterable[TrackedModule],
        vectors: dict[str, QueryVectors],
        queries: Sequence[int],
        normalized: bool,
    ) -> None:
        self.vectors, self.queries = vectors, queries
        self.normalized = normalized
        self.columns: dict[str, slice] = {}
        start = 0
        for module in tracked:
            self.columns[module.name] = slice(start, start + len(module.blocks))
            start += len(module.blocks)
        self.total_blocks = start

    def begin(self, batch: Any, objective: Objective) -> None:
        live = objective.live(batch)
        sequences, positions = live.shape
        self.tokens = torch.zeros(sequences, len(self.queries), positions, dtype=torch.float64, device=live.device)
        self.blocks = torch.zeros(
            sequences, len(self.queries), self.total_blocks, dtype=torch.float64, device=live.device
        )
        self.squares = torch.zeros(sequences, dtype=torch.float64, device=live.device)

    def backward(self, module: TrackedModule, uses: Sequence[Outer]) -> None:
        v = self.vectors[module.name]
        weight = v.dense()
        uses = [use.to(weight.dtype) for use in uses]
        self.squares += squared_norms(uses, module.d_out)
        if v.bias is not None:
            self.squares += squares(torch.stack([use.bias_gradient() for use in uses]).sum(0))
        for place, query in enumerate(self.queries):
            V = weight[query] if v.bias is None else torch.cat([weight[query], v.bias[query][:, None]], dim=1)
            for use in uses:
                parts = use.parts(V, len(module.blocks))  # (B, T, nb)
                self.tokens[:, place] += parts.sum(2)
                self.blocks[:, place, self.columns[module.name]] += parts.sum(1)

    def end(self, batch: Any) -> None:
        if self.normalized:
            norms = self.squares.sqrt()[:, None, None]
            self.tokens, self.blocks = over_norms(self.tokens, norms), over_norms(self.blocks, norms)


def contributions(
    side: Side,
    vectors: dict[str, QueryVectors],
    candidates: Iterable[Any],
    queries: Sequence[int] | None = None,
    *,
    normalized: bool = False,
    cotangent: Cotangent | None = None,
) -> list[Contributions]:
    """Parts of the scores of some candidates, in the order of the batches; of scores over gradient norms if normalized.

    Args:
        queries: the places of those that are wanted; all where nothing is said.
        cotangent: of the scored gradients, where they are not those of the loss.

    Costs one forward and backward pass and Q·T·P multiply-adds a sequence: meant for the documents that are shown.
    """
    device, _ = device_and_dtype(side.model)
    if queries is None:
        queries = range(next(iter(vectors.values())).queries)
    consumer = _ContributionPass(side.tracked, vectors, queries, normalized)
    results = []
    with CheckedCapture(side.model, side.tracked, consumer) as capture:
        for batch in candidates:
            capture.run(side.objective, batch.to(device), [cotangent or side.objective.loss_gradient])
            lengths = _lengths(batch, consumer.tokens.shape[2])
            for row, (index, length) in enumerate(zip(batch.indices.tolist(), lengths, strict=True)):
                tokens = consumer.tokens[row, :, :length].cpu()
                norm = float(consumer.squares[row].sqrt())
                results.append(Contributions(index, tokens, consumer.blocks[row].cpu(), norm))
    return results


def _lengths(batch: Any, positions: int) -> list[int]:
    mask = getattr(batch, "attention_mask", None)
    return [positions] * len(batch) if mask is None else mask.sum(1).tolist()
