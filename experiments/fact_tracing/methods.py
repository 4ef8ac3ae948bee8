"""Every method by name, at every damping."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from typing import Any, Literal

from experiments.common.evidence import by_evidence
from experiments.common.methods import Method
from experiments.common.refitted import moved_stages, refitted
from experiments.common.search import embedding_scores, search_by_words
from experiments.fact_tracing.models import Models, Tracking, Which
from experiments.fact_tracing.options import Options
from experiments.facts.reading import Pair
from msif.attribution import logra, trak
from msif.attribution.damping import Damping
from msif.attribution.halves import Halves
from msif.attribution.inverses import IHVP
from msif.attribution.scorers import EnsembleScorer, InfluenceScorer, Scorer
from msif.attribution.stages import build_scorer
from msif.curvature.fit import FitSettings
from msif.curvature.preconditioners import EKFAC
from msif.errors import MsifError
from msif.models.training import training_is_known

logger = logging.getLogger(__name__)

MULTI_STAGE, SINGLE_STAGE, GDP = "multi-stage EK-FAC", "single-stage EK-FAC", "multi-stage GDP"
SOURCE, CG = f"{MULTI_STAGE}, SOURCE filters", "multi-stage, EK-FAC-preconditioned CG"
WHICH: tuple[Which, Which] = ("pretrained", "finetuned")
WITH_UNEMBEDDING = f"{MULTI_STAGE}, with unembedding, α = 1/τ"
CG_TOLERANCE = 1e-4
MIDDLE = Halves(1, 0.3)
NOISY = (Halves(4, 0.0, noise=1.0), Halves(4, 0.3, noise=1.0))
"""Models as of other first weights."""


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
    made = [method for name, make in REGISTRY.items() if name in names for method in make(options)]
    return list({method.key: method for method in made}.values())  # a damping may be given twice


def possible(methods: Sequence[Method], pair: Pair) -> tuple[list[Method], list[str]]:
    """The methods that a pair allows, and the names of those that read τ of a training that is not known.

    Raises:
        MsifError: none is left.
    """
    known = training_is_known(pair.pretrained) and training_is_known(pair.finetuned)
    left_out = [method.name for method in methods if method.tau and not known]
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


def _multi_stage(
    options: Options,
    damping: str,
    family: str = MULTI_STAGE,
    *,
    tracking: Tracking = "heads",
    measurement: str = "loss",
    alpha: Literal["auto", "evidence"] | None = None,
    **near: Any,
) -> Method:
    tau = "auto" in (damping, alpha)

    def scorer(models: Models) -> Scorer:
        stages = [models.fitted(which, tracking, tau=tau) for which in WHICH]
        if alpha == "evidence":
            stages[1] = by_evidence(stages[1], stages[0])
        both = replace(damping_of(damping), alpha=alpha)
        return build_scorer("multi-stage", *stages, both, measurement=measurement, **near)

    settings = {"tracking": tracking, "measurement": measurement, "alpha": alpha}
    settings |= {name: str(value) for name, value in near.items()}
    return _damped(options, family, damping, scorer, tau, settings)


def _damped(
    options: Options,
    family: str,
    damping: str,
    scorer: Callable[[Models], Scorer],
    tau: bool,
    settings: Mapping[str, Any],
    dear: bool = False,
) -> Method:
    settings = {**settings, "damping": damping, "fit": asdict(options.fit)}
    return Method(family, shown(damping), scorer=scorer, dear=dear, tau=tau, settings=settings)


def _sweep(options: Options) -> Iterator[Method]:
    for damping in options.dampings:
        yield _multi_stage(options, damping)


def _single_stage(
    options: Options, damping: str, family: str, *, which: Which = "pretrained", tracking: Tracking = "heads"
) -> Method:
    tau = damping == "auto"

    def scorer(models: Models) -> Scorer:
        return build_scorer("single-stage", models.fitted(which, tracking, tau=tau), None, damping_of(damping))

    return _damped(options, family, damping, scorer, tau, {"which": which, "tracking": tracking})


def _single(which: Which, family: str) -> Callable[[Options], Iterator[Method]]:
    return lambda options: (_single_stage(options, damping, family, which=which) for damping in options.dampings)


def _source(options: Options) -> Iterator[Method]:
    def scorer(models: Models) -> Scorer:
        return build_scorer("source", *(models.fitted(which, tau=True) for which in WHICH))

    yield Method(SOURCE, "τ", scorer=scorer, tau=True, settings={"fit": asdict(options.fit)})


def _cg(options: Options) -> Iterator[Method]:
    cg = options.cg
    for damping in cg.dampings:
        tau = damping == "auto"

        def scorer(models: Models, damping: str = damping, tau: bool = tau) -> Scorer:
            stages = [models.solved(which, cg.examples, tau=tau) for which in WHICH]
            ihvp = IHVP("ekfac-cg", iterations=cg.iterations, tolerance=CG_TOLERANCE)
            return build_scorer("multi-stage", *stages, damping_of(damping), ihvp)

        settings = {"iterations": cg.iterations, "examples": cg.examples}
        yield _damped(options, CG, damping, scorer, tau, settings, dear=True)


def _no_hop(options: Options) -> Iterator[Method]:
    """The inverse of pre-training alone, as if fine-tuning passed every displacement on."""
    for damping in options.other_dampings:
        tau = damping == "auto"

        def scorer(models: Models, damping: str = damping, tau: bool = tau) -> Scorer:
            first = models.fitted("pretrained", tau=tau)
            assert first.factors is not None
            stages = [EKFAC(first.factors, damping_of(damping).first(first.tau))]
            return InfluenceScorer(models.stage("finetuned").side, first.side, stages)

        yield _damped(options, "pre-training inverse only, EK-FAC", damping, scorer, tau, {})


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
    yield _unfitted("gdp", f"{GDP}, with unembedding", tracking="unembedding")


def _evidence(options: Options) -> Iterator[Method]:
    """α of which no file has to tell."""
    for damping in options.other_dampings:
        family = f"{MULTI_STAGE}, with unembedding, α of the evidence"
        yield _multi_stage(options, damping, family, tracking="unembedding", alpha="evidence")


def _halves(options: Options) -> Iterator[Method]:
    """The last, with α, at a model moved to the middle of trainings on halves (``msif.attribution.halves``)."""
    for damping in options.other_dampings:
        family = f"{WITH_UNEMBEDDING}, halves {MIDDLE.count}"
        yield _multi_stage(options, damping, family, tracking="unembedding", alpha="auto", halves=MIDDLE)


def _noise(options: Options) -> Iterator[Method]:
    """At models as of other first weights, alone and beside the step towards halves."""
    for halves in NOISY:
        yield from _nearby(options, halves)


def _nearby(options: Options, halves: Halves) -> Iterator[Method]:
    """By the factors of the models themselves, by those of the moved ones, and without any."""
    shown, settings = f"halves {halves}", {"halves": str(halves)}

    def stages(models: Models) -> Iterator[Any]:
        return moved_stages(*(models.fitted(which, "unembedding", tau=True) for which in WHICH), halves)

    def dot_products(models: Models) -> Scorer:
        return EnsembleScorer([build_scorer("gdp", *both) for both in stages(models)])

    for damping in options.other_dampings:
        yield _multi_stage(
            options, damping, f"{WITH_UNEMBEDDING}, {shown}", tracking="unembedding", alpha="auto", halves=halves
        )

        def own(models: Models, damping: str = damping) -> Scorer:
            fit = FitSettings(label_samples=options.fit.label_samples, seed=options.fit.seed)
            both = [[refitted(stage, fit) for stage in moved] for moved in stages(models)]
            asked = replace(damping_of(damping), alpha="auto")
            return EnsembleScorer([build_scorer("multi-stage", *moved, asked) for moved in both])

        yield _damped(options, f"{WITH_UNEMBEDDING}, {shown}, own factors", damping, own, True, settings)
    yield Method(f"{GDP}, with unembedding, {shown}", scorer=dot_products, tau=True, settings=settings)


def _unfitted(method: str, family: str, damping: str = "", tracking: Tracking = "heads", **options: Any) -> Method:
    """By a method of the library that needs no factors."""

    def scorer(models: Models) -> Scorer:
        return build_scorer(method, *(models.stage(which, tracking) for which in WHICH), **options)

    return Method(family, damping, scorer=scorer, settings={"options": repr(options)})


def _representations(options: Options) -> Iterator[Method]:
    for which, title in (("finetuned", "fine-tuned"), ("pretrained", "pre-trained")):

        def scorer(models: Models, which: Which = which) -> Scorer:
            return build_scorer("representation", models.stage(which), None)

        yield Method(f"representation similarity, {title} model", scorer=scorer)


def _embedding(options: Options) -> Iterator[Method]:
    model = options.embedding_model
    yield Method("sentence embeddings", search=partial(embedding_scores, model=model), settings={"model": model})


def _trak(options: Options) -> Iterator[Method]:
    """Q is applied token by token."""
    projection = replace(trak.DEFAULT_PROJECTION, seed=options.seed)
    yield _unfitted("trak", "TRAK, one checkpoint", "0.1 mean", projection=projection)


def _logra(options: Options) -> Iterator[Method]:
    yield _unfitted("logra", "LoGra", "0.1 mean", projection=replace(logra.DEFAULT_PROJECTION, seed=options.seed))


REGISTRY: dict[str, Callable[[Options], Iterator[Method]]] = {
    "multi-stage": _sweep,
    "alpha": _alpha,
    "single-stage": _single("pretrained", SINGLE_STAGE),
    "single-stage-finetuned": _single("finetuned", f"{SINGLE_STAGE}, fine-tuned model"),
    "source": _source,
    "cg": _cg,
    "no-hop": _no_hop,
    "gdp": lambda options: iter([_unfitted("gdp", GDP)]),
    "measurements": _measurements,
    "whole-heads": _whole_heads,
    "unembedding": _unembedding,
    "halves": _halves,
    "noise": _noise,
    "evidence": _evidence,
    "representation": _representations,
    "bm25": lambda options: iter([Method("BM25+", search=search_by_words)]),
    "embedding": _embedding,
    "trak": _trak,
    "logra": _logra,
    "random": lambda options: iter([_unfitted("random", "random order", seed=options.seed)]),
}
DEFAULT_METHODS = tuple(name for name in REGISTRY if name != "single-stage-finetuned")
