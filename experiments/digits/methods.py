"""The methods that are compared, at every damping, with the scorers that a member makes of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from experiments.common.methods import Method
from experiments.digits.exact import Exact
from experiments.digits.heads import WholeNetworkScorer
from experiments.digits.images import Images
from experiments.digits.members import Checkpoint, Member
from msif.attribution.damping import Damping
from msif.attribution.inverses import IHVP
from msif.attribution.projection import Projection
from msif.attribution.scorers import EnsembleScorer, InfluenceScorer, Scorer
from msif.attribution.stages import build_scorer
from msif.curvature.filters import Accumulation, DampedInverse, Decay, Filter
from msif.curvature.preconditioners import EKFAC, Preconditioner

SWEEP = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""λ and α, absolute."""
SOURCE = "SOURCE"
"""In place of λ and α: the filters of what gradient descent accumulates and keeps."""
SCALES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""λ relative to the mean eigenvalue."""
PARTS = (0.5, 0.25)
"""λ and α, in 1/ηK."""
HELD_OUT = ", curvature of held-out images"
CG_PRODUCTS = 24
CG = "EK-FAC-preconditioned CG"
HALVED = (
    ("gradient dot product", "", ""),
    ("multi-stage EK-FAC", "1/ηK", "1/ηK"),
    ("multi-stage EK-FAC, checkpoints in segments", SOURCE, SOURCE),
    *((f"multi-stage {name}", shown, shown) for name in (CG, "exact") for shown in ("1/ηK", "0.5/ηK", "0.25/ηK")),
    ("multi-stage exact", SOURCE, SOURCE),
    ("multi-stage exact, heads counted", SOURCE, SOURCE),
)
"""Family, λ and α of what is asked of pairs that were trained on halves."""


Kind = Callable[[Checkpoint, Filter], Preconditioner]


def ekfac(checkpoint: Checkpoint, filter: Filter) -> Preconditioner:
    return EKFAC(checkpoint.factors, filter)


def exact(checkpoint: Checkpoint, filter: Filter) -> Preconditioner:
    return Exact(checkpoint.exact, filter)


KINDS: dict[str, Kind] = {"EK-FAC": ekfac, "exact": exact}


def all_methods() -> list[Method]:
    """In the order of the table."""
    return [
        *_gradients(),
        *_single_stage(),
        *itertools.chain.from_iterable(_sweep(name, kind) for name, kind in KINDS.items()),
        *itertools.chain.from_iterable(_relative(name, kind) for name, kind in KINDS.items()),
        *itertools.chain.from_iterable(_parts_of_natural(name, kind) for name, kind in KINDS.items()),
        *itertools.chain.from_iterable(_source(name, kind) for name, kind in KINDS.items()),
        *_held_out(),
        *_with_heads(),
        *_solvers(),
        *_projected(),
    ]


def adam_methods() -> list[Method]:
    """What training by Adam is for: whether its moments give the damping."""
    return [*_gradients(), *_sweep("EK-FAC", ekfac), *_relative("EK-FAC", ekfac), *_by_moments()]


def halved_methods() -> list[Method]:
    """What is asked of pairs that were trained on halves."""
    return [replace(m, dear=False) for m in all_methods() if (m.family, m.damping, m.alpha) in HALVED]


def _gradients() -> Iterator[Method]:
    """Without curvature."""
    for name, title in (("gdp", "gradient dot product"), ("cosine", "gradient cosine")):
        yield Method(title, scorer=lambda m, name=name: build_scorer(name, m.pretrained.stage, m.finetuned.stage))


def _single_stage() -> Iterator[Method]:
    """Defined on one network only; the fine-tuned one's queries have no loss on the other."""
    for damping in (Damping("auto"), Damping()):
        shown = "1/ηK" if damping.damping == "auto" else "0.1 mean"

        def single(m: Member, damping: Damping = damping) -> Scorer:
            """Of the ten-class network alone, which is asked for the parity that its classes imply."""
            return build_scorer("single-stage", m.pretrained.stage, None, damping, measurement=implied_parity_loss)

        yield Method("single-stage EK-FAC, parity implied by ten classes", shown, scorer=single)


def implied_parity_loss(outputs: Tensor, batch: Images) -> Tensor:
    """−log of the probability of all digits with the query's parity, (B,), from ten logits."""
    log_p = torch.log_softmax(outputs, dim=-1)
    same = torch.arange(outputs.shape[-1]) % 2 == batch.y.unsqueeze(1)
    return -log_p.masked_fill(~same, float("-inf")).logsumexp(-1)


