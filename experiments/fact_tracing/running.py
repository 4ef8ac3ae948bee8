"""Every method's scores: from the cache, or computed and kept, method by method."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.common.cache import Arrays, Cache, hashed, keyed
from experiments.fact_tracing.candidates import Ranking
from experiments.fact_tracing.methods import Baseline, Influence, Method
from experiments.fact_tracing.models import Models
from experiments.fact_tracing.stacked import Part, capacity_of, packed, score_parts, stack
from msif.attribution.scorers import InfluenceScorer
from msif.curvature.cg import CG

Done = dict[str, Arrays]
"""Method name -> "score/KIND" and "norm/KIND" of each fact's candidates, one fact after the other; "seconds"; and of
methods that solve "residual", the largest relative one that a stage ended with."""


def score_cache(folder: Path, models: Models, ranking: Ranking, overwrite: bool = False) -> Cache:
    """Of everything that all scores depend on: models, data, what is asked and ranked."""
    identity = {
        "models": models.identity,
        "asked": hashed([(fact.id, fact.prompt, fact.completion) for fact in ranking.asked]),
        "candidates": hashed([rows.tolist() for rows in ranking.candidates]),
    }
    return Cache(keyed(folder, "run", identity, overwrite), identity)


def part_name(method: Method) -> str:
    """Of a method's scores in the cache."""
    return f"{method.name}.{hashed(method.settings)}"


def facts_of(method: Method, ranking: Ranking) -> list[int]:
    """The facts that a method is asked about: all, or the first of each trial."""
    most = method.facts if isinstance(method, Influence) else None
    kept = [np.flatnonzero(ranking.trial == trial)[:most] for trial in np.unique(ranking.trial)]
    return np.concatenate(kept).tolist()


def compute(methods: Sequence[Method], models: Models, ranking: Ranking, cache: Cache, gigabytes: float = 3.0) -> Done:
    """The scores of all methods.

    Args:
        gigabytes: of query vectors that are held at a time; about twice that is taken in all.
    """
    waiting = [method for method in methods if not cache.has(part_name(method))]
    for method in waiting:
        if isinstance(method, Baseline):
            start = time.perf_counter()
            arrays = method.scores(models, ranking)
            everyone = range(len(ranking.asked))
            flat = {
                key: ranking.own(np.broadcast_to(values, (len(everyone), values.shape[1])), everyone)
                for key, values in arrays.items()
            }
            _save(cache, method, flat, time.perf_counter() - start)
    influences = [method for method in waiting if isinstance(method, Influence)]
    if influences:
        Passes(models, ranking, cache, gigabytes).run(influences)
    return {method.name: cache.load(part_name(method)) for method in methods}


@dataclass(frozen=True)
class Piece:
    """Some facts of a method: their parts, the time they took with their share of the pass, a solver's residual."""

    parts: dict[str, Part]
    seconds: float
    residual: float | None

    @property
    def facts(self) -> int:
        return len(next(iter(self.parts.values())).scores)


@dataclass
class Passes:
    """The shared passes of influence methods; a method is kept as soon as all its facts are scored."""

    models: Models
    ranking: Ranking
    cache: Cache
    gigabytes: float

    def run(self, methods: Sequence[Influence]) -> None:
        scorers = {method.name: method.scorer(self.models) for method in tqdm(methods, desc="factors", disable=None)}
        # those with the same candidates' gradients share passes
        shared: dict[Any, list[Influence]] = {}
        for method in methods:
            side = scorers[method.name].candidate_side
            shared.setdefault((id(side.model), *(module.name for module in side.tracked)), []).append(method)
        for members in shared.values():
            side = scorers[members[0].name].candidate_side
            self._run(members, scorers, capacity_of(side, self.gigabytes))

    def _run(self, methods: Sequence[Influence], scorers: dict[str, InfluenceScorer], capacity: int) -> None:
        wanted: Callable[[Influence], list[int]] = lambda method: facts_of(method, self.ranking)  # noqa: E731
        total = -(-sum(len(wanted(method)) for method in methods) // capacity)
        found: dict[str, list[Piece]] = {method.name: [] for method in methods}
        for items in tqdm(packed(methods, wanted, capacity), desc="passes", total=total, unit="pass", disable=None):
            for method, piece in self._pass(items, scorers):
                found[method.name].append(piece)
                done = sum(piece.facts for piece in found[method.name])
                if done == len(wanted(method)):
                    self._keep(method, found.pop(method.name))

    def _pass(
        self, items: Sequence[tuple[Influence, list[int]]], scorers: dict[str, InfluenceScorer]
    ) -> list[tuple[Influence, Piece]]:
        """What each method gets of one pass."""
        vectors, seconds, residuals = [], [], []
        for method, facts in items:
            start = time.perf_counter()
            batches = self.models.queries([self.ranking.asked[fact] for fact in facts])
            vectors.append(scorers[method.name].query_vectors(batches))
            seconds.append(time.perf_counter() - start)
            residuals.append(residual_of(scorers[method.name]))
        start = time.perf_counter()
        side = scorers[items[0][0].name].candidate_side
        whole = score_parts(side, stack(vectors), self.models.sentences(self.ranking.rows))
        edges = np.cumsum([0, *(len(facts) for _, facts in items)])
        share = (time.perf_counter() - start) / edges[-1]
        pieces = []
        for i, (method, facts) in enumerate(items):
            parts = {kind: Part(part.scores[edges[i] : edges[i + 1]], part.norms) for kind, part in whole.items()}
            pieces.append((method, Piece(parts, seconds[i] + share * len(facts), residuals[i])))
        return pieces

    def _keep(self, method: Influence, pieces: Sequence[Piece]) -> None:
        facts = facts_of(method, self.ranking)
        arrays = {}
        for kind, part in pieces[0].parts.items():
            scores = np.concatenate([piece.parts[kind].scores for piece in pieces])
            arrays[f"score/{kind}"] = self.ranking.own(scores, facts)
            arrays[f"norm/{kind}"] = self.ranking.own(np.broadcast_to(part.norms, scores.shape), facts)
        residuals = [piece.residual for piece in pieces if piece.residual is not None]
        if residuals:
            arrays["residual"] = np.array(max(residuals))
        _save(self.cache, method, arrays, sum(piece.seconds for piece in pieces))


def residual_of(scorer: InfluenceScorer) -> float | None:
    """The largest relative residual that a solver among the preconditioners ended with; None where none solves."""
    solutions = [p.solution for p in scorer.preconditioners if isinstance(p, CG) and p.solution is not None]
    return max((float(solution.residuals[-1].max()) for solution in solutions), default=None)


def _save(cache: Cache, method: Method, arrays: Arrays, seconds: float) -> None:
    cache.save(part_name(method), {**arrays, "seconds": np.array(seconds)})
