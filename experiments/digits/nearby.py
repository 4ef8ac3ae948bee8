"""Digits at networks nearby: python -m experiments.digits.nearby, after python -m experiments.digits or alone.

Each pair is asked at networks that one step moves towards trainings on random halves of the images, or noise towards
trainings from other first weights, or both (docs/method.md), with the curvature of the networks as they then are. The
retrainings of the main experiment judge. What an earlier run has made is used again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.cache import Cache, hashed
from experiments.common.judging import SIZES, Judge
from experiments.common.parallel import spread
from experiments.common.running import quiet
from experiments.digits.command import digits_parser, settings_of
from experiments.digits.exact import Exact, ExactCurvature
from experiments.digits.halved import in_deviations
from experiments.digits.heads import WholeNetworkScorer
from experiments.digits.images import Parts, load_parts
from experiments.digits.members import Checkpoint, Member, Members, on_everything
from experiments.digits.methods import CG, CG_PRODUCTS, natural_filters
from experiments.digits.network import BODY
from experiments.digits.settings import Settings
from experiments.digits.truth import losses_on_halves
from msif.attribution.damping import Damping
from msif.attribution.gradients import Side
from msif.attribution.halves import Halves, HalvesScorer, foretold
from msif.attribution.inverses import IHVP
from msif.attribution.moves import moved_side, of_half
from msif.attribution.scorers import Scorer
from msif.attribution.stages import build_scorer
from msif.cli.parsing import Parser, run
from msif.curvature.vectors import Vectors
from msif.reporting.tables import Table, write_results

PAIRS = 4
SOLVER = IHVP("ekfac-cg", iterations=CG_PRODUCTS, tolerance=1e-3)
STEP, NOISE = 3.0, 0.5
NATURAL = Damping("auto")


@dataclass(frozen=True)
class Near:
    """
    Attributes:
        family: of methods that differ by where they ask alone.
        halves: None asks the networks themselves.
        ask: from a pair to the scores (Q, N) of each network that is asked.
    """

    family: str
    halves: Halves | None
    ask: Callable[[Member, Parts, Halves | None], Iterator[np.ndarray]]


def methods(count: int) -> list[Near]:
    """By the library's solver over the maps that both stages share, and by exact matrices of whole networks."""
    both = Halves(count, STEP, noise=NOISE)
    solved, exact = f"multi-stage {CG}", "multi-stage exact, heads counted"
    return [
        *(Near(solved, halves, by_solver) for halves in (None, both)),
        *(Near(exact, h, by_exact) for h in (None, Halves(count, STEP), Halves(count, 0.0, noise=NOISE), both)),
    ]


def by_solver(m: Member, parts: Parts, halves: Halves | None) -> Iterator[np.ndarray]:
    """What `--ihvp ekfac-cg --damping auto --halves K:STEP:NOISE` asks, network by network."""
    near = {} if halves is None else {"halves": halves}
    scorer = build_scorer("multi-stage", m.pretrained.stage, m.finetuned.stage, NATURAL, SOLVER, **near)
    vectors = scorer.query_vectors([parts.queries])
    if not isinstance(scorer, HalvesScorer):
        yield scorer.score_vectors(vectors, [parts.pretraining]).values
        return
    for part, own in zip(scorer.parts, vectors, strict=True):
        yield part.score_vectors(own, [parts.pretraining]).values


def by_exact(m: Member, parts: Parts, halves: Halves | None) -> Iterator[np.ndarray]:
    """The old head moves as well, and each network's curvature is that of all its maps."""
    filters = natural_filters(m)
    for first, last in [(m.pretrained.side, m.finetuned.side)] if halves is None else _moved(m, halves):
        curvatures = ExactCurvature(first, m.pretrained.images), ExactCurvature(last, m.finetuned.images)
        inverses = [Exact(*pair) for pair in zip(curvatures, filters, strict=True)]
        scorer: Scorer = WholeNetworkScorer(last, first, *inverses)
        yield scorer.score([parts.queries], [parts.pretraining]).values