def two_stage(m: Member, kind: Kind, first: Filter, last: Filter | None) -> InfluenceScorer:
    """P_ft is left out where there is no filter for it."""
    stages = [kind(m.pretrained, first)] + ([] if last is None else [kind(m.finetuned, last)])
    return InfluenceScorer(m.finetuned.body, m.pretrained.body, stages)


def natural_filters(m: Member, times: float = 1.0) -> tuple[Filter, Filter]:
    """Inverses damped by so many times 1/τ of their stage."""
    rates = m.pretrained.schedule.rate_sum, m.finetuned.schedule.rate_sum
    return DampedInverse(times / rates[0]), DampedInverse(0.0, alpha=times / rates[1])


def source_filters(m: Member) -> tuple[Filter, Filter]:
    return Accumulation(m.pretrained.schedule.rate_sum), Decay(m.finetuned.schedule.rate_sum)


def _sweep(name: str, kind: Kind) -> Iterator[Method]:
    """Absolute λ_pt × α (λ_ft = 0): all pairs for EK-FAC; through 1/τ for the exact matrix, whose products are dear."""
    values = [("1/ηK", None), *((f"{value:g}", value) for value in SWEEP)]
    for (shown, damping), (shown_alpha, alpha) in itertools.product(values, [*values, ("no hop", 0.0)]):
        if kind is exact and damping is not None and alpha is not None and (damping, alpha) not in EXACT_PAIRS:
            continue

        def scorer(m: Member, damping: float | None = damping, alpha: float | None = alpha) -> Scorer:
            first = DampedInverse(1 / m.pretrained.schedule.rate_sum if damping is None else damping)
            pull = 1 / m.finetuned.schedule.rate_sum if alpha is None else alpha
            return two_stage(m, kind, first, DampedInverse(0.0, alpha=pull) if pull else None)

        yield Method(f"multi-stage {name}", shown, shown_alpha, scorer)


EXACT_PAIRS = tuple(itertools.product((3e-4, 1e-3, 3e-3), (3e-3, 1e-2, 3e-2)))


def _relative(name: str, kind: Kind) -> Iterator[Method]:
    """λ relative to the mean eigenvalue in both stages; α adds to it in the last."""
    for scale, alpha in itertools.product(SCALES, (0.0, None)):

        def scorer(m: Member, scale: float = scale, alpha: float | None = alpha) -> Scorer:
            pull = 1 / m.finetuned.schedule.rate_sum if alpha is None else alpha
            filters = DampedInverse(damping_scale=scale), DampedInverse(damping_scale=scale, alpha=pull)
            return two_stage(m, kind, *filters)

        shown = "1/ηK" if alpha is None else "0"
        yield Method(f"multi-stage {name}", f"{scale:g} mean", shown, scorer)


def _parts_of_natural(name: str, kind: Kind) -> Iterator[Method]:
    """A half and a quarter of the natural damping in both stages."""
    for times in PARTS:
        scorer: Callable[..., Scorer] = lambda m, times=times: two_stage(m, kind, *natural_filters(m, times))  # noqa: E731
        yield Method(f"multi-stage {name}", _natural(times), _natural(times), scorer)


def _source(name: str, kind: Kind) -> Iterator[Method]:
    """SOURCE's filters, with one segment for each stage and with several (Bae et al. 2024)."""
    yield Method(f"multi-stage {name}", SOURCE, SOURCE, lambda m: two_stage(m, kind, *source_filters(m)))
    title = f"multi-stage {name}, checkpoints in segments"
    yield Method(title, SOURCE, SOURCE, lambda m: in_segments(m, kind), dear=kind is exact)


def in_segments(m: Member, kind: Kind) -> Scorer:
    """Σ_l ∇mᵀ (decay of all later segments) (accumulation of segment l) ∇L at the checkpoint of segment l.

    The mean instead of the sum, for all segments are equally long.
    """
    tau = m.pretrained.schedule.rate_sum / len(m.pretraining)
    tau_last = m.finetuned.schedule.rate_sum / len(m.finetuning)
    later = [kind(checkpoint, Decay(tau_last)) for checkpoint in m.finetuning]
    decays = [kind(checkpoint, Decay(tau)) for checkpoint in m.pretraining]
    scorers = []
    for place, checkpoint in enumerate(m.pretraining):
        stages = [kind(checkpoint, Accumulation(tau)), *decays[place + 1 :], *later]
        scorers.append(InfluenceScorer(m.finetuned.body, checkpoint.body, stages))
    return EnsembleScorer(scorers)


Filters = Callable[["Member"], "tuple[Filter, Filter]"]
FILTERS: dict[str, Filters] = {"1/ηK": natural_filters, SOURCE: source_filters}


