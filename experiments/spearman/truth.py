"""The answers that all methods are measured by."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from tempfile import TemporaryDirectory

import torch

from experiments.spearman.bench import Bench
from experiments.spearman.dense import parameters_by, solve, solve_within
from experiments.spearman.points import Point
from msif.attribution.gradients import Side, query_gradients
from msif.attribution.scorers import InfluenceScorer
from msif.curvature.cg import CG, Damped, conjugate_gradients, relative_residual
from msif.curvature.filters import DampedInverse
from msif.curvature.fit import FitSettings, fit
from msif.curvature.ggn import GGN
from msif.curvature.preconditioners import EKFAC
from msif.curvature.vectors import Vectors
from msif.models.blocks import TrackedModule
from msif.models.names import layer_of
from msif.models.select import track_modules

TRUTH, FULL = "truth", "truth, all parameters"


def truth(bench: Bench, damping: str) -> list[Point]:
    """(H + D)⁻¹ b in float64, on the same H and the same parameters as every method."""
    side = bench.side_of(bench.world.model, torch.float64)
    operator = GGN(side.model, side.tracked, side.objective, bench.world.solving)
    damped = Damped(operator, side.tracked, bench.shift(damping))
    b = query_gradients(side, bench.world.queries)
    with bench.measured() as cost:
        if bench.c.dense_parts:
            x, iterations = solve(bench, damping, b), None
        else:
            x, iterations = _by_cg(bench, damping, damped, b)
    # CG's own residual is a recursion; this is ‖b − (H + D) x‖ itself
    residual = relative_residual(damped, x, b).tolist()
    scores = bench.scores(x)
    return [Point(TRUTH, damping, iterations, scores, 0.0, cost.seconds / bench.c.queries, residual=residual)]


def exact_groups(bench: Bench, damping: str) -> list[Point]:
    """The exact inverse of H without what lies between blocks, modules or layers: what no method can pass that
    treats them apart. Only where H is a matrix.
    """
    if not bench.c.dense_parts:
        return []
    keys: dict[str, Callable[[TrackedModule, int], Hashable]] = {
        "exact blocks": lambda module, block: (module.name, block),
        "exact modules": lambda module, block: module.name,
        "exact layers": lambda module, block: layer_of(module.name),
    }
    points = []
    for name, key in keys.items():
        groups = parameters_by(bench.side.tracked, key)
        with bench.measured() as cost:
            x = solve_within(bench, damping, bench.gradients, groups)
        single = {key: V.float() for key, V in x.items()}
        seconds = cost.seconds / bench.c.queries
        points.append(Point(name, damping, None, bench.scores(x), 0.0, seconds, **bench.residuals(single, damping)))
    return points


def _by_cg(bench: Bench, damping: str, damped: Damped, b: Vectors) -> tuple[Vectors, int]:
    inverse = EKFAC(bench.factors, DampedInverse(bench.shift(damping)))
    options = {"iterations": bench.c.truth_iterations, "tolerance": bench.c.truth_tolerance}
    solution = conjugate_gradients(damped, b, preconditioner=inverse, **options)
    return solution.x, solution.iterations


def full_truth(bench: Bench, damping: str) -> list[Point]:
    """The same over all parameters: embeddings, norms and unembedding too."""
    c, shift = bench.c, bench.shift(damping)
    assert isinstance(shift, float)  # blocks of factors have no meaning for the other parameters
    layers = bench.side_of(bench.world.model, torch.float64)
    side = Side(layers.model, track_modules(layers.model, "everything"), layers.objective)
    operator = GGN(side.model, side.tracked, side.objective, bench.world.solving)
    with TemporaryDirectory() as folder:
        settings = FitSettings(seed=bench.seed)
        store = fit(side.model, side.tracked, side.objective, bench.world.solving, folder, settings)
        approximate = EKFAC(store.load_all(), DampedInverse(shift))
    solver = CG(operator, side.tracked, shift, approximate, iterations=c.full, tolerance=c.truth_tolerance)
    with bench.measured() as cost:
        scores = InfluenceScorer(side, side, [solver]).score(bench.world.queries, bench.world.candidates)
    assert solver.solution is not None
    worst = solver.solution.residuals[-1].tolist()
    iterations = solver.solution.iterations
    seconds = cost.seconds / c.queries
    return [Point(FULL, damping, iterations, scores.values, 0.0, seconds, 2.0, iterations, cost.memory, worst)]
