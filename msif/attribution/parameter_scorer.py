"""Influence over all parameters of a model: embeddings, norms and unembedding as well as its linear maps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from msif.attribution.gradients import query_rows
from msif.attribution.scorers import Scores, score_batches
from msif.curvature.inputs import device_and_dtype
from msif.curvature.parameters import ParameterFunction, shared_parameters
from msif.curvature.preconditioners import Identity, Preconditioner, consume
from msif.curvature.vectors import Vectors
from msif.errors import MsifError
from msif.models.capture import FiniteGuard, describe_batch
from msif.models.objectives import Measurement


class ParameterScorer:
    """I(z → q) = ∇m(q; θ_K)ᵀ P_K ⋯ P_1 ∇L(z; θ_1) over the parameters that both models have.

    No candidate's gradient is formed: ⟨v, ∇L(z)⟩ is the derivative of L(z) along v, so one forward pass in forward
    mode, at about two passes' cost, gives one query's scores of a whole batch. A candidate costs about 2 Q forward
    passes for Q queries, where ``InfluenceScorer`` takes one forward and one backward, for tracked maps only.

    Args:
        query_side: the last model, with the objective by which the query is measured.
        candidate_side: the first model, with its training objective.
        preconditioners: the stages in the order of training, as in ``InfluenceScorer``, over the parameters of
            ``shared_parameters(query_side, candidate_side)``.
        measurement: see ``parameter_gradients``.

    Raises:
        MsifError: the two sides share no parameter.
    """

    def __init__(
        self,
        query_side: ParameterFunction,
        candidate_side: ParameterFunction,
        preconditioners: Sequence[Preconditioner] = (),
        *,
        measurement: str | Measurement = "loss",
    ) -> None:
        self.query_side, self.candidate_side = shared_parameters(query_side, candidate_side)
        self.preconditioners = list(preconditioners) or [Identity()]
        self.measurement = measurement

    def query_vectors(self, queries: Iterable[Any]) -> Vectors:
        """P_1 ⋯ P_K ∇m(q) for all queries, (Q, rows, columns) a parameter."""
        vectors = parameter_gradients(self.query_side, queries, self.measurement)
        for preconditioner in reversed(self.preconditioners):
            vectors = consume(preconditioner, vectors)
        device, dtype = device_and_dtype(self.candidate_side.model)
        return {name: V.to(device, dtype) for name, V in vectors.items()}

    def score_vectors(self, vectors: Vectors, candidates: Iterable[Any]) -> Scores:
        """⟨v_q, ∇L(z)⟩ for vectors that ``query_vectors`` made; candidates come out in order of row number."""
        device, _ = device_and_dtype(self.candidate_side.model)
        with self.candidate_side as function:

            def score(batch: Any) -> Tensor:
                scores = _directional_derivatives(function, batch.to(device), vectors)
                if not bool(torch.isfinite(scores).all()):
                    raise MsifError(
                        f"a score is NaN or infinite in {describe_batch(batch)}: check that document, the queries' "
                        "vectors and the weights."
                    )
                return scores

            return score_batches(candidates, score)

    def score(self, queries: Iterable[Any], candidates: Iterable[Any]) -> Scores:
        return self.score_vectors(self.query_vectors(queries), candidates)


def _directional_derivatives(function: ParameterFunction, batch: Any, vectors: Vectors) -> Tensor:
    """⟨v_q, ∇L(z)⟩ = ⟨∂L/∂outputs, J v_q⟩ of each sequence, (B, Q)."""
    derivatives = []
    for query in range(len(next(iter(vectors.values())))):
        outputs, tangent = function.along(batch, vectors, query)
        gradient = function.objective.loss_gradient(outputs, batch)
        derivatives.append((gradient * tangent).flatten(1).sum(1))
    return torch.stack(derivatives, dim=1)


def parameter_gradients(
    function: ParameterFunction, queries: Iterable[Any], measurement: str | Measurement = "loss"
) -> Vectors:
    """Parameter name -> ∇m of each query, (Q, rows, columns), rows ordered by the queries' ``indices``.

    One forward pass a batch and one backward pass a query.

    Args:
        queries: batches of queries, their indices 0 … Q−1 in any order.
        measurement: a name that the objective knows, or a callable (outputs, batch) -> (B,), lower for likelier
            answers.

    Raises:
        MsifError: an unknown measurement, no query, wrong numbers, or NaN or infinity in a gradient.
    """
    objective = function.objective
    measure = objective.measurement(measurement) if isinstance(measurement, str) else measurement
    device, _ = device_and_dtype(function.model)
    guard = FiniteGuard("the query gradient")
    found: dict[int, dict[str, Tensor]] = {}
    numbers: list[Tensor] = []
    with function:
        for batch in queries:
            batch = batch.to(device)

            def one_by_one(outputs: Tensor, batch: Any = batch) -> Iterable[Tensor]:
                gradient = objective.measurement_gradient(outputs, batch, measure)
                for row in range(len(batch)):
                    alone = torch.zeros_like(gradient)
                    alone[row] = gradient[row]
                    yield alone

            gradients = function.pull_back(batch, one_by_one)
            for number, gradient in zip(batch.indices.tolist(), gradients, strict=True):
                for name, g in gradient.items():
                    guard.watch(name, g.sum())
                found[number] = gradient
            numbers.append(batch.indices)
            guard.check(batch)
    query_rows(numbers)  # refuses what is not 0 … Q−1
    return {name: torch.stack([found[number][name] for number in range(len(found))]) for name in found[0]}
