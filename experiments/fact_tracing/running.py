"""Every method's scores: from the cache, or computed and kept, method by method."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.common.cache import Arrays, Cache, hashed, keyed
from experiments.common.methods import Method, Search
from experiments.fact_tracing.candidates import Ranking
from experiments.fact_tracing.models import Models
from experiments.fact_tracing.projected import logra_scores
from experiments.fact_tracing.stacked import Part, packed, score_parts
from msif.attribution.chunks import capacities
from msif.attribution.composite import CompositeScorer
from msif.attribution.logra import LoGraScorer
from msif.attribution.scorers import InfluenceScorer, Scorer
from msif.attribution.scoring import stack
from msif.curvature.cg import CG

Done = dict[str, Arrays]
"""Method's key -> "score/KIND" and "norm/KIND" of each fact's candidates, one fact after the other; "seconds"; and of
methods that solve "residual", the largest relative one that a stage ended with."""


def score_cache(folder: Path, models: Models, ranking: Ranking, overwrite: bool = False) -> Cache:
    """Of everything that all scores depend on: models, data, what is asked and ranked."""
    identity = {
        "models": models.identity,
        "asked": hashed([(fact.id, fact.prompt, fact.completion) for fact in ranking.asked]),
        "candidates": hashed([rows.tolist() for rows in ranking.candidates]),
    }
    return Cache(keyed(folder, "run", identity, overwrite), identity)


def part_name(method: Method, ranking: Ranking) -> str:
    """Of a method's scores in the cache."""
    return f"{method.key}-{ranking.few}" if method.dear else method.key


def facts_of(method: Method, ranking: Ranking) -> list[int]:
    """The facts that a method is asked about: all, or the first of each trial."""
    most = ranking.few if method.dear else None
    kept = [np.flatnonzero(ranking.trial == trial)[:most] for trial in np.unique(ranking.trial)]
    return np.concatenate(kept).tolist()


def compute(methods: Sequence[Method], models: Models, ranking: Ranking, cache: Cache, gigabytes: float = 3.0) -> Done:
    """The scores of all methods.

    Args:
        gigabytes: for query vectors, those of a pass.
    """
    waiting = [method for method in methods if not cache.has(part_name(method, ranking))]
    passes = Passes(models, ranking, cache, gigabytes)
    # those by texts first, which are soon done
    for method in tqdm(sorted(waiting, key=lambda method: method.search is None), desc="scorers", disable=None):
        start = time.perf_counter()
        scorer = method.search or method.build(models)
        if isinstance(scorer, InfluenceScorer):
            passes.add(method, scorer)
        else:
            _save(cache, method, ranking, _alone(scorer, models, ranking, gigabytes), time.perf_counter() - start)
    passes.run()
    return {method.key: cache.load(part_name(method, ranking)) for method in methods}


def _alone(scorer: Scorer | Search, models: Models, ranking: Ranking, gigabytes: float) -> Arrays:
    """Scores of a method that shares no pass with others."""
    if callable(scorer):
        found = {"score/all": scorer([fact.text for fact in ranking.asked], models.pair.texts)[:, ranking.rows]}
    else:
        queries, candidates = models.queries(ranking.asked), models.sentences(ranking.rows)
        if isinstance(scorer, LoGraScorer):
            found = logra_scores(scorer, queries, candidates)
        elif isinstance(scorer, CompositeScorer):
            capacity = capacities(scorer.cost(), int(gigabytes * 1e9))[1]
            chunks = [ranking.asked[i : i + capacity] for i in range(0, len(ranking.asked), capacity)]
            scored = [scorer.score(models.queries(chunk), candidates).values for chunk in chunks]
            found = {"score/all": np.concatenate(scored)}
        else:
            found = {"score/all": scorer.score(queries, candidates).values}
    everyone = range(len(ranking.asked))
    shape = len(everyone), len(ranking.rows)
    return {key: ranking.own(np.broadcast_to(values, shape), everyone) for key, values in found.items()}


