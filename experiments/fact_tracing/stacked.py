"""Many methods in one pass over candidates.

Influence methods differ in their query vectors only: damping, filter, measurement and solver are all on the query's
side (docs/method.md). A candidate's gradient is therefore formed once and contracted with the vectors of all queries
and methods that fit into memory, MLP and attention maps apart, each with its norm. From these parts come the scores of
either kind alone and of both, plain and over the candidate's norm: six readings for one contraction.

Costs, with P parameters, Q queries, M methods, N candidates of T tokens: Q·M·N·P multiply-adds to contract, of the same
order as the inverses (two rotations a stage and vector), and Q·M / capacity passes of about 3·T·N·P each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from msif.attribution.gradients import Side
from msif.attribution.scorers import score_batches
from msif.attribution.scoring import QueryVectors, ScorePass
from msif.curvature.inputs import device_and_dtype
from msif.models.blocks import TrackedModule
from msif.models.capture import Capture, Consumer
from msif.models.names import in_attention, layer_of
from msif.models.objectives import Objective
from msif.models.outer import Outer

M = TypeVar("M")


@dataclass(frozen=True)
class Part:
    """One kind of module's share: scores (S, N) of S vectors, and the candidates' gradient norms, (N,)."""

    scores: np.ndarray
    norms: np.ndarray


def kind_of(name: str) -> str:
    """Of a module, by its name."""
    if layer_of(name) is None:
        return "unembedding"
    return "attention" if in_attention(name) else "mlp"


class PartsPass(Consumer):
    """Sends each module's inputs and gradients to the pass of its kind."""

    def __init__(self, vectors: Mapping[str, QueryVectors]) -> None:
        kinds = sorted({kind_of(name) for name in vectors})
        self.parts = {
            kind: ScorePass({name: v for name, v in vectors.items() if kind_of(name) == kind}, with_norms=True)
            for kind in kinds
        }

    def begin(self, batch: Any, objective: Objective) -> None:
        for part in self.parts.values():
            part.begin(batch, objective)

    def backward(self, module: TrackedModule, uses: Sequence[Outer]) -> None:
        self.parts[kind_of(module.name)].backward(module, uses)

    def end(self, batch: Any) -> None:
        for part in self.parts.values():
            part.end(batch)


def score_parts(side: Side, vectors: Mapping[str, QueryVectors], candidates: Iterable[Any]) -> dict[str, Part]:
    """⟨v_s, ∇L(z)⟩ of each kind of module, in one pass; candidates come out in order of row number.

    Args:
        side: the candidates'; restricted to the modules of the vectors.
    """
    device, _ = device_and_dtype(side.model)
    consumer = PartsPass(vectors)

    def columns(batch: Any) -> Tensor:
        capture.run(side.objective, batch.to(device), [side.objective.loss_gradient])
        return torch.cat([torch.cat([p.scores, p.norms[:, None]], dim=1) for p in consumer.parts.values()], dim=1)

    with Capture(side.model, side.tracked, consumer) as capture:
        values = score_batches(candidates, columns).values
    pieces = np.split(values, len(consumer.parts))
    return {kind: Part(piece[:-1], piece[-1]) for kind, piece in zip(consumer.parts, pieces, strict=True)}


def packed(
    methods: Iterable[M], facts: Callable[[M], Sequence[int]], capacity: int
) -> Iterator[list[tuple[M, list[int]]]]:
    """Passes: which facts' vectors of which methods are contracted together, at most ``capacity`` a pass.

    Methods come in their order, and a method's facts in theirs, so that methods are finished one after the other.
    """
    numbered = list(enumerate(methods))
    vectors = iter([(number, fact) for number, method in numbered for fact in facts(method)])
    while chunk := list(islice(vectors, capacity)):
        yield [
            (numbered[number][1], [fact for _, fact in members])
            for number, members in groupby(chunk, key=lambda vector: vector[0])
        ]
