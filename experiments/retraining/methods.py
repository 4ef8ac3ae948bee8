"""Every method that chooses documents, with the scorers that a model pair makes of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from operator import attrgetter, methodcaller
from typing import Any

import numpy as np

from experiments.common.methods import Method
from experiments.common.search import embedding_scores, search_by_words
from experiments.retraining.members import LABEL_SAMPLES, MODULES, Member, Model
from experiments.retraining.trackstar import SETTINGS as PROJECTED_GRADIENTS
from experiments.retraining.trackstar import MultiStageIndexScorer, TrackStarScorer
from experiments.retraining.two_stage import Asked, TwoStage
from msif.attribution.damping import Damping
from msif.attribution.inverses import IHVP
from msif.attribution.prior import Prior
from msif.attribution.projection import Projection
from msif.attribution.scorers import EnsembleScorer, InfluenceScorer, Scorer
from msif.attribution.stages import FittedStage, build_scorer, factors_of, later_stage
from msif.curvature.filters import ProximalHop
from msif.curvature.preconditioners import EKFAC, Preconditioner
from msif.index.settings import BASES

SWEEP = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""λ of both stages, absolute."""
SCALES = (0.03, 0.3, 1.0, 3.0)
"""λ of both stages, relative to a block's mean eigenvalue; beside 0.1."""
PULLS = (3.0, 10.0, 100.0)
"""α of fine-tuning, in 1/τ."""
PRIORS = (0.25, 0.5, 1.0)
FINETUNINGS = 3
CG_PRODUCTS = 4
"""From EK-FAC's answer on. With vectors of all queries a product takes longer than a training does."""
CG_TOLERANCE = 1e-3
TRAK_PROJECTION, LOGRA_PROJECTION = Projection(64, 64, dimension=1024), Projection(16, 16)
INDEX_PROJECTIONS = (8, 32, 64, 128)
SETTINGS = {
    "label samples": LABEL_SAMPLES,
    "modules": MODULES,
    "projections": [asdict(TRAK_PROJECTION), asdict(LOGRA_PROJECTION)],
}
"""What scores of all methods depend on, beside the models."""

MULTI_STAGE, SOURCE, GDP = "multi-stage EK-FAC", "multi-stage EK-FAC, SOURCE filters", "gradient dot product"
UNIT = f"{MULTI_STAGE}, unit norm"
SEGMENTED = f"{SOURCE}, checkpoints in segments"
DEFAULT_DAMPING = "0.1 mean, α = 1/τ"
"""What the command line takes where the training is known."""
PULLED = "1 mean, α = 10/τ"
SOLVED = "multi-stage, EK-FAC-preconditioned CG"


def all_methods(one_objective: bool) -> list[Method]:
    """In the order of the tables.

    Args:
        one_objective: whether the pre-trained model can be asked the queries, as single-stage influence needs; it has
            their unembedding then, which "layers only" leaves out.
    """
    return [
        *_multi_stage(),
        *_other_dampings(),
        *_along_training(),
        *_normed_and_measured(),
        *_with_prior(),
        *_with_everything(),
        _with_solver(),
        *((*_held_out(), *_vocabularies(), *_layers_only(), *_single_stage()) if one_objective else ()),
        Method(GDP, scorer=staged("gdp"), removed=True),
        Method("gradient cosine", scorer=staged("cosine"), removed=True),
        Method(f"{GDP}, everything", scorer=staged("gdp", stage=attrgetter("everything"))),
        Method("TRAK", "0.1 mean", scorer=_trak),
        Method("LoGra", "0.1 mean", scorer=_logra),
        *_trackstar(),
        *_multi_stage_index(),
        Method("representation similarity", scorer=staged("representation")),
        Method("BM25+", search=search_by_words, removed=True),
        Method("sentence embeddings", search=embedding_scores),
        Method("random", scorer=random_order, main=False),
    ]


