"""A query's vector as a sum of vectors, one for each part of what is measured, such as the tokens of its answer.

Where m = Σ_t m_t, ∇m and P ∇m are sums over t as well, P being linear. What is done to v = P ∇m after that is done to
each v_t by the map that it is for v: a unit norm divides by ‖v‖, and a rank r, v ≈ v V Vᵀ with the r leading right
singular vectors V of each module, is the projection V Vᵀ. So scores by v_t sum to the score by v.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from msif.attribution.composite import CompositeScorer
from msif.attribution.gradients import query_gradients
from msif.attribution.scorers import InfluenceScorer
from msif.attribution.scoring import QueryVectors, compress, over_norms
from msif.curvature.vectors import dot


@dataclass(frozen=True)
class Frame:
    """What the whole vector v decides for its parts.

    Attributes:
        norm: what v was divided by, (1,); None of scores that are not over it.
        right: V of each module that is of low rank, (d_in, r).
    """

    norm: Tensor | None
    right: dict[str, Tensor]


Frames = Sequence[Frame]
Splittable = InfluenceScorer | CompositeScorer


def why_not_split(scorer: object) -> str | None:
    """Why a scorer's vectors are not split; None where they can be."""
    if not isinstance(scorer, (InfluenceScorer, CompositeScorer)):
        return "scores of this method are not taken apart by the answer's tokens"
    if not isinstance(scorer.measurement, str):
        return "what is measured is not known to be a sum over the answer's tokens"
    parts = _parts(scorer)
    if any(preconditioner.solves for part in parts for preconditioner in part.preconditioners):
        return "the inverse is solved for, and each token of the answer would take a run of the solver"
    return None


def frames_of(scorer: Splittable, whole: Sequence[Any]) -> Frames:
    """Of one query.

    Args:
        whole: batches with this query alone.
    """
    return [_frame(part, whole) for part in _parts(scorer)]


def split_vectors(scorer: Splittable, tokens: Iterable[Any], frames: Frames) -> Any:
    """The vectors v_t of n parts of a query, as the scorer's ``explain`` takes them.

    Args:
        tokens: batches of the parts, each as a query of its own, numbered 0 … n−1.
    """
    batches = list(tokens)
    vectors = [_split(part, batches, frame) for part, frame in zip(_parts(scorer), frames, strict=True)]
    return vectors if isinstance(scorer, CompositeScorer) else vectors[0]


def _parts(scorer: Splittable) -> Sequence[InfluenceScorer]:
    return scorer.parts if isinstance(scorer, CompositeScorer) else [scorer]


def _frame(scorer: InfluenceScorer, whole: Sequence[Any]) -> Frame:
    if scorer.query_rank is None and scorer.normalize != "both":
        return Frame(None, {})
    vectors = scorer.preconditioned(query_gradients(scorer.query_side, whole, scorer.measurement))
    norm = dot(vectors, vectors).sqrt() if scorer.normalize == "both" else None
    if scorer.query_rank is None:
        return Frame(norm, {})
    kept, _ = compress(scorer.placed(vectors), scorer.query_rank)
    return Frame(norm, {name: v.right[0] for name, v in kept.items() if v.right is not None})


def _split(scorer: InfluenceScorer, tokens: Sequence[Any], frame: Frame) -> dict[str, QueryVectors]:
    vectors = scorer.preconditioned(query_gradients(scorer.query_side, tokens, scorer.measurement))
    if frame.norm is not None:
        vectors = {name: over_norms(V, frame.norm.to(V.device, V.dtype)) for name, V in vectors.items()}
    placed = scorer.placed(vectors)
    return {name: _projected(v, frame.right[name]) if name in frame.right else v for name, v in placed.items()}


def _projected(v: QueryVectors, right: Tensor) -> QueryVectors:
    """v_t V Vᵀ, factored."""
    weight = v.dense()
    return QueryVectors(None, v.bias, weight @ right, right.expand(len(weight), *right.shape))
