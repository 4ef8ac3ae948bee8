"""From the name of a method and two models to a scorer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from inspect import signature
from typing import Any

from torch import Tensor

from msif.attribution.cka import CKAScorer
from msif.attribution.damping import Damping
from msif.attribution.gradients import Side
from msif.attribution.halves import Halves, HalvesScorer, as_halves, foretold
from msif.attribution.hops import build_hop
from msif.attribution.inverses import IHVP
from msif.attribution.logra import LoGraScorer
from msif.attribution.methods import DAMPED, INDEXED, METHODS, PROJECTED, SOLVERS
from msif.attribution.moves import apart
from msif.attribution.random_order import RandomScorer
from msif.attribution.representation import RepresentationScorer
from msif.attribution.scorers import InfluenceScorer, PairScorer
from msif.attribution.segments import SegmentedScorer
from msif.attribution.trak import TRAKCheckpoint, TRAKOptions
from msif.curvature.factors import Factors
from msif.curvature.filters import Accumulation, Decay, Scale
from msif.curvature.preconditioners import EKFAC, Preconditioner
from msif.curvature.store import FactorStore
from msif.errors import MsifError
from msif.models.adapted import Adapted
from msif.models.blocks import TrackedModule
from msif.models.loading import LoadedModel
from msif.models.select import match_modules


@dataclass(frozen=True)
class FittedStage:
    """One stage of training: its model as a side of an influence, its factors, and the natural scale of its damping.

    Attributes:
        tau: module name -> τ of each block, (nb,), for damping by a name; see ``msif.natural_tau`` and
            ``msif.evidence_tau``. With ``adapter`` those
            of its parameters, see ``adapter_tau``.
        batches: the stage's own training data, for an inverse that is solved for on it, or the hop of an adapter.
        adapter: what was trained, where the stage is to be taken as an adapter's and not as a training of all weights.
        segments: for method "source" a stage for each segment of the training, in order, whose τ are the segment's.
    """

    side: Side
    factors: Factors | None = None
    tau: Mapping[str, Tensor] | None = None
    batches: Iterable[Any] | None = None
    adapter: Adapted | None = None
    segments: Sequence[FittedStage] = ()

    @property
    def parts(self) -> Sequence[FittedStage]:
        """The segments of its training, or the whole of it as one."""
        return self.segments or [self]


def build_scorer(
    method: str,
    pretrained: FittedStage | None,
    finetuned: FittedStage | None,
    damping: Damping | None = None,
    ihvp: IHVP | None = None,
    **options: Any,
) -> PairScorer:
    """A scorer by name.

    multi-stage: ∇m(q; θ_ft)ᵀ (H_ft + (α + λ) I)⁻¹ (H_pt + λ I)⁻¹ ∇L(z; θ_pt), or with an adapter its hop in the place
    of the first inverse (``AdapterHop``).
    single-stage: ∇m(q; θ)ᵀ (H + λ I)⁻¹ ∇L(z; θ) on the pre-trained model, or on the only one given.
    source: ∇m(q; θ_ft)ᵀ exp(−τ_ft H_ft) (1 − exp(−τ_pt H_pt)) H_pt⁻¹ ∇L(z; θ_pt), without a damping (Bae et al. 2024,
    arXiv 2405.12186), or the second factor of the only stage given; by ``SegmentedScorer`` where stages have segments.
    gdp: ∇m(q; θ_ft)ᵀ ∇L(z; θ_pt). cosine: the same of unit vectors.
    cka: linear CKA of the same two gradients (``CKAScorer``). trak, logra: φ_m(q; θ_ft)ᵀ (K + λI)⁻¹ φ_L(z; θ_pt) of
    projected gradients (``TRAKCheckpoint``, ``LoGraScorer``), K from the batches of the candidates' stage.
    representation: cosine of mean hidden states of the last model (``RepresentationScorer``). random: a random order.

    Args:
        damping: of trak and logra only the number λ is read.
        ihvp: how each stage's inverse is applied; EK-FAC by default.
        options: passed on to the scorer: ``InfluenceScorer``, ``CKAScorer``, ``LoGraScorer``, ``RandomScorer``, or for
            trak ``TRAKOptions`` and a ``projection``. Of multi-stage and single-stage also ``halves``, see
            ``HalvesScorer``, for which the first stage needs its ``tau`` and, but for noise alone, ``batches``.

    Raises:
        MsifError: an unknown method, or one that needs a model or factors that are not given.
    """
    damping, ihvp = damping or Damping(), ihvp or IHVP()
    if method not in METHODS:
        raise MsifError(f"there is no method '{method}': choose one of {', '.join(METHODS)}.")
    if method in INDEXED:
        raise MsifError(f"method '{method}' scores by an index: give it to msif.attribute, or use its IndexScorer.")
    for option in sorted(options.keys() - _options_of(method)):
        known = ", ".join(sorted(_options_of(method)))
        raise MsifError(f"method '{method}' has no option '{option}': it has {known}.")
    first, last = pretrained or finetuned, finetuned or pretrained
    if first is None or last is None:
        raise MsifError("give a pre-trained or a fine-tuned model.")
    if method == "cka":
        return CKAScorer(last.side, first.side, **options)
    if method == "representation":
        return RepresentationScorer(last.side)
    if method == "random":
        return RandomScorer(last.side, first.side, **options)
    if method in PROJECTED:
        return _projected(method, last.side, first, damping, options)
    if method == "source":
        return _source(first, last, options)
    if method == "cosine":
        options = {**options, "normalize": "both"}
    if method not in DAMPED:
        return InfluenceScorer(last.side, first.side, **options)
    if method == "multi-stage" and (pretrained is None or finetuned is None):
        raise MsifError("multi-stage influence needs both --pretrained and --finetuned; single-stage needs one model.")
    factors_of(first, "finetuned" if pretrained is None else "pretrained")  # what lacks is named as it was given
    stages = [first, last] if method == "multi-stage" else [first]
    halves, options = options.get("halves"), {name: value for name, value in options.items() if name != "halves"}
    if halves is None:
        return InfluenceScorer(stages[-1].side, first.side, _inverses(stages, damping, ihvp), **options)
    return _near(stages, damping, ihvp, as_halves(halves), options)


def _inverses(stages: Sequence[FittedStage], damping: Damping, ihvp: IHVP) -> list[Preconditioner]:
    """Of one stage, or of two over the modules that they share."""
    first, *later = stages
    shared = [module.name for module in first.side.tracked]
    if later:
        shared, _ = match_modules(list(later[0].side.tracked), list(first.side.tracked))
    inverse = ihvp.build(
        first.side.restricted(shared), factors_of(first, "pretrained"), damping.first(first.tau), first.batches
    )
    return [inverse, *(later_stage(stage, shared, damping, ihvp) for stage in later)]


def _near(
    stages: Sequence[FittedStage], damping: Damping, ihvp: IHVP, halves: Halves, options: Mapping[str, Any]
) -> HalvesScorer:
    first = stages[0]
    if first.tau is None or (first.batches is None and halves.step):
        raise MsifError(
            "halves are foretold from τ of the first stage's training and its data: give it tau= and batches=."
        )
    solved, last = ihvp.kind in SOLVERS, stages[-1].side
    if solved:  # all solvers hold the same factors
        stages = [replace(stage, factors=_in_memory(stage)) for stage in stages]
    inverses = [] if solved else _inverses(stages, damping, ihvp)
    parts = []
    for _ in range(halves.count):
        moved = [
            replace(stage, side=side) for stage, side in zip(stages, apart(*(s.side for s in stages)), strict=True)
        ]
        own = _inverses(moved, damping, ihvp) if solved else inverses
        parts.append(InfluenceScorer(moved[-1].side, moved[0].side, own, **options))
    names = [module.name for module in parts[0].candidate_side.tracked]
    batches = [] if first.batches is None else first.batches
    asked = partial(foretold, first.side.restricted(names), factors_of(first, "pretrained"), first.tau, batches, halves)
    return HalvesScorer(parts, partial(asked, ihvp=ihvp if solved else None), last)


def _in_memory(stage: FittedStage) -> Factors | None:
    return stage.factors.load_all() if isinstance(stage.factors, FactorStore) else stage.factors


def later_stage(stage: FittedStage, names: Iterable[str], damping: Damping, ihvp: IHVP) -> Preconditioner:
    """What a fine-tuned stage does to a query's vector, over the named modules.

    Raises:
        MsifError: there are no factors; see ``IHVP.build`` and ``build_hop``.
    """
    side, factors = stage.side.restricted(names), factors_of(stage, "finetuned")
    if stage.adapter is None:
        return ihvp.build(side, factors, damping.later(stage.tau), stage.batches)
    if ihvp.kind != "ekfac":
        raise MsifError(f"the hop of an adapter takes the curvature of EK-FAC, and no other inverse ('{ihvp.kind}').")
    return build_hop(side, factors, stage.adapter, damping.pull(stage.tau), stage.batches)


def _options_of(method: str) -> set[str]:
    """The names of the options that a method's scorer has of its own."""
    if method == "representation":
        return set()
    if method == "trak":
        return {field.name for field in fields(TRAKOptions)} - {"damping", "damping_scale"} | {"projection"}
    scorer: Any = {"cka": CKAScorer, "logra": LoGraScorer, "random": RandomScorer}.get(method, InfluenceScorer)
    named = {name for name, of in signature(scorer).parameters.items() if of.kind is of.KEYWORD_ONLY}
    named |= {"halves"} if method in DAMPED else set()
    return named - {"damping", "damping_scale", "curvature_data"} | ({"projection"} if method == "logra" else set())