def _held_out() -> Iterator[Method]:
    """With pre-training's exact matrix of images that no training saw."""
    for shown, filters in FILTERS.items():

        def scorer(m: Member, filters: Filters = filters) -> Scorer:
            first, last = filters(m)
            stages = Exact(m.pretrained.exact_held_out, first), Exact(m.finetuned.exact, last)
            return InfluenceScorer(m.finetuned.body, m.pretrained.body, stages)

        yield Method(f"multi-stage exact{HELD_OUT}", shown, shown, scorer)


def _with_heads() -> Iterator[Method]:
    """The exact matrices of whole networks."""
    for shown, filters in FILTERS.items():

        def scorer(m: Member, filters: Filters = filters) -> Scorer:
            first, last = filters(m)
            stages = Exact(m.pretrained.exact_whole, first), Exact(m.finetuned.exact_whole, last)
            return WholeNetworkScorer(m.finetuned.side, m.pretrained.side, *stages)

        yield Method("multi-stage exact, heads counted", shown, shown, scorer, dear=filters is natural_filters)


def _solvers() -> Iterator[Method]:
    """Other inverses of the library, at the natural damping; CG, which knows no blocks, at parts of it, too."""
    for kind, title, several in (
        ("diagonal", "diagonal", (1.0,)),
        ("kfac", "K-FAC", (1.0,)),
        ("ekfac-cg", CG, (1.0, *PARTS)),
    ):
        for times in several:

            def scorer(m: Member, kind: str = kind, times: float = times) -> Scorer:
                ihvp, damping = IHVP(kind, iterations=CG_PRODUCTS, tolerance=1e-3), Damping(f"auto:{times:g}")
                return build_scorer("multi-stage", m.pretrained.stage, m.finetuned.stage, damping, ihvp)

            yield Method(f"multi-stage {title}", _natural(times), _natural(times), scorer)


def _natural(times: float) -> str:
    """As tables show so many times 1/ηK."""
    return f"{times:g}/ηK"


def _by_moments() -> Iterator[Method]:
    """τ of each block from Adam's second moments V, by two means over the block's parameters; and the command line's
    default, which takes α alone from it."""
    for title, scale in (("τ = ηK mean 1/√V", _mean_of_steps), ("1/τ = mean √V / ηK", _mean_of_roots)):

        def inverse(m: Member, scale: Callable[[Checkpoint], BlockScale] = scale) -> Scorer:
            pull = DampedInverse(0.0, alpha=scale(m.finetuned))
            return two_stage(m, ekfac, DampedInverse(scale(m.pretrained)), pull)

        def source(m: Member, scale: Callable[[Checkpoint], BlockScale] = scale) -> Scorer:
            taus = [{name: 1 / value for name, value in scale(c).items()} for c in (m.pretrained, m.finetuned)]
            return two_stage(m, ekfac, Accumulation(taus[0]), Decay(taus[1]))

        yield Method("multi-stage EK-FAC, from Adam's moments", title, "1/τ", inverse)
        yield Method("multi-stage EK-FAC, from Adam's moments", title, SOURCE, source)

    def usual(m: Member) -> Scorer:
        pull = DampedInverse(damping_scale=0.1, alpha=_mean_of_roots(m.finetuned))
        return two_stage(m, ekfac, DampedInverse(damping_scale=0.1), pull)

    yield Method("multi-stage EK-FAC, from Adam's moments", "0.1 mean", "1/τ = mean √V / ηK", usual)


BlockScale = dict[str, Tensor]


def _mean_of_steps(checkpoint: Checkpoint) -> BlockScale:
    """1/τ with τ the mean of ηK/(√V + ε). Parameters without gradient have the say."""
    roots, rate_sum = checkpoint.adam_roots(), checkpoint.schedule.rate_sum
    return {name: 1 / (rate_sum * (1 / root).mean().view(1)) for name, root in roots.items()}


def _mean_of_roots(checkpoint: Checkpoint) -> BlockScale:
    """The mean of (√V + ε)/(ηK): what `--damping auto` takes."""
    return {name: 1 / tau for name, tau in checkpoint.tau.items()}


def _projected() -> Iterator[Method]:
    """TRAK and LoGra; their λ is relative to the mean eigenvalue of their own kernel."""
    projections = {"TRAK": Projection(64, 64, dimension=1024), "LoGra": Projection(16, 16)}
    for scale, (title, projection) in itertools.product((1e-5, 1e-4, 1e-3, *SCALES), projections.items()):

        def scorer(m: Member, title: str = title, scale: float = scale, projection: Projection = projection) -> Scorer:
            damping = Damping(damping_scale=scale)
            return build_scorer(title.lower(), m.pretrained.stage, m.finetuned.stage, damping, projection=projection)

        yield Method(title, f"{scale:g} mean", scorer=scorer)
