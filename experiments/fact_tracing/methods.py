"""Every method by name, at every damping."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any, Literal

import numpy as np

from experiments.common.search import (
    bm25_scores,
    embedding_scores,
)
from experiments.fact_tracing.candidates import Ranking, rng
from experiments.fact_tracing.models import Models, Tracking, Which
from experiments.fact_tracing.options import Options
from experiments.fact_tracing.projected import logra_scores, trak_scores
from experiments.facts.reading import Pair
from msif.attribution.inverses import IHVP
from msif.attribution.scorers import InfluenceScorer, PairScorer
from msif.attribution.stages import Damping, build_scorer
from msif.curvature.preconditioners import EKFAC
from msif.errors import MsifError
from msif.models.training import training_is_known

logger = logging.getLogger(__name__)

MULTI_STAGE, SINGLE_STAGE, GDP = "multi-stage EK-FAC", "single-stage EK-FAC", "multi-stage GDP"
SOURCE, CG = f"{MULTI_STAGE}, SOURCE filters", "multi-stage, EK-FAC-preconditioned CG"
WHICH: tuple[Which, Which] = ("pretrained", "finetuned")
WITH_UNEMBEDDING = f"{MULTI_STAGE}, with unembedding, α = 1/τ"
CG_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Method:
    """
    Attributes:
        name: of its file; unique.
        family: methods of one family differ by damping only.
        damping: as it is shown; None where there is none.
        settings: all that its scores depend on, beside models, data and candidates.
    """

    name: str
    family: str
    damping: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Influence(Method):
    """⟨v, ∇L(z)⟩, scored in passes that many methods share.

    Attributes:
        scorer: from the models to what makes the query vectors.
        facts: only so many of each trial; None is all.
        separable: whether modules do not mix in v, so that each kind of module has scores of its own.
        tau: whether it reads τ of the stages, for which their training must be known.
    """

    scorer: Callable[[Models], InfluenceScorer] = field(kw_only=True)
    facts: int | None = None
    separable: bool = True
    tau: bool = False


@dataclass(frozen=True)
class Baseline(Method):
    """Anything else: ``scores`` gives "score/all", (Q, N), and "norm/all" where candidates have one."""

    scores: Callable[[Models, Ranking], dict[str, np.ndarray]] = field(kw_only=True)


def methods_named(names: Sequence[str], options: Options) -> list[Method]:
    """The methods of these names, in the order of the registry.

    Raises:
        MsifError: an unknown name, or a damping that is none.
    """
    unknown = [name for name in names if name not in REGISTRY]
    if unknown:
        raise MsifError(f"there is no method '{unknown[0]}': choose among {', '.join(REGISTRY)}.")
    for damping in (*options.dampings, *options.other_dampings, *options.cg.dampings):
        damping_of(damping)
    return [method for name, make in REGISTRY.items() if name in names for method in make(options)]


def possible(methods: Sequence[Method], pair: Pair) -> tuple[list[Method], list[str]]:
    """The methods that a pair allows, and the names of those that read τ of a training that is not known.

    Raises:
        MsifError: none is left.
    """
    known = training_is_known(pair.pretrained) and training_is_known(pair.finetuned)
    left_out = [method.name for method in methods if isinstance(method, Influence) and method.tau and not known]
    if left_out:
        logger.warning(
            "Left out, for %s or %s has no trainer_state.json and optimizer.pt beside it, from which 1/τ is read: %s",
            *(pair.pretrained, pair.finetuned, ", ".join(left_out)),
        )
    kept = [method for method in methods if method.name not in left_out]
    if not kept:
        raise MsifError("no method is left, for the training of this pair is not known: name others with --methods.")
    return kept, left_out


def damping_of(text: str) -> Damping:
    """λ of every stage, from the command line's word: "0.001", "0.1mean" (of a block's Λ) or "auto".

    Raises:
        MsifError: it is none of them.
    """
    if text == "auto":
        return Damping("auto")
    number = text.removesuffix("mean")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise MsifError(f"'{text}' is no damping: give a number above 0, a multiple such as 0.1mean, or auto.")
    return Damping(value) if number == text else Damping(damping_scale=value)


def shown(text: str) -> str:
    """A damping as tables show it."""
    if text == "auto":
        return "1/τ"
    number = text.removesuffix("mean")
    return f"{float(number):g}" + (" mean" if number != text else "")


def file_name(family: str, damping: str) -> str:
    """Of a method that is swept."""
    return re.sub(r"[^\w.]+", "-", f"{family} {damping}")


def _influence(scorer: PairScorer) -> InfluenceScorer:
    assert isinstance(scorer, InfluenceScorer)
    return scorer


def _multi_stage(
    options: Options,
    damping: str,
    family: str = MULTI_STAGE,
    *,
    tracking: Tracking = "heads",
    measurement: str = "loss",
    alpha: Literal["auto"] | None = None,
) -> Influence:
    tau = "auto" in (damping, alpha)

    def scorer(models: Models) -> InfluenceScorer:
        stages = [models.fitted(which, tracking, tau=tau) for which in WHICH]
        both = replace(damping_of(damping), alpha=alpha)
        return _influence(build_scorer("multi-stage", *stages, both, measurement=measurement))

    name = file_name(family, damping)
    settings = {"damping": damping, "tracking": tracking, "measurement": measurement, "alpha": alpha}
    settings["fit"] = asdict(options.fit)
    return Influence(name, family, shown(damping), settings, scorer=scorer, tau=tau)


def _sweep(options: Options) -> Iterator[Method]:
    for damping in options.dampings:
        yield _multi_stage(options, damping)


def _single_stage(
    options: Options, damping: str, family: str, *, which: Which = "pretrained", tracking: Tracking = "heads"
) -> Influence:
    tau = damping == "auto"

    def scorer(models: Models) -> InfluenceScorer:
        stage = models.fitted(which, tracking, tau=tau)
        return _influence(build_scorer("single-stage", stage, None, damping_of(damping)))

    settings = {"damping": damping, "which": which, "tracking": tracking, "fit": asdict(options.fit)}
    return Influence(file_name(family, damping), family, shown(damping), settings, scorer=scorer, tau=tau)


def _single(which: Which, family: str) -> Callable[[Options], Iterator[Method]]:
    return lambda options: (_single_stage(options, damping, family, which=which) for damping in options.dampings)


def _source(options: Options) -> Iterator[Method]:
    def scorer(models: Models) -> InfluenceScorer:
        return _influence(build_scorer("source", *(models.fitted(which, tau=True) for which in WHICH)))

    yield Influence("multi-stage-source", SOURCE, "τ", {"fit": asdict(options.fit)}, scorer=scorer, tau=True)


def _cg(options: Options) -> Iterator[Method]:
    cg = options.cg
    for damping in cg.dampings:

        def scorer(models: Models, damping: str = damping) -> InfluenceScorer:
            stages = [models.solved(which, cg.examples, tau=damping == "auto") for which in WHICH]
            ihvp = IHVP("ekfac-cg", iterations=cg.iterations, tolerance=CG_TOLERANCE)
            return _influence(build_scorer("multi-stage", *stages, damping_of(damping), ihvp))

        solved = {"facts": cg.facts, "iterations": cg.iterations, "examples": cg.examples}
        settings = {"damping": damping, "cg": solved, "fit": asdict(options.fit)}
        few = {"facts": cg.facts, "separable": False, "tau": damping == "auto"}
        yield Influence(file_name(CG, damping), CG, shown(damping), settings, scorer=scorer, **few)


def _gdp(options: Options) -> Iterator[Method]:
    def scorer(models: Models) -> InfluenceScorer:
        return _influence(build_scorer("gdp", models.stage("pretrained"), models.stage("finetuned")))

    yield Influence("gdp", GDP, scorer=scorer)


def _no_hop(options: Options) -> Iterator[Method]:
    """The inverse of pre-training alone, as if fine-tuning passed every displacement on."""
    family = "pre-training inverse only, EK-FAC"
    for damping in options.other_dampings:

        def scorer(models: Models, damping: str = damping) -> InfluenceScorer:
            first = models.fitted("pretrained", tau=damping == "auto")
            assert first.factors is not None
            stages = [EKFAC(first.factors, damping_of(damping).first(first))]
            return InfluenceScorer(models.stage("finetuned").side, first.side, stages)

        settings = {"damping": damping, "fit": asdict(options.fit)}
        tau = damping == "auto"
        yield Influence(file_name(family, damping), family, shown(damping), settings, scorer=scorer, tau=tau)


def _alpha(options: Options) -> Iterator[Method]:
    """With the pull towards the pre-trained parameters that the command line takes where the training is known."""
    for damping in options.other_dampings:
        yield _multi_stage(options, damping, f"{MULTI_STAGE}, α = 1/τ", alpha="auto")


def _measurements(options: Options) -> Iterator[Method]:
    for measurement, damping in product(("margin", "logit"), options.other_dampings):
        yield _multi_stage(options, damping, f"{MULTI_STAGE}, {measurement}", measurement=measurement)


def _whole_heads(options: Options) -> Iterator[Method]:
    for damping in options.other_dampings:
        yield _multi_stage(options, damping, f"{MULTI_STAGE}, heads not split", tracking="whole-heads")


def _unembedding(options: Options) -> Iterator[Method]:
    """Where tokens meet hidden states, which `--modules all` leaves out for its size."""
    for damping in options.other_dampings:
        yield _multi_stage(options, damping, f"{MULTI_STAGE}, with unembedding", tracking="unembedding")
        yield _multi_stage(options, damping, WITH_UNEMBEDDING, tracking="unembedding", alpha="auto")
        yield _single_stage(options, damping, f"{SINGLE_STAGE}, with unembedding", tracking="unembedding")

    def gdp(models: Models) -> InfluenceScorer:
        stages = [models.stage(which, "unembedding") for which in WHICH]
        return _influence(build_scorer("gdp", *stages))

    yield Influence("gdp-with-unembedding", f"{GDP}, with unembedding", scorer=gdp)


def _representations(options: Options) -> Iterator[Method]:
    for which, title in (("finetuned", "fine-tuned"), ("pretrained", "pre-trained")):

        def scores(models: Models, ranking: Ranking, which: Which = which) -> dict[str, np.ndarray]:
            scorer = build_scorer("representation", models.stage(which), None)
            found = scorer.score(models.queries(ranking.asked), models.sentences(ranking.rows))
            return {"score/all": found.values}

        yield Baseline(f"representation-{which}", f"representation similarity, {title} model", scores=scores)


def _bm25(options: Options) -> Iterator[Method]:
    def scores(models: Models, ranking: Ranking) -> dict[str, np.ndarray]:
        found = bm25_scores([fact.text for fact in ranking.asked], models.pair.texts)
        return {"score/all": found[:, ranking.rows]}

    yield Baseline("bm25", "BM25+", scores=scores)


def _embedding(options: Options) -> Iterator[Method]:
    def scores(models: Models, ranking: Ranking) -> dict[str, np.ndarray]:
        queries = [fact.text for fact in ranking.asked]
        texts = [models.pair.texts[row] for row in ranking.rows]
        return {"score/all": embedding_scores(queries, texts, options.embedding_model)}

    yield Baseline("embedding", "sentence embeddings", settings={"model": options.embedding_model}, scores=scores)


def _trak(options: Options) -> Iterator[Method]:
    settings = {"seed": options.seed}
    yield Baseline("trak", "TRAK, one checkpoint", "0.1 mean", settings, scores=partial(trak_scores, seed=options.seed))


def _logra(options: Options) -> Iterator[Method]:
    settings = {"seed": options.seed}
    yield Baseline("logra", "LoGra", "0.1 mean", settings, scores=partial(logra_scores, seed=options.seed))


def _random(options: Options) -> Iterator[Method]:
    def scores(models: Models, ranking: Ranking) -> dict[str, np.ndarray]:
        return {"score/all": rng(options.seed, 3, 0).random((len(ranking.asked), len(ranking.rows)))}

    yield Baseline("random", "random order", settings={"seed": options.seed}, scores=scores)


REGISTRY: dict[str, Callable[[Options], Iterator[Method]]] = {
    "multi-stage": _sweep,
    "alpha": _alpha,
    "single-stage": _single("pretrained", SINGLE_STAGE),
    "single-stage-finetuned": _single("finetuned", f"{SINGLE_STAGE}, fine-tuned model"),
    "source": _source,
    "cg": _cg,
    "no-hop": _no_hop,
    "gdp": _gdp,
    "measurements": _measurements,
    "whole-heads": _whole_heads,
    "unembedding": _unembedding,
    "representation": _representations,
    "bm25": _bm25,
    "embedding": _embedding,
    "trak": _trak,
    "logra": _logra,
    "random": _random,
}
DEFAULT_METHODS = tuple(name for name in REGISTRY if name != "single-stage-finetuned")
