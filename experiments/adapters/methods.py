"""What is asked which documents an adapter's answers rest on: through the adapter, past it, and without it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from experiments.common.methods import Method
from experiments.common.search import search_by_words
from experiments.retraining.members import Member, Model
from experiments.retraining.methods import DEFAULT_DAMPING, GDP, MULTI_STAGE, random_order, staged, without_hop
from msif.attribution.damping import Damping
from msif.attribution.scorers import InfluenceScorer, Scorer
from msif.attribution.stages import FittedStage
from msif.curvature.adapter_hop import AdapterHop

ALL_WEIGHTS = f"{MULTI_STAGE}, as a fine-tuning of all weights"
NO_BILINEAR = f"{MULTI_STAGE}, without S"
NO_HOP = "EK-FAC of pre-training alone"
ALPHAS = (0.3, 1.0, 3.0)
"""Absolute, of the adapter's parameters; less is refused where training ended before its optimum."""
ALPHAS_OF_ALL = (0.0, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the weights."""


def adapter_methods(one_objective: bool) -> list[Method]:
    """In the order of the tables; ``one_objective`` is what an adapter always has."""
    assert one_objective
    return [
        *_through_the_adapter(),
        *_as_all_weights(),
        Method(NO_HOP, "0.1 mean", scorer=without_hop),
        Method("single-stage EK-FAC", "0.1 mean", scorer=staged("single-stage", Damping())),
        Method(GDP, scorer=staged("gdp")),
        Method("gradient cosine", scorer=staged("cosine")),
        Method("BM25+", search=search_by_words),
        Method("random", scorer=random_order, main=False),
    ]


def _through_the_adapter() -> Iterator[Method]:
    """What ``--adapter-hop`` does."""
    yield Method(MULTI_STAGE, DEFAULT_DAMPING, scorer=staged("multi-stage", Damping(alpha="auto")))
    for alpha in ALPHAS:
        damped = staged("multi-stage", Damping(alpha=alpha))
        yield Method(MULTI_STAGE, f"0.1 mean, α = {alpha:g}", scorer=damped, main=False)
    yield Method(NO_BILINEAR, DEFAULT_DAMPING, scorer=_without_bilinear)


def _without_bilinear(m: Member) -> Scorer:
    """As if the fine-tuning had ended where the mean gradient is zero, which leaves 1/τ as it is."""
    scorer = staged("multi-stage", Damping(alpha="auto"))(m)
    assert isinstance(scorer, InfluenceScorer)
    first, hop = scorer.preconditioners
    assert isinstance(hop, AdapterHop)
    flat = lambda: {name: torch.zeros_like(own) for name, own in hop.gradient.items()}  # noqa: E731
    scorer.preconditioners = [first, AdapterHop(hop.factors, hop.maps, flat, hop.alpha)]
    return scorer


def _as_all_weights() -> Iterator[Method]:
    """What is done without the flag: the merged model, as if all its weights had been trained."""
    for alpha in ALPHAS_OF_ALL:
        damped = staged("multi-stage", Damping(alpha=alpha), stage=_merged)
        yield Method(ALL_WEIGHTS, f"0.1 mean, α = {alpha:g}", scorer=damped, main=not alpha)


def _merged(model: Model) -> FittedStage:
    return replace(model.stage, adapter=None)
