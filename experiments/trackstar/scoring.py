"""Scores of all methods, kept as they are made, and what a step on their proponents does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.cache import Cache, hashed
from experiments.common.search import embedding_scores, search_by_words
from experiments.trackstar.settings import Configuration, Sizes
from experiments.trackstar.world import Known, World
from msif.attribution.scorers import Scorer
from msif.attribution.stages import FittedStage, build_scorer
from msif.data.queries import Query
from msif.evaluation.tail_patch import saved_optimizer, tail_patch
from msif.index.scorer import IndexScorer
from msif.indexing import make_index, opened_plan

Scores = np.ndarray
"""(Q, N)."""


@dataclass
class Run:
    """One model and its facts.

    Attributes:
        folder: of indexes, factors and scores.
    """

    world: World
    facts: Sequence[Known]
    sizes: Sizes
    folder: Path

    @cached_property
    def cache(self) -> Cache:
        stage = self.world.stage
        settings = {"weights": stage.loaded.weights, "texts": hashed(list(self.world.texts))}
        return Cache(self.folder, settings)

    def queries(self, wording: str = "cloze", targets: Sequence[str] | None = None) -> list[Query]:
        return self.world.prompts(self.facts, wording, targets)

    def _kept(self, name: str, identity: Any, queries: Sequence[Query], compute: Callable[[], Scores]) -> Scores:
        asked = [(query.id, query.prompt, query.completion) for query in queries]
        key = f"{name}.{hashed([identity, asked])}"
        return self.cache.arrays(key, lambda: {"scores": compute().astype(np.float32)})["scores"]

    def by_configuration(self, one: Configuration, queries: Sequence[Query]) -> Scores:
        """By an index, which is built when it is first asked for."""
        identity = {**asdict(one), **asdict(self.sizes), "name": None}
        return self._kept("index", identity, queries, partial(self._indexed, one, queries))

    def _indexed(self, one: Configuration, queries: Sequence[Query]) -> Scores:
        stage, settings = self.world.stage, one.index(self.sizes)
        path = self.cache.folder / f"index-{hashed([settings.to_json(), one.moments])}"
        index = make_index(stage, path, settings, second_moments=one.moments)
        assert index is not None
        plan = opened_plan(index, stage)
        scorer = IndexScorer(plan, index, plan.side, r=one.r, normalize=one.normalize, measurement=one.measurement)
        return scorer.score(self.world.batches(queries), stage.batches).values

    def by_texts(self, name: str, queries: Sequence[Query]) -> Scores:
        asked, texts = [query.text for query in queries], list(self.world.texts)
        search = {"BM25+": search_by_words, "sentence embeddings": embedding_scores}[name]
        return self._kept(name.replace(" ", "-"), name, queries, lambda: search(asked, texts))

    def by_scorer(self, name: str, queries: Sequence[Query]) -> Scores:
        """TRAK, and single-stage EK-FAC with its factors."""
        return self._kept(name.replace(" ", "-"), name, queries, lambda: self._scored(name, queries))

    def _scored(self, name: str, queries: Sequence[Query]) -> Scores:
        stage = self.world.maps
        scorer: Scorer
        if name == "TRAK":
            scorer = build_scorer("trak", FittedStage(stage.side, batches=stage.batches), None)
        else:
            stage.factors = self.cache.folder / "factors"
            fitted = FittedStage(stage.side, stage.store)
            normalize = "unit" if name.endswith("unit norm") else "none"
            scorer = build_scorer("single-stage", fitted, None, normalize=normalize)
        return scorer.score(self.world.batches(queries), stage.batches).values

    def gold(self) -> Scores:
        """The sentences that state a fact above all others, in the order of the corpus."""
        places = np.linspace(2, 1, len(self.world.texts), dtype=np.float32)
        return np.stack([self.world.relevant(known) * places for known in self.facts])

    def patched(self, queries: Sequence[Query], chosen: Mapping[str, Scores]) -> dict[str, list[np.ndarray]]:
        """Method -> of each query what a step on its first proponents adds to the probability, best first.

        A step on a sentence serves all methods that choose it. Of the gold sentences only as many as there are.
        """
        most = max(self.sizes.top)
        lists = {name: [_first(row, most) for row in scores] for name, scores in chosen.items()}
        wanted = np.zeros((len(queries), len(self.world.texts)), dtype=bool)
        for rows in lists.values():
            for query, own in enumerate(rows):
                wanted[query, own] = True
        changes = self._changes(queries, wanted)
        return {name: [changes[q, own] for q, own in enumerate(rows)] for name, rows in lists.items()}

    def _changes(self, queries: Sequence[Query], wanted: np.ndarray) -> np.ndarray:
        """(Q, N) where wanted, else perhaps NaN; a step that an earlier call made is not made again."""
        asked = [(query.id, query.prompt, query.completion) for query in queries]
        name = f"tail-patch.{hashed([asked, self.sizes.learning_rate])}"
        found = self.cache.load(name)["changes"] if self.cache.has(name) else np.full(wanted.shape, np.nan)
        missing = [np.flatnonzero(row) for row in wanted & np.isnan(found)]
        places = [query for query, rows in enumerate(missing) if len(rows)]
        if places:
            made = self._steps([queries[q] for q in places], [missing[q].tolist() for q in places])
            for query, changes in zip(places, made, strict=True):
                found[query, missing[query]] = changes
            self.cache.save(name, {"changes": found})
        return found

    def _steps(self, queries: Sequence[Query], rows: Sequence[Sequence[int]]) -> Sequence[np.ndarray]:
        stage = self.world.stage
        model = stage.loaded.model
        step = saved_optimizer(stage.loaded.name, model, self.sizes.learning_rate)
        documents = self.world.sentences([row for own in rows for row in own])
        asked = self.world.batches(queries, alone=True)
        return tail_patch(model, stage.objective, step, asked, documents, rows).changes


def _first(scores: np.ndarray, most: int) -> np.ndarray:
    """Rows of the best scores, without those of exactly zero, which share no word, or are no source."""
    order = np.argsort(-scores, kind="stable")[:most]
    kept = order[scores[order] != 0]
    return kept if len(kept) else order