def staged(
    method: str,
    damping: Damping | None = None,
    ihvp: IHVP | None = None,
    stage: Callable[[Model], FittedStage] = attrgetter("stage"),
    **options: Any,
) -> Callable[[Member], Scorer]:
    """By a method of the library, over the maps that ``stage`` tracks."""

    def scorer(m: Member) -> Scorer:
        last = None if method == "single-stage" else stage(m.finetuned)
        return build_scorer(method, stage(m.pretrained), last, damping, ihvp, **options)

    return scorer


def _multi_stage() -> Iterator[Method]:
    yield Method(MULTI_STAGE, DEFAULT_DAMPING, scorer=_by_default(), removed=True)


def _by_default(**options: Any) -> Callable[[Member], Scorer]:
    return staged("multi-stage", Damping(alpha="auto"), **options)


def _other_dampings() -> Iterator[Method]:
    yield Method(MULTI_STAGE, "0.1 mean", scorer=staged("multi-stage", Damping()), main=False)
    yield Method(MULTI_STAGE, "1/τ", scorer=staged("multi-stage", Damping("auto")), main=False)
    for value in SWEEP:
        yield Method(MULTI_STAGE, f"{value:g}", scorer=staged("multi-stage", Damping(value)), main=False)
    for scale in SCALES:
        damped = staged("multi-stage", Damping(damping_scale=scale, alpha="auto"))
        yield Method(MULTI_STAGE, f"{scale:g} mean, α = 1/τ", scorer=damped, main=False)
    for times in (0.1, 10.0):
        other = f"auto:{times:g}"
        of_stages = {"pre-training": Damping(other, alpha="auto"), "fine-tuning": Damping("auto", alpha=other)}
        for title, damping in of_stages.items():
            shown = f"1/τ, {times:g} times that of {title}"
            yield Method(MULTI_STAGE, shown, scorer=staged("multi-stage", damping), main=False)
    for scale, times in itertools.product((0.1, 1.0), PULLS):
        damped = staged("multi-stage", Damping(damping_scale=scale, alpha=f"auto:{times:g}"))
        yield Method(MULTI_STAGE, f"{scale:g} mean, α = {times:g}/τ", scorer=damped, main=(scale, times) == (1.0, 10.0))
    yield Method(MULTI_STAGE, "0.1 mean, no hop", scorer=without_hop)
    kept = partial(_hopping, _proximal_hop)
    yield Method(MULTI_STAGE, "0.1 mean, α/(Λ + α) with α = 1/τ of each block", scorer=kept, main=False)


Hop = Callable[[FittedStage, Sequence[str]], "list[Preconditioner]"]
"""From fine-tuning and the names of the maps that both stages share to what it does to a query's vector."""


def _hopping(
    hop: Hop, m: Member, stage: Callable[[Model], FittedStage] = attrgetter("stage"), ihvp: IHVP | None = None
) -> Scorer:
    """Pre-training's inverse at the usual damping, EK-FAC's if no other is given, and a hop."""
    first, last, ihvp = stage(m.pretrained), m.finetuned.stage, ihvp or IHVP()
    inverse = ihvp.build(first.side, factors_of(first, "pretrained"), Damping().first(first.tau), first.batches)
    names = [module.name for module in first.side.tracked]
    return InfluenceScorer(last.side, first.side, [inverse, *hop(last, names)])


def without_hop(m: Member) -> Scorer:
    """The limit of a large α, the same in all blocks."""
    return _hopping(lambda *_: [], m)


def _usual_hop(stage: FittedStage, names: Sequence[str]) -> list[Preconditioner]:
    return [later_stage(stage, names, Damping(alpha="auto"), IHVP())]


def _proximal_hop(stage: FittedStage, names: Sequence[str]) -> list[Preconditioner]:
    """With the factor α, which is no constant where each block has its own."""
    assert stage.tau is not None
    return [EKFAC(factors_of(stage, "finetuned"), ProximalHop({name: 1 / tau for name, tau in stage.tau.items()}))]