def _source(first: FittedStage, last: FittedStage, options: Mapping[str, Any]) -> PairScorer:
    """What each segment of the first stage accumulates from a gradient, and what all that follow keep of it."""
    segments, later = first.parts, [] if first is last else last.parts
    accumulated = [_unrolled(part, "pretrained", Accumulation) for part in segments]
    kept = [_unrolled(part, "pretrained", Decay) for part in segments[1:]]
    kept += [_unrolled(part, "finetuned", Decay) for part in later]
    if len(segments) == 1:
        return InfluenceScorer(last.side, segments[0].side, [*accumulated, *kept], **options)
    return SegmentedScorer(last.side, [part.side for part in segments], accumulated, kept, **options)


def _unrolled(stage: FittedStage, which: str, filter: Callable[[Scale], Accumulation | Decay]) -> EKFAC:
    if stage.tau is None:
        raise MsifError("method 'source' needs τ of each stage's training: give --learning-rate-sum.")
    return EKFAC(factors_of(stage, which), filter(stage.tau))


def _projected(
    method: str, query_side: Side, first: FittedStage, damping: Damping, options: dict[str, Any]
) -> TRAKCheckpoint | LoGraScorer:
    if damping.is_natural:
        raise MsifError(f"damping 'auto' is for the inverses of stages: give --method {method} a number.")
    shift: dict[str, Any] = {"damping": damping.damping, "damping_scale": damping.damping_scale}
    if method == "logra":
        return LoGraScorer(query_side, first.side, curvature_data=first.batches, **shift, **options)
    projection, rest = options.get("projection"), {k: v for k, v in options.items() if k != "projection"}
    return TRAKCheckpoint(query_side, first.side, projection, TRAKOptions(**shift, **rest), first.batches)


def factors_of(stage: FittedStage, which: str) -> Factors:
    if stage.factors is None:
        raise MsifError(f"this method needs --{which}-factors: make them with python -m msif.fit_factors.")
    return stage.factors


def check_factors(store: FactorStore, loaded: LoadedModel) -> list[TrackedModule]:
    """The modules that a store's factors belong to, after a check that they were fitted for this very model.

    Raises:
        MsifError: factors of another model, or of other weights.
    """
    fitted = store.manifest["run"].get("model", {})
    source = store.manifest["provenance"].get("model", "another model")
    if fitted.get("config") != loaded.config:
        raise MsifError(
            f"the factors in {store.path} were fitted for another model ({source}) than {loaded.name}: "
            "fit factors for this one."
        )
    if fitted.get("weights") != loaded.weights:
        others = "" if source == loaded.name else f", or these are those of {source}"
        raise MsifError(
            f"the weights of {loaded.name} have changed since the factors in {store.path} were fitted{others}: "
            "give the right folder, or fit them again."
        )
    return store.tracked
