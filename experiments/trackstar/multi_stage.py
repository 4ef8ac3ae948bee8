"""An index of H^(−1/2) ∇ against exact multi-stage influence, by the number of features and by their basis.

The fine-tuned model of the pair is asked the questions that it was not fine-tuned on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from experiments.common.cache import Cache, hashed
from experiments.facts.reading import Pair, read_pair
from msif.attribution.damping import Damping
from msif.attribution.scorers import Scorer
from msif.attribution.stages import FittedStage, build_scorer
from msif.curvature.preconditioners import EKFAC
from msif.data.batching import batches_of
from msif.data.documents import Batch
from msif.data.queries import Query, encode_queries
from msif.evaluation.correlation import spearman
from msif.evaluation.intervals import bootstrap
from msif.evaluation.retrieval import recall_at, reciprocal_rank
from msif.index.scorer import IndexScorer
from msif.index.settings import BASES, IndexSettings
from msif.index.storage import GradientIndex
from msif.indexing import make_index, opened_plan
from msif.reporting.tables import Table
from msif.stage import Stage

PROJECTIONS = (4, 8)
EXACT = "exact multi-stage influence"


@dataclass
class TwoStages:
    """The pair with factors of both models, and what is asked.

    Attributes:
        facts: of the half that is only asked, so many.
    """

    pair: Pair
    folder: Path
    facts: int
    blocks: int

    @cached_property
    def first(self) -> Stage:
        factors = self.folder / "pretrained-factors"
        return Stage(self.pair.pretrained, list(self.pair.texts), factors, dtype="float32", modules="maps")

    @cached_property
    def last(self) -> Stage:
        end = self.first.loaded.tokenizer.eos_token or ""
        rows = [{**row, "completion": row["completion"] + end} for row in self.pair.finetuning]
        return Stage(self.pair.finetuned, rows, self.folder / "finetuned-factors", dtype="float32", modules="maps")

    @cached_property
    def cache(self) -> Cache:
        weights = [stage.loaded.weights for stage in (self.first, self.last)]
        return Cache(self.folder, {"weights": weights, "texts": hashed(list(self.pair.texts))})

    @property
    def damping(self) -> Damping:
        """The command line's."""
        return Damping(alpha="auto")

    @cached_property
    def queries(self) -> list[Batch]:
        asked = [Query(fact.id, fact.prompt, fact.completion) for fact in self.pair.asked[: self.facts]]
        return batches_of(encode_queries(asked, self.last.loaded.tokenizer, max_length=self.last.max_length), 4096)

    @cached_property
    def stages(self) -> tuple[FittedStage, FittedStage]:
        first, last = (FittedStage(one.side, one.store, one.tau, one.batches) for one in (self.first, self.last))
        return first, last

    def exact(self) -> np.ndarray:
        """(Q, N)."""
        return self._kept("exact", None, lambda: build_scorer("multi-stage", *self.stages, self.damping))

    def by_index(self, settings: IndexSettings) -> np.ndarray:
        return self._kept("index", settings.to_json(), lambda: self._scorer(settings))

    def path(self, settings: IndexSettings) -> Path:
        return self.cache.folder / f"index-{hashed(settings.to_json())}"

    def _scorer(self, settings: IndexSettings) -> IndexScorer:
        path = self.path(settings)
        factors = self.first.store.path
        index = make_index(self.first, path, settings, factors=factors, damping_scale=self.damping.damping_scale)
        assert index is not None
        last = self.stages[1]
        assert last.factors is not None
        inverse = EKFAC(last.factors, self.damping.later(last.tau))
        return IndexScorer(opened_plan(index, self.first, factors), index, last.side, [inverse])

    def _kept(self, name: str, settings: object, scorer: Callable[[], Scorer]) -> np.ndarray:
        def compute() -> dict[str, np.ndarray]:
            return {"scores": scorer().score(self.queries, self.first.batches).values}

        return self.cache.arrays(f"{name}-{hashed([settings, self.facts])}", compute)["scores"]

    def relevant(self, fact: int) -> np.ndarray:
        return np.isin(np.arange(len(self.pair.texts)), self.pair.asked[fact].sources)


def index_table(folder: Path, pair: Path, facts: int, blocks: int, projections: Sequence[int] = PROJECTIONS) -> Table:
    """Rank correlation with exact scores over all sentences, and how well sources are found."""
    two = TwoStages(read_pair(pair), folder, facts, blocks)
    _ = two.cache
    exact = two.exact()
    rows = [_row(two, EXACT, "–", None, exact, exact)]
    for basis in BASES:
        for size in projections:
            settings = IndexSettings(blocks=blocks, projection=size, basis=basis, dtype="bfloat16")
            found = two.by_index(settings)
            width = GradientIndex.open(two.path(settings)).width
            rows.append(_row(two, f"{basis} features", f"{size} × {size}", width, found, exact))
    columns = ("scores", "of a block", "features", "Spearman with exact", "MRR", "recall@10", "of exact's first ten")
    formats = dict.fromkeys(columns[3:], ".3f")
    title = f"Multi-stage influence by an index: {len(exact)} questions, {exact.shape[1]} sentences"
    return Table(columns, rows, title, formats)


def _row(two: TwoStages, name: str, size: str, features: int | None, found: np.ndarray, exact: np.ndarray) -> tuple:
    places = range(len(exact))
    same = [spearman(found[q], exact[q]) for q in places]
    ranks = [reciprocal_rank(found[q], two.relevant(q)) for q in places]
    recalls = [recall_at(found[q], two.relevant(q), 10) for q in places]
    first = [set(np.argsort(-one[q], kind="stable")[:10]) for q in places for one in (found, exact)]
    common = [len(a & b) / 10 for a, b in zip(first[::2], first[1::2], strict=True)]
    return name, size, features, *(bootstrap(values) for values in (same, ranks, recalls, common))