def _along_training() -> Iterator[Method]:
    """SOURCE's filters, the checkpoints of pre-training, and more trainings of the last stage."""
    yield Method(SOURCE, scorer=staged("source"))
    yield Method(SEGMENTED, scorer=staged("source", stage=attrgetter("in_segments")))
    yield Method(f"{MULTI_STAGE}, mean of checkpoints", DEFAULT_DAMPING, scorer=_mean_of_checkpoints, main=False)
    name = f"{MULTI_STAGE}, mean of {FINETUNINGS} fine-tunings"
    yield Method(name, DEFAULT_DAMPING, scorer=_finetuned_several_times, main=False)


def _mean_of_checkpoints(m: Member) -> Scorer:
    """Documents and their curvature on each checkpoint of pre-training."""
    parts = m.pretrained.in_segments.parts
    damping = Damping(alpha="auto")
    return EnsembleScorer([build_scorer("multi-stage", part, m.finetuned.stage, damping) for part in parts])


def _finetuned_several_times(m: Member) -> Scorer:
    """The pre-trained model is one; who explains a model can often fine-tune again, and seldom pre-train."""
    last = [m.finetuned, *(m.again(number) for number in range(1, FINETUNINGS))]
    return EnsembleScorer([staged("multi-stage", Damping(alpha="auto"))(replace(m, finetuned=one)) for one in last])


def _normed_and_measured() -> Iterator[Method]:
    yield Method(UNIT, DEFAULT_DAMPING, scorer=_by_default(normalize="unit"))
    for measurement in ("margin", "logit"):
        scorer = _by_default(measurement=measurement)
        yield Method(f"{MULTI_STAGE}, of the {measurement}", DEFAULT_DAMPING, scorer=scorer, main=False)


def _with_prior() -> Iterator[Method]:
    """What search says beside influence."""
    for weight in PRIORS:
        likeliest = weight == 0.5
        given: dict[str, Any] = {"prior": weight, "main": likeliest, "removed": likeliest}
        yield Method(f"{MULTI_STAGE}, prior bm25:{weight:g}", DEFAULT_DAMPING, scorer=_by_default(), **given)
        yield Method(f"{UNIT}, prior bm25:{weight:g}", DEFAULT_DAMPING, scorer=_by_default(normalize="unit"), **given)
    pulled = staged("multi-stage", Damping(damping_scale=1.0, alpha="auto:10"), normalize="unit")
    yield Method(f"{UNIT}, prior bm25:0.5", PULLED, scorer=pulled, prior=0.5)


def _with_solver(name: str = "", stage: Callable[[Model], FittedStage] = attrgetter("stage")) -> Method:
    """Pre-training's curvature by CG, from EK-FAC's answer on; that of fine-tuning is EK-FAC's."""
    solver = IHVP("ekfac-cg", iterations=CG_PRODUCTS, tolerance=CG_TOLERANCE)
    settings = {"products": CG_PRODUCTS, "tolerance": CG_TOLERANCE}
    return Method(
        SOLVED + name,
        DEFAULT_DAMPING,
        scorer=partial(_hopping, _usual_hop, stage=stage, ihvp=solver),
        dear=True,
        settings=settings,
    )


def _held_out() -> Iterator[Method]:
    """Pre-training's curvature of sentences that no training saw."""
    name, stage = ", curvature of held-out data", attrgetter("held_out_stage")
    yield Method(MULTI_STAGE + name, DEFAULT_DAMPING, scorer=partial(_hopping, _usual_hop, stage=stage), main=False)
    yield _with_solver(name, stage)


def _with_everything() -> Iterator[Method]:
    """With embeddings and norms."""
    family, everything = f"{MULTI_STAGE}, everything", attrgetter("everything")
    yield Method(family, DEFAULT_DAMPING, scorer=staged("multi-stage", Damping(alpha="auto"), stage=everything))
    for value in (1e-5, 1e-3):
        yield Method(family, f"{value:g}", scorer=staged("multi-stage", Damping(value), stage=everything), main=False)


