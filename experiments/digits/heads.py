"""Influence with both heads counted, though neither stage has the other's.

The heads are parameters of their own stage: the query's gradient in the new head reaches the body through the
fine-tuned model's curvature, and a pre-training image moves the body also by way of the old head. So both inverses are
of whole networks, and between the stages only the body is carried over. EK-FAC has no curvature between maps, and gains
nothing by it; an exact inverse does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from experiments.digits.network import BODY
from msif.attribution.gradients import Side, query_gradients
from msif.attribution.scorers import InfluenceScorer, Scores
from msif.attribution.scoring import split_bias
from msif.curvature.preconditioners import Preconditioner


class WholeNetworkScorer:
    """∇m(q; θ_ft)ᵀ P_ft E Eᵀ P_pt ∇L(z; θ_pt), with E the body among all parameters of a stage."""

    def __init__(self, query_side: Side, candidate_side: Side, first: Preconditioner, last: Preconditioner) -> None:
        self.query_side, self.candidate_side = query_side, candidate_side
        self.first, self.last = first, last

    def score(self, queries: Iterable[Any], candidates: Iterable[Any]) -> Scores:
        moved = self.last.apply(query_gradients(self.query_side, queries))
        some = moved[BODY[0]]
        carried = {
            module.name: moved[module.name] if module.name in BODY else some.new_zeros(len(some), *module.shape)
            for module in self.candidate_side.tracked
        }
        vectors = self.first.apply(carried)
        split = split_bias(vectors, {module.name: module.bias for module in self.candidate_side.tracked})
        return InfluenceScorer(self.candidate_side, self.candidate_side).score_vectors(split, candidates)