def _moved(m: Member, halves: Halves) -> Iterator[tuple[Side, Side]]:
    """Fine-tuning keeps the displacement of the body."""
    first: Checkpoint = m.pretrained
    changes = foretold(first.side, first.store, first.tau, [first.images], halves, SOLVER)
    for number in range(halves.count):
        change = of_half(changes, number)
        yield _at(first.side, change), _at(m.finetuned.side, {name: change[name] for name in BODY})


def _at(side: Side, change: Vectors) -> Side:
    return replace(side, model=moved_side(side.restricted(list(change)), change).model)


def scores_of(settings: Settings, parts: Parts, cache: Cache, halves: int, number: int) -> dict[str, np.ndarray]:
    """One pair's scores by every method: place -> (networks, Q, N)."""
    member = Members(settings, parts, cache, on_everything(settings))[number]
    found = {}
    for place, near in enumerate(methods(halves)):
        compute = lambda near=near: {"scores": np.stack(list(near.ask(member, parts, near.halves)))}  # noqa: E731
        identity = [near.family, near.halves and near.halves.told(), CG_PRODUCTS]
        found[str(place)] = cache.arrays(f"nearby/{number:02d}-{hashed(identity)[:8]}", compute)["scores"]
    return found


def nearby_table(judge: Judge, asked: Sequence[Near], scores: Sequence[np.ndarray]) -> Table:
    """
    Args:
        scores: of each method, (pairs, networks, Q, N).
    """
    most = max(own.shape[1] for own in scores)
    sizes = [size for size in SIZES[1:] if size < most]
    rows: list[list[Any]] = []
    for near, own in zip(asked, scores, strict=True):
        scaled = in_deviations(own)
        alone = scaled.mean(1)
        if near.halves is None:
            themselves = alone
        fewer = [None if near.halves is None else judge.single(scaled[:, :size].mean(1)) for size in sizes]
        gain = None if near.halves is None else f"{judge.alone_difference(alone, themselves):+.3f}"
        cells = [near.halves.step or None, near.halves.noise or None] if near.halves else [None, None]
        averaged = f"{judge.interval(alone.mean(0)):.3f}"
        rows.append(
            [near.family, *cells, *fewer, f"{judge.alone(alone):.3f}", gain, judge.single(own.mean(1)), averaged]
        )
    columns = ["method", "step", "noise", *(f"{size} networks" for size in sizes), f"{most} networks, 95 %"]
    columns += ["more than themselves", "not scaled", f"mean of the {len(scores[0])} pairs"]
    title = f"Pairs at networks nearby, each alone; {len(scores[0])} pairs, noise ceiling {judge.ceiling:.3f}"
    return Table(columns, rows, title, dict.fromkeys([*columns[3 : 3 + len(sizes)], "not scaled"], ".3f"))


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse(arguments)
    settings, asked = settings_of(options, options.networks), methods(options.networks)
    quiet(options.threads)
    cache = Cache(Path(options.output) / "descent", asdict(settings), options.overwrite)
    parts = load_parts(settings)
    judge = Judge(*losses_on_halves(settings, parts, cache, options.processes))
    Members(settings, parts, cache, on_everything(settings))  # trained before processes share them
    one = partial(scores_of, settings, parts, cache, options.networks)
    each = spread(one, range(min(PAIRS, settings.members)), options.processes, "asking networks nearby")
    table = nearby_table(judge, asked, [np.stack([own[str(place)] for own in each]) for place in range(len(asked))])
    results = Path(options.results or Path(options.output) / "report")
    write_results(results, "nearby", table, asdict(settings) | {"networks": options.networks})
    print(table.markdown())


def _parser() -> Parser:
    parser = digits_parser("digits.nearby", __doc__, output="results/digits")
    parser.add_argument("--networks", type=int, default=16, help="that each pair is moved to (default: %(default)s)")
    return parser


if __name__ == "__main__":
    run(main)
