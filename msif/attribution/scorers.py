"""Scorers: queries × candidates → scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from msif import distributed
from msif.attribution.contributions import Contributions, contributions
from msif.attribution.cost import Cost, score_work
from msif.attribution.gradients import Side, collected_gradients, query_gradients, query_rows
from msif.attribution.partial import Once, PartialScores, together
from msif.attribution.scoring import QueryVectors, ScorePass, compress, over_norms, picked, split_bias, stack
from msif.attribution.self_influence import quadratic
from msif.attribution.staged import Scaled
from msif.curvature.inputs import device_and_dtype
from msif.curvature.preconditioners import Identity, Preconditioner, consume
from msif.curvature.vectors import Vectors
from msif.curvature.work import rotation_work
from msif.errors import MsifError
from msif.models.blocks import TrackedModule
from msif.models.check import CheckedCapture
from msif.models.objectives import Measurement
from msif.models.outer import squares
from msif.models.select import match_modules
from msif.progress import progress

# what an iterative solver holds of each query: right-hand side, solution, residual, directions and products
SOLVER_VECTORS = 7


@dataclass(frozen=True)
class Scores:
    """Scores of queries × candidates; positive for a proponent: training more on it makes the answer likelier.

    Attributes:
        values: float32 or float64, axes ("query", "candidate").
        candidates: int64, (N,), the candidates' row numbers, in the order of the second axis.
    """

    values: np.ndarray
    candidates: np.ndarray

    axes = ("query", "candidate")

    def ranked(self, query: int) -> np.ndarray:
        """Positions along the candidate axis, the largest score first; ties by row number."""
        return np.lexsort((self.candidates, -self.values[query]))


class Scorer(Protocol):
    """Anything that yields scores. Batches of queries are numbered 0 … Q−1 by their ``indices``."""

    def score(self, queries: Iterable[Any], candidates: Iterable[Any]) -> Scores: ...


class PairScorer(Scorer, Protocol):
    """A scorer of two models that takes the queries in first, and then passes over candidates once.

    The vectors are its own affair: ∇m with the inverses applied, projected gradients, Gram matrices.

    Attributes:
        query_side, candidate_side: restricted to the modules that take part.
        measurement: of a query, by name or as a callable.
        left_out: module name -> why it does not.
    """

    query_side: Side
    candidate_side: Side
    measurement: str | Measurement
    left_out: dict[str, str]

    def query_vectors(self, queries: Iterable[Any]) -> Any: ...

    def cost(self) -> Cost:
        """What its passes take, for an estimate."""
        ...

    def score_vectors(self, vectors: Any, candidates: Iterable[Any], partial: PartialScores | None = None) -> Scores:
        """``partial`` holds what an interrupted run of the same pass had done, and takes in the rest."""
        ...


@runtime_checkable
class Explainer(Protocol):
    """A scorer whose scores are sums over tokens and over blocks."""

    def explain(
        self, vectors: Any, candidates: Iterable[Any], queries: Sequence[int] | None = None
    ) -> list[Contributions]: ...


@runtime_checkable
class Mover(Protocol):
    """A scorer that asks models which it moves first, once, in every process by the same displacements."""

    moved: bool

    def displacements(self) -> Vectors: ...

    def move(self, displacements: Vectors) -> None: ...


def score_batches(
    candidates: Iterable[Any], score: Callable[[Any], Tensor], partial: PartialScores | None = None
) -> Scores:
    """One pass over candidates, which come out in order of row number; ``score`` takes a batch to its (B, Q).

    Processes share the batches, and all of them get all scores.

    Raises:
        MsifError: there is no candidate, or two have one row number.
    """
    partial, once = partial or PartialScores(), Once()
    size = getattr(candidates, "size", None)
    if not partial.complete:
        with progress(desc="scoring", unit="doc", total=distributed.own_count(size)) as bar, partial.under_way():

            def wanted(batch: Any) -> bool:
                once.take(batch.indices.tolist())
                if known := partial.has(batch.indices.cpu().numpy()):
                    bar.update(len(batch))
                return not known

            for _, batch, mine in distributed.own_batches(candidates, wanted=wanted):
                scores = score(batch)
                if mine:
                    partial.add(batch.indices.cpu().numpy(), scores.cpu().numpy())
                    bar.update(len(batch))
            once.check()
    parts = [part for part in distributed.gathered(partial.whole()) if part is not None and len(part[0])]
    if not parts:
        raise MsifError("there is no candidate to score.")
    # what an earlier run had scored may be with several
    rows, values = together(*zip(*parts, strict=True))
    return Scores(values.T.copy(), rows)


class InfluenceScorer:
    """I(z → q) = ∇m(q; θ_K)ᵀ P_K ⋯ P_1 ∇L(z; θ_1) (docs/method.md).

    ``preconditioners`` lists the stages in the order of training, P_1 first, each the (damped) inverse curvature of
    its stage; since all are symmetric, they are applied to the query's side, P_K first, and each candidate costs one
    forward and one backward pass. One preconditioner is single-stage influence; none is the gradient dot product, and
    with ``normalize="both"`` the gradient cosine.

    Args:
        query_side: the last model, with the objective by which the query is measured.
        candidate_side: the first model, with its training objective.
        measurement: see ``query_gradients``.
        query_rank: keep this rank of each module's query vectors; ``rank_errors`` then holds the relative error.
        normalize: "unit" divides each score by the candidate's gradient norm, "both" by ‖v‖ too.

    Raises:
        MsifError: the two sides share no block.
    """

    def __init__(
        self,
        query_side: Side,
        candidate_side: Side,
        preconditioners: Sequence[Preconditioner] = (),
        *,
        measurement: str | Measurement = "loss",
        query_rank: int | None = None,
        normalize: Literal["none", "unit", "both"] = "none",
    ) -> None:
        if normalize not in ("none", "unit", "both"):
            raise MsifError(f"normalize is '{normalize}': choose 'none', 'unit' or 'both'.")
        if query_rank is not None and query_rank < 1:
            raise MsifError(f"the query rank is {query_rank}: it must be 1 or more.")
        shared, self.left_out = match_modules(list(query_side.tracked), list(candidate_side.tracked))
        self.query_side = query_side.restricted(shared)
        self.candidate_side = candidate_side.restricted(shared)
        self.preconditioners = list(preconditioners) or [Identity()]
        self.measurement = measurement
        self.query_rank = query_rank
        self.normalize = normalize
        self.rank_errors: Tensor | None = None

    @property
    def applied(self) -> Sequence[Scaled]:
        return self.preconditioners

    @property
    def solves(self) -> bool:
        return self.preconditioners[0].solves

    def self_influence(self, documents: Iterable[Any]) -> Tensor:
        """g_dᵀ P_1 g_d, see ``SelfScorer``; as of unnormalised scores."""
        return quadratic(self.candidate_side, documents, self.preconditioners[:1])

    def query_vectors(self, queries: Iterable[Any]) -> dict[str, QueryVectors]:
        """P_1 ⋯ P_K ∇m(q) for all queries, each module's weight and bias part.

        With a rank, one batch after the other, so that only one batch's vectors are whole at a time.
        """
        if self.query_rank is None:
            return self._through_stages(query_gradients(self.query_side, queries, self.measurement))
        parts, errors, order = [], [], []
        for batch in queries:
            gradients, _ = collected_gradients(self.query_side, [batch], self.measurement)
            vectors, error = compress(self._through_stages(gradients), self.query_rank)
            parts.append(vectors)
            errors.append(error)
            order.append(batch.indices)
        rows = query_rows(order)
        self.rank_errors = torch.cat(errors)[rows.to(errors[0].device)]
        return picked(stack(parts), rows.to(errors[0].device))

    def _through_stages(self, vectors: Vectors) -> dict[str, QueryVectors]:
        vectors = self.preconditioned(vectors)
        return self.placed(_unit(vectors) if self.normalize == "both" else vectors)

    def preconditioned(self, vectors: Vectors) -> Vectors:
        """P_1 ⋯ P_K of some gradients, (Q, d_out, d) a module; they are taken over."""
        for preconditioner in reversed(self.preconditioners):
            vectors = consume(preconditioner, vectors)
        return vectors

    def placed(self, vectors: Vectors) -> dict[str, QueryVectors]:
        """As scoring takes them, where the candidates' model is."""
        device, dtype = device_and_dtype(self.candidate_side.model)
        vectors = {name: V.to(device, dtype) for name, V in vectors.items()}
        return split_bias(vectors, {module.name: module.bias for module in self.candidate_side.tracked})

    def cost(self) -> Cost:
        side, rank, normalized = self.candidate_side, self.query_rank, self.normalize != "none"
        rotated = sum(not isinstance(preconditioner, Identity) for preconditioner in self.preconditioners)
        whole = sum(module.d_out * module.shape[1] for module in side.tracked)
        solved = any(not preconditioner.blockwise for preconditioner in self.preconditioners)
        return Cost(
            vector=whole if rank is None else sum(_held(module, rank) for module in side.tracked),
            # a module's gradient and its two products at a time; a solver holds directions, residuals and products
            making=(SOLVER_VECTORS if solved else 1.5) * whole,
            candidates=side.objective.loss_gradient,
            batch=lambda B, T, queries: score_work(side.tracked, B, T, queries, rank, normalized),
            query=rotation_work(side.tracked) * rotated,
        )

    def score_vectors(
        self, vectors: dict[str, QueryVectors], candidates: Iterable[Any], partial: PartialScores | None = None
    ) -> Scores:
        """⟨v_q, ∇L(z)⟩ for vectors that ``query_vectors`` made; candidates come out in order of row number.

        ``partial`` holds what an interrupted run of the same pass had done, and takes in the rest.
        """
        with self.scoring(vectors) as score:
            return score_batches(candidates, score, partial)

    @contextmanager
    def scoring(self, vectors: dict[str, QueryVectors]) -> Iterator[Callable[[Any], Tensor]]:
        """A batch of B candidates -> its scores (B, Q), within the context."""
        side, normalized = self.candidate_side, self.normalize != "none"
        device, _ = device_and_dtype(side.model)
        consumer = ScorePass(vectors, with_norms=normalized)

        def score(batch: Any) -> Tensor:
            capture.run(side.objective, batch.to(device), [side.objective.loss_gradient])
            if not normalized:
                return consumer.scores
            return over_norms(consumer.scores, consumer.norms[:, None])

        with CheckedCapture(side.model, side.tracked, consumer) as capture:
            yield score

    def score(self, queries: Iterable[Any], candidates: Iterable[Any]) -> Scores:
        return self.score_vectors(self.query_vectors(queries), candidates)

    def explain(
        self, vectors: dict[str, QueryVectors], candidates: Iterable[Any], queries: Sequence[int] | None = None
    ) -> list[Contributions]:
        """Per-token and per-block parts of the scores of a few candidates, of some queries or of all."""
        return contributions(self.candidate_side, vectors, candidates, queries, normalized=self.normalize != "none")


