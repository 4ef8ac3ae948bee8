"""Where the scores of the documents that are shown come from: one pass over these, for all queries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from msif.attribution.contributions import Contributions
from msif.attribution.results import Ranking
from msif.attribution.scorers import Explainer
from msif.progress import progress

Parts = Callable[[int, Sequence[int]], dict[int, Contributions]]
"""(a query's number, rows) -> row number -> parts of its score; empty where scores have none."""


class Explained:
    """Parts of the scores of all documents that are shown, from one pass over them when the first are asked for."""

    def __init__(
        self,
        explainer: Explainer,
        vectors: Any,
        rankings: Sequence[Ranking],
        top_k: int,
        documents: Callable[[Sequence[int]], Iterable[Any]],
    ) -> None:
        """
        Args:
            documents: rows of the corpus -> batches of them.
        """
        self.explainer, self.vectors, self.documents = explainer, vectors, documents
        self.wanted: dict[int, list[int]] = {}  # row -> queries
        for number, ranking in enumerate(rankings):
            for _, place in ranking.shown(top_k):
                self.wanted.setdefault(int(ranking.rows[place]), []).append(number)
        self.parts: dict[int, dict[int, Contributions]] | None = None

    def of(self, query: int, rows: Sequence[int]) -> dict[int, Contributions]:
        return self.make()[query] if rows else {}

    def make(self) -> dict[int, dict[int, Contributions]]:
        """Query -> row -> parts; of each batch only for the queries that show one of its documents."""
        if self.parts is None:
            parts: dict[int, dict[int, Contributions]] = {}
            batches = self.documents(sorted(self.wanted))
            for batch in progress(batches, desc="explaining", unit="batch"):
                queries = sorted({query for row in batch.indices.tolist() for query in self.wanted[row]})
                for found in self.explainer.explain(self.vectors, [batch], queries):
                    for query in self.wanted[found.index]:
                        parts.setdefault(query, {})[found.index] = found.only(queries.index(query))
            self.parts, self.vectors = parts, None
        return self.parts