def summed(arrays: Arrays, kinds: Sequence[str]) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores and norms over some kinds of modules together; no norms where a method has none."""
    scores = np.sum([arrays[f"score/{kind}"] for kind in kinds], axis=0, dtype=np.float64)
    if not all(f"norm/{kind}" in arrays for kind in kinds):
        return scores, None
    return scores, np.sqrt(np.sum([arrays[f"norm/{kind}"].astype(np.float64) ** 2 for kind in kinds], axis=0))


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
    _shared: dict[Any, list[Method]] = field(default_factory=dict)
    _scorers: dict[str, InfluenceScorer] = field(default_factory=dict)

    def add(self, method: Method, scorer: InfluenceScorer) -> None:
        """Methods with the same candidates' gradients share passes."""
        side = scorer.candidate_side
        self._scorers[method.key] = scorer
        self._shared.setdefault((id(side.model), *(module.name for module in side.tracked)), []).append(method)

    def run(self) -> None:
        for members in self._shared.values():
            costs = [self._scorers[method.key].cost() for method in members]
            self._run(members, min(capacities(cost, int(self.gigabytes * 1e9))[1] for cost in costs))

    def _run(self, methods: Sequence[Method], capacity: int) -> None:
        wanted: Callable[[Method], list[int]] = lambda method: facts_of(method, self.ranking)  # noqa: E731
        total = -(-sum(len(wanted(method)) for method in methods) // capacity)
        found: dict[str, list[Piece]] = {method.key: [] for method in methods}
        for items in tqdm(packed(methods, wanted, capacity), desc="passes", total=total, unit="pass", disable=None):
            for method, piece in self._pass(items):
                found[method.key].append(piece)
                if sum(piece.facts for piece in found[method.key]) == len(wanted(method)):
                    self._keep(method, found.pop(method.key))

    def _pass(self, items: Sequence[tuple[Method, list[int]]]) -> list[tuple[Method, Piece]]:
        """What each method gets of one pass."""
        vectors, seconds, residuals = [], [], []
        for method, facts in items:
            start = time.perf_counter()
            batches = self.models.queries([self.ranking.asked[fact] for fact in facts])
            vectors.append(self._scorers[method.key].query_vectors(batches))
            seconds.append(time.perf_counter() - start)
            residuals.append(residual_of(self._scorers[method.key]))
        start = time.perf_counter()
        side = self._scorers[items[0][0].key].candidate_side
        whole = score_parts(side, stack(vectors), self.models.sentences(self.ranking.rows))
        edges = np.cumsum([0, *(len(facts) for _, facts in items)])
        share = (time.perf_counter() - start) / edges[-1]
        pieces = []
        for i, (method, facts) in enumerate(items):
            parts = {kind: Part(part.scores[edges[i] : edges[i + 1]], part.norms) for kind, part in whole.items()}
            pieces.append((method, Piece(parts, seconds[i] + share * len(facts), residuals[i])))
        return pieces

    def _keep(self, method: Method, pieces: Sequence[Piece]) -> None:
        facts = facts_of(method, self.ranking)
        arrays = {}
        for kind, part in pieces[0].parts.items():
            scores = np.concatenate([piece.parts[kind].scores for piece in pieces])
            arrays[f"score/{kind}"] = self.ranking.own(scores, facts)
            arrays[f"norm/{kind}"] = self.ranking.own(np.broadcast_to(part.norms, scores.shape), facts)
        if not all(stage.blockwise for stage in self._scorers[method.key].preconditioners):
            # modules mix in its vectors: a kind alone is no method
            arrays = dict(zip(("score/all", "norm/all"), summed(arrays, list(pieces[0].parts)), strict=True))
        residuals = [piece.residual for piece in pieces if piece.residual is not None]
        if residuals:
            arrays["residual"] = np.array(max(residuals))
        _save(self.cache, method, self.ranking, arrays, sum(piece.seconds for piece in pieces))


def residual_of(scorer: InfluenceScorer) -> float | None:
    """The largest relative residual that a solver among the preconditioners ended with; None where none solves."""
    solutions = [p.solution for p in scorer.preconditioners if isinstance(p, CG) and p.solution is not None]
    return max((float(solution.residuals[-1].max()) for solution in solutions), default=None)


def _save(cache: Cache, method: Method, ranking: Ranking, arrays: Arrays, seconds: float) -> None:
    cache.save(part_name(method, ranking), {**arrays, "seconds": np.array(seconds)})