def _held(module: TrackedModule, rank: int) -> int:
    """Numbers that a query's vector of a module holds at a rank."""
    dense = rank >= min(module.d_out, module.d_in)
    weight = module.d_out * module.d_in if dense else rank * (module.d_out + module.d_in)
    return weight + module.d_out * module.bias


class EnsembleScorer:
    """The mean of several scorers' scores: checkpoints or seeds of a stage.

    Raises:
        MsifError: no scorer is given, or they scored different candidates.
    """

    def __init__(self, scorers: Sequence[Scorer]) -> None:
        if not scorers:
            raise MsifError("an ensemble needs at least one scorer.")
        self.scorers = list(scorers)

    def score(self, queries: Iterable[Any], candidates: Iterable[Any]) -> Scores:
        if iter(queries) is queries or iter(candidates) is candidates:
            raise MsifError("an ensemble goes over queries and candidates several times: give lists, not iterators.")
        results = [scorer.score(queries, candidates) for scorer in self.scorers]
        if any(not np.array_equal(result.candidates, results[0].candidates) for result in results):
            raise MsifError("the scorers of an ensemble scored different candidates: give all of them the same ones.")
        return Scores(np.mean([result.values for result in results], axis=0), results[0].candidates)


def _unit(vectors: Vectors) -> Vectors:
    norms = torch.stack([squares(V) for V in vectors.values()]).sum(0).sqrt()[:, None, None]
    return {name: over_norms(V, norms.to(V.dtype)) for name, V in vectors.items()}
