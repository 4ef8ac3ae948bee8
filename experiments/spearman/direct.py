"""Methods without an iteration: one point each."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from experiments.spearman.bench import Bench, Cost
from experiments.spearman.configuration import RELATIVE
from experiments.spearman.points import Point
from msif.attribution.damping import Damping
from msif.attribution.gradients import Side
from msif.attribution.projection import Projection
from msif.attribution.scorers import Scorer
from msif.attribution.stages import FittedStage, build_scorer
from msif.attribution.trak import TRAKScorer
from msif.curvature.filters import DampedInverse
from msif.curvature.kfac import KFAC, Diagonal
from msif.curvature.preconditioners import Preconditioner
from msif.curvature.store import FactorStore
from msif.curvature.vectors import Vectors

MLP = re.compile(r"\.mlp\.")


def ekfac(bench: Bench, damping: str) -> list[Point]:
    """EK-FAC, and what it becomes when only the maps of the MLPs are scored."""
    _, fitting = bench.fitted("ekfac", bench.world.solving)
    everything = _inverse(bench, damping, "EK-FAC", bench.inverse(damping), fitting)
    only = _inverse(bench, damping, "EK-FAC, MLP only", bench.inverse(damping), fitting, only=MLP)
    return [everything, only]


def kfac(bench: Bench, damping: str) -> list[Point]:
    """K-FAC and the diagonal, from the same factors."""
    _, fitting = bench.fitted("ekfac", bench.world.solving)
    filter = DampedInverse(bench.shift(damping))
    counts = FactorStore.open(bench.output / "factors" / "ekfac" / "factors").manifest["counts"]
    inverses = {"K-FAC": KFAC(bench.factors, counts, filter), "diagonal": Diagonal(bench.factors, filter)}
    return [_inverse(bench, damping, name, inverse, fitting) for name, inverse in inverses.items()]


def no_curvature(bench: Bench, damping: str) -> list[Point]:
    """The gradient dot product, the cosine, and CKA of gradients in two readings; the damping does not matter."""
    stage = FittedStage(bench.side)
    scorers: Mapping[str, Scorer] = {
        "GDP": build_scorer("gdp", stage, None),
        "cosine": build_scorer("cosine", stage, None),
        "CKA": build_scorer("cka", stage, None),
        "CKA, whole gradients": build_scorer("cka", stage, None, rows="whole"),
    }
    return [_scored(bench, damping, name, scorer) for name, scorer in scorers.items()]


def ablations(bench: Bench, damping: str) -> list[Point]:
    """EK-FAC without the split of heads, fitted on other data, and with more labels."""
    c, points = bench.c, []
    whole = bench.side_of(bench.world.model, split_heads=False)
    variants = [("EK-FAC, no head split", "no-split", bench.world.solving, 1, whole)]
    variants += [
        (f"EK-FAC, fitted on {count} others", f"fit-{count}", bench.fitting_data(count), 1, bench.side)
        for count in c.fitting
    ]
    variants += [
        (f"EK-FAC, {samples} labels a sequence", f"labels-{samples}", bench.world.solving, samples, bench.side)
        for samples in c.label_samples
    ]
    for title, name, data, samples, side in variants:
        factors, fitting = bench.fitted(name, data, samples, side)
        passes = 2.0 * samples * sum(map(len, data)) / c.solving
        points.append(_inverse(bench, damping, title, bench.inverse(damping, factors), fitting, passes))
    return points


def logra(bench: Bench, damping: str) -> list[Point]:
    data = bench.fitting_data(bench.c.kernel)
    shift = Damping() if damping == RELATIVE else Damping(bench.mean_shift(damping))
    scorer = build_scorer("logra", FittedStage(bench.side, batches=data), None, shift, seed=bench.seed)
    with bench.measured() as overhead:
        scorer.query_vectors(bench.world.queries)
    point = _scored(bench, damping, "LoGra", scorer)
    return [_with_overhead(point, overhead, bench.c.kernel / bench.c.solving)]


def trak(bench: Bench, damping: str) -> list[Point]:
    """TRAK over checkpoints that were trained on random halves, and with the model itself alone.

    λ is on a sum over sequences here: N times the λ of a mean.
    """
    c, points = bench.c, []
    data = bench.fitting_data(c.kernel)
    supervised = sum(int(bench.side.objective.supervised_counts(batch).sum()) for batch in data)
    options = {"damping_scale": 0.1} if damping == RELATIVE else {"damping": supervised * bench.mean_shift(damping)}
    projection = Projection(p_out=64, p_in=64, dimension=c.trak_dimension, seed=bench.seed)
    halves = [bench.side_of(folder) for folder in bench.world.halves]
    passes = c.kernel / c.solving
    variants: list[tuple[str, list[Side], str]] = [
        (f"TRAK, {len(halves)} models", halves, "token"),
        (f"TRAK, {len(halves)} models, Q per example", halves, "example"),
        ("TRAK, 1 model", [bench.side], "token"),
    ]
    for name, members, weighting in variants:
        scorer = TRAKScorer(members, projection, kernel_data=data, weighting=weighting, **options)
        with bench.measured() as overhead:
            scorer.score(bench.world.queries, bench.world.candidates)
        training = bench.world.training_seconds if members is halves else 0.0
        first = Cost(overhead.seconds + training, overhead.memory)
        points.append(_with_overhead(_scored(bench, damping, name, scorer), first, passes * len(members)))
    return points


def _inverse(
    bench: Bench,
    damping: str,
    name: str,
    inverse: Preconditioner,
    fitting: Cost,
    passes: float = 2.0,
    only: re.Pattern[str] | None = None,
) -> Point:
    """The point of an inverse that is applied without data; scores of the chosen modules only, if some are named."""
    with bench.measured() as cost:
        x = inverse.apply(bench.gradients)
    chosen: Vectors = {key: X for key, X in x.items() if only is None or only.search(key)}
    seconds = cost.seconds / bench.c.queries + bench.scoring.seconds
    residuals = bench.residuals(x, damping) if only is None else {}
    memory = max(filter(None, (cost.memory, fitting.memory)), default=None)
    return Point(
        name, damping, None, bench.scores(chosen), fitting.seconds, seconds, passes, memory=memory, **residuals
    )


def _scored(bench: Bench, damping: str, name: str, scorer: Scorer) -> Point:
    """The point of a scorer."""
    with bench.measured() as cost:
        values = scorer.score(bench.world.queries, bench.world.candidates).values
    return Point(
        name, damping, None, np.asarray(values, float), 0.0, cost.seconds / bench.c.queries, memory=cost.memory
    )


def _with_overhead(point: Point, overhead: Cost, passes: float) -> Point:
    return Point(**{**vars(point), "overhead": overhead.seconds, "overhead_passes": passes, "memory": overhead.memory})
