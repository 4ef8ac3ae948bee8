"""What a scoring run will take: sizes by count, time by count and the speed of a small batch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from msif.attribution.chunks import NUMBER, capacities
from msif.attribution.cost import Cost
from msif.attribution.inverses import IHVP
from msif.attribution.scorers import Explainer, PairScorer
from msif.curvature.estimate import DISK, Machines, human_bytes, human_seconds
from msif.curvature.lissa import MEASURED, LiSSASettings
from msif.curvature.probe import Speed, measure
from msif.curvature.work import Work, multiplied, rotation_work, temporaries
from msif.data.sample import Plan
from msif.models.blocks import TrackedModule


@dataclass(frozen=True)
class ScoringPlan:
    """What a run scores, in numbers.

    Attributes:
        queries, tokens: how many, and the tokens of one, with its answer.
        steps: tokens that the model will say itself, of all queries together.
        shown: documents that are shown, of all queries together.
        candidates: all that are scored.
        index: those that the method's own curvature is taken from, if it has one.
        stages: what a solver goes over, for each stage that it inverts; empty where there is no solver.
        once: data that are gone over once for all queries: for halves, or the hop of an adapter.
        ihvp: which it is.
        room: bytes for query vectors.
        machines: whose memory and time it is.
    """

    queries: int
    tokens: float
    steps: int
    shown: int
    candidates: Plan
    index: Plan | None = None
    stages: Sequence[Plan] = ()
    once: Sequence[Plan] = ()
    ihvp: IHVP = field(default_factory=IHVP)
    room: int = sys.maxsize
    machines: Machines = field(default_factory=Machines)


def describe_scoring(scorer: PairScorer, plan: ScoringPlan, factors: Sequence[str | Path | None]) -> str:
    """Blocks, memory and time of a run."""
    side, cost = scorer.candidate_side, scorer.cost()
    cotangents = {"candidates": cost.candidates, **({"index": cost.index} if cost.index else {})}
    speed = measure(side.model, side.tracked, side.objective, plan.candidates, cotangents)
    parameters = sum(module.d_out * module.shape[1] for module in side.tracked)
    blocks = sum(len(module.blocks) for module in side.tracked)
    machines, models = plan.machines, [side.model, scorer.query_side.model, *cost.models]
    weights = machines.weights(models) + cost.copied
    disk = sum(file.stat().st_size for path in factors if path for file in Path(path).iterdir())
    made, kept = (min(plan.queries, count) for count in capacities(cost, plan.room))
    passes = -(-plan.queries // kept)
    held = NUMBER * max(cost.making * made, cost.making * made / 2 + cost.vector * kept) + (disk if plan.stages else 0)
    batch = sum(speed.held(plan.candidates.shapes))
    scoring = speed.over(plan.candidates, lambda B, T: cost.batch(B, T, plan.queries))
    if cost.stored:
        scoring += passes * plan.candidates.documents * cost.stored / DISK
    else:
        scoring += passes * (1 + len(cost.models)) * speed.passes(plan.candidates, "candidates")
        scoring *= machines.rounds(plan.candidates.batches)
    scoring += passes * plan.candidates.reading  # by each process
    index = 0.0
    if plan.index is not None:
        index = speed.passes(plan.index, "index") + speed.over(plan.index, cost.index_batch) + speed.of(cost.solve)
    queries = _queries(speed, plan, side.tracked, cost) + disk / DISK
    explaining = _explaining(speed, plan, side.tracked) if isinstance(scorer, Explainer) else 0.0
    most = "at most " if plan.stages else ""
    lines = [
        f"blocks      {blocks} shared, in {len(side.tracked)} modules, {parameters:,} parameters",
        f"on disk     {human_bytes(disk)} of factors",
        f"memory      about {human_bytes(weights + held)} (weights, and the vectors of {kept} queries), and "
        f"{human_bytes(batch)} for a batch",
        f"passes      {passes} over candidates",
        f"time        about {human_seconds(scoring)} for {plan.candidates.documents:.0f} candidates, after "
        "preselection",
        f"            {most}about {human_seconds(queries)} before, for the vectors of {plan.queries} queries",
    ]
    if machines.processes > 1:
        vectors = NUMBER * cost.vector * plan.queries
        gathered = machines.sent(models, passes * plan.candidates.batches / machines.processes)
        weight = f", and {human_bytes(gathered)} of weights" if gathered else ""
        lines.append(f"processes   {machines.processes}: each gets {human_bytes(vectors)} of query vectors{weight}")
    if plan.index is not None:
        count = f"{plan.index.documents:.0f} sequences of index data"
        lines.append(f"            and about {human_seconds(index)} before, for {count}")
    if explaining:
        lines.append(f"            and about {human_seconds(explaining)} after, to explain {plan.shown} documents")
    return "\n".join(lines)


def _queries(speed: Speed, plan: ScoringPlan, tracked: Sequence[TrackedModule], cost: Cost) -> float:
    """Answers, gradients, and the inverses of the stages applied to them."""
    answers = Plan({(1, max(1, round(plan.tokens))): 1}, plan.queries, plan.queries, 0.0, ())
    parameters = sum(module.d_out * module.shape[1] for module in tracked)
    gradient = Work(plan.tokens * multiplied(tracked)) + temporaries(3, parameters, 0)
    seconds = (
        plan.steps * speed.step + speed.passes(answers, "candidates") + plan.queries * speed.of(gradient + cost.query)
    )
    seconds += sum(speed.passes(data, "candidates") + data.reading for data in plan.once)
    parts, stages = 1 + len(cost.models), plan.stages
    seconds += parts * sum(_solver(speed, stage, tracked, plan.ihvp, plan.queries) for stage in stages)
    # halves are foretold by the first stage's inverse
    return seconds + sum(_solver(speed, stage, tracked, plan.ihvp, parts) for stage in stages[:1] if parts > 1)


# a product with the curvature, without its maps, beside a forward and a backward pass: tangents go forward as well, and
# attention is written out. With its maps it took 3.0 to 3.5 of them (hidden 256 and 512, two CPU threads)
PRODUCT = 2.4


def _solver(speed: Speed, stage: Plan, tracked: Sequence[TrackedModule], ihvp: IHVP, queries: int) -> float:
    """One stage's inverse at the limit of its iterations."""
    parameters = sum(module.d_out * module.shape[1] for module in tracked)
    # V x and g xᵀ at every position, the latter added to the sum once a batch
    maps = speed.over(stage, lambda B, T: Work(2 * B * T * multiplied(tracked), 2 * parameters))
    product = PRODUCT * speed.passes(stage, "candidates") + maps + stage.reading
    steps = ihvp.steps
    vectors = speed.of(Work(elements=8 * parameters))  # sums and inner products of an iteration
    if ihvp.kind == "arnoldi":
        return steps * product + speed.of(Work(2 * steps**2 * parameters))
    if ihvp.kind.startswith("ekfac"):
        vectors += speed.of(rotation_work(tracked))
    if ihvp.kind.endswith("cg"):
        return queries * (steps + (ihvp.kind == "ekfac-cg")) * (product + vectors)
    share = product / max(1.0, stage.batches)
    power = LiSSASettings().power_iterations
    scale = power * (product if ihvp.scale else min(MEASURED, stage.batches) * share)
    return queries * steps * (share + vectors) + scale


def _explaining(speed: Speed, plan: ScoringPlan, tracked: Sequence[TrackedModule]) -> float:
    # the strongest scores are those of long documents
    lengths = sorted(map(len, plan.candidates.sample))[-max(1, len(plan.candidates.sample) // 10) :]
    each = max(1, plan.shown // plan.queries)
    shown = Plan({(each, round(sum(lengths) / len(lengths))): 1}, plan.queries, plan.shown, 0.0, ())
    sides = [module.d_in if use.kind == "lookup" else module.d_out for module in tracked for use in module.uses]
    parts = Work(multiplied(tracked), 3 * sum(sides))
    return speed.passes(shown, "candidates") + speed.over(shown, lambda B, T: parts * (B * T))