def _vocabularies() -> Iterator[Method]:
    """With other bases of the unembedding's rows than the identity."""
    for basis in ("blocks:8", "dense"):
        damped = staged("multi-stage", Damping(alpha="auto"), stage=methodcaller("with_vocabulary", basis))
        yield Method(f"{MULTI_STAGE}, vocabulary {basis}", DEFAULT_DAMPING, scorer=damped, main=False)


def _layers_only() -> Iterator[Method]:
    """Without the unembedding."""
    layers = attrgetter("layers")
    default = staged("multi-stage", Damping(alpha="auto"), stage=layers)
    yield Method(f"{MULTI_STAGE}, layers only", DEFAULT_DAMPING, scorer=default)
    yield Method(f"{GDP}, layers only", scorer=staged("gdp", stage=layers), main=False)


def _single_stage() -> Iterator[Method]:
    yield Method("single-stage EK-FAC", "0.1 mean", scorer=staged("single-stage", Damping()))
    yield Method("single-stage EK-FAC", "1/τ", scorer=staged("single-stage", Damping("auto")), main=False)


def _trak(m: Member) -> Scorer:
    """A projection of its own for each member, as in the paper."""
    projection = replace(TRAK_PROJECTION, seed=m.number)
    return build_scorer("trak", m.pretrained.stage, m.finetuned.stage, projection=projection)


def _logra(m: Member) -> Scorer:
    projection = replace(LOGRA_PROJECTION, seed=m.number)
    return build_scorer("logra", m.pretrained.stage, m.finetuned.stage, projection=projection)


def _trackstar() -> Iterator[Method]:
    settings = PROJECTED_GRADIENTS.to_json()
    yield Method("TrackStar", scorer=TrackStarScorer, settings=settings)
    variants: dict[str, dict[str, Any]] = {
        "R of documents": {"r": "train"},
        "without R": {"r": "none"},
        "without R and V": {"r": "none", "moments": False},
        "16 × 16 features": {"settings": replace(PROJECTED_GRADIENTS, projection=16)},
    }
    for name, changes in variants.items():
        yield Method(f"TrackStar, {name}", scorer=partial(TrackStarScorer, **changes), main=False, settings=settings)


def _multi_stage_index() -> Iterator[Method]:
    """By the number of features of a block, of which one layer has two, and the unembedding."""
    for basis in BASES:
        for size in INDEX_PROJECTIONS:
            scorer = partial(MultiStageIndexScorer, projection=size, basis=basis)
            yield Method(f"multi-stage index, {size} × {size} {basis} features", scorer=scorer, main=False)


def random_order(m: Member) -> Scorer:
    """An order of its own for each member."""
    return build_scorer("random", m.pretrained.stage, m.finetuned.stage, seed=m.number)


def _beside(weight: float, scores: np.ndarray, lexical: np.ndarray) -> np.ndarray:
    """Both (Q, N)."""
    sides = [Prior(weight).beside(*pair) for pair in zip(scores, lexical, strict=True)]
    return np.stack([scale * own + added for own, (scale, added) in zip(scores, sides, strict=True)])


def member_scores(method: Method, world: TwoStage, member: Member, asked: Asked) -> np.ndarray:
    """(Q, N), of finite numbers."""
    if method.search:
        scores = method.search(asked.texts, world.texts)
    else:
        queries = world.query_batches(asked.examples)
        scores = method.build(member).score(queries, world.pretraining_batches()).values.astype(np.float64)
    if method.prior is not None:
        scores = _beside(method.prior, scores, search_by_words(asked.texts, world.texts))
    assert scores.shape == (len(asked.examples), len(world.texts)) and np.isfinite(scores).all(), method.name
    return scores
