"""Methods with an iteration: a point for each budget."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from experiments.spearman.bench import Bench, Cost
from experiments.spearman.points import Point
from experiments.spearman.world import batches, unpacked
from msif.curvature.arnoldi import Arnoldi
from msif.curvature.cg import conjugate_gradients
from msif.curvature.ggn import GGN
from msif.curvature.lissa import LiSSA, LiSSASettings, PreconditionedLiSSA
from msif.curvature.preconditioners import Preconditioner
from msif.curvature.vectors import Vectors

LISSA_BATCH = 16  # sequences of a mini-batch, at most a quarter of the data


def cg(bench: Bench, damping: str) -> list[Point]:
    budgets = bench.c.long_cg if damping == bench.c.detailed else bench.c.cg
    return _curve(bench, damping, "CG", budgets, None, Cost())


def preconditioned_cg(bench: Bench, damping: str) -> list[Point]:
    """The same, preconditioned by EK-FAC and started from it; its first budget, 0, is EK-FAC itself."""
    _, fitting = bench.fitted("ekfac", bench.world.solving)
    c = bench.c
    budgets = c.long_preconditioned if damping == c.detailed else c.preconditioned
    return _curve(bench, damping, "EK-FAC-CG", budgets, bench.inverse(damping), fitting)


def better_preconditioners(bench: Bench, damping: str) -> list[Point]:
    """The same with factors of more labels a sequence."""
    c, points = bench.c, []
    for samples in c.label_samples:
        factors, fitting = bench.fitted(f"labels-{samples}", bench.world.solving, samples)
        name = f"EK-FAC-CG, {samples} labels"
        curve = _curve(bench, damping, name, c.long_preconditioned, bench.inverse(damping, factors), fitting)
        points += [replace(point, overhead_passes=2.0 * samples) for point in curve]
    return points


def _curve(
    bench: Bench, damping: str, name: str, budgets: Sequence[int], inverse: Preconditioner | None, fitting: Cost
) -> list[Point]:
    """One run, with x kept on the way and judged after it, so that judging costs no time.

    One that meets the tolerance before its last budget ends with a point of its own.
    """
    b, operator, kept = bench.gradients, bench.damped(damping), list[tuple[int, Vectors, float]]()
    count = itertools.count(1)
    start = bench.clock()

    def keep(x: Vectors) -> None:
        number = next(count)
        if number in budgets:
            kept.append((number, x, bench.clock() - start))

    if inverse is not None and 0 in budgets:
        kept.append((0, inverse.apply(b), bench.clock() - start))
    with bench.measured() as cost:
        options = {"iterations": max(budgets), "tolerance": bench.c.truth_tolerance, "callback": keep}
        solution = conjugate_gradients(operator, b, preconditioner=inverse, **options)
    if solution.converged and solution.iterations not in budgets:
        kept.append((solution.iterations, solution.x, bench.clock() - start))
    # with a start other than zero, its residual takes a product too
    extra = 0 if inverse is None else 1
    return [
        Point(
            name,
            damping,
            number,
            bench.scores(x),
            fitting.seconds,
            seconds / bench.c.queries + bench.scoring.seconds,
            2.0 if inverse else 0.0,
            float(number + extra) if number else 0.0,
            cost.memory,
            **bench.residuals(x, damping),
        )
        for number, x, seconds in kept
    ]


def lissa(bench: Bench, damping: str) -> list[Point]:
    """Plain LiSSA, its scale measured."""
    settings = [LiSSASettings(depth=depth, seed=bench.seed) for depth in bench.c.lissa]
    tracked, shift = bench.side.tracked, bench.shift(damping)
    return [
        _solved(bench, damping, "LiSSA", one.depth, LiSSA(_small_batches(bench), tracked, shift, one), Cost())
        for one in settings
    ]


def preconditioned_lissa(bench: Bench, damping: str) -> list[Point]:
    _, fitting = bench.fitted("ekfac", bench.world.solving)
    tracked, shift, inverse = bench.side.tracked, bench.shift(damping), bench.inverse(damping)
    points = []
    for depth in bench.c.preconditioned_lissa:
        settings = LiSSASettings(depth=depth, seed=bench.seed)
        solver = PreconditionedLiSSA(_small_batches(bench), tracked, shift, inverse, settings)
        points.append(_solved(bench, damping, "EK-FAC-LiSSA", depth, solver, fitting))
    return points


def arnoldi(bench: Bench, damping: str) -> list[Point]:
    """Scores by the top eigenvectors, as published, and with 1/λ on their complement."""
    iterations, top = bench.c.arnoldi
    pairs, overhead = bench.eigenpairs
    points = []
    for name, complement in (("Arnoldi", False), ("Arnoldi, with complement", True)):
        solver = Arnoldi(bench.ggn, bench.side.tracked, bench.shift(damping), top=top, complement=complement)
        solver.eigenpairs = pairs
        point = _solved(bench, damping, name, iterations, solver, overhead)
        points.append(replace(point, overhead_passes=float(pairs.iterations)))
    return points


def _small_batches(bench: Bench) -> GGN:
    """H over the same sequences, in the mini-batches that a stochastic solver draws."""
    sequences = [document.input_ids.tolist() for batch in bench.world.solving for document in unpacked(batch)]
    small = batches(sequences, max(1, min(LISSA_BATCH, bench.c.solving // 4)))
    return GGN(bench.side.model, bench.side.tracked, bench.side.objective, small)


def _solved(
    bench: Bench, damping: str, name: str, budget: int, solver: LiSSA | PreconditionedLiSSA | Arnoldi, overhead: Cost
) -> Point:
    with bench.measured() as cost:
        x = solver.apply(bench.gradients)
    seconds = cost.seconds / bench.c.queries + bench.scoring.seconds
    passes = getattr(solver, "products", 0.0) / bench.c.queries
    return Point(
        name,
        damping,
        budget,
        bench.scores(x),
        overhead.seconds,
        seconds,
        2.0 if isinstance(solver, PreconditionedLiSSA) else 0.0,
        passes,
        max(filter(None, (cost.memory, overhead.memory)), default=None),
        **bench.residuals(x, damping),
    )
