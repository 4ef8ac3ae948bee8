"""Candidates that share rare words with the query: BM25+ (Lv and Zhai 2011), the one index of a run.

Letters: Q queries, N documents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from msif.candidates.selection import at_most
from msif.candidates.words import neighbours, unpointed, words
from msif.progress import progress as bar_of

# A pair of characters is no more common than each of them, but they may come many times apart. At three times the
# weight, a text that has the pair goes before one that has not, however often that one has the two.
PAIR = 3.0

Seen = Callable[[str, Sequence[str]], None]
"""Called with each text and its terms, in the order of the documents."""


def terms(text: str) -> list[str]:
    """What a document is found by: its words, and what stands for them where they are not told or not written out."""
    return [*words(text), *unpointed(text), *neighbours(text)]


def weights_of(query: str) -> dict[str, float]:
    """How much each term of a query counts: as often as it is there, pairs of characters ``PAIR`` times that."""
    weights = Counter[str]()
    for counted, weight in ((Counter([*words(query), *unpointed(query)]), 1.0), (Counter(neighbours(query)), PAIR)):
        for term, count in counted.items():
            weights[term] += weight * count  # type: ignore[assignment]
    return dict(weights)


class BM25:
    """BM25+ of all N documents for Q queries, from one pass over the texts: each term's part by `rank_bm25`, times its
    weight in the query (``weights_of``).

    The package's δ goes to every document for every term, shared or not: a constant of the query, and no part of an
    order. It is left out (δ = 0), so that a document that shares nothing has 0. Only the places of the queries' own
    terms are held, so that any corpus will do.

    Attributes:
        documents: N.
    """

    def __init__(
        self, queries: Sequence[str], texts: Iterable[str], *, seen: Seen | None = None, progress: bool = True
    ) -> None:
        from rank_bm25 import BM25Plus

        self.weights = [weights_of(query) for query in queries]
        self._places: dict[str, list[int]] = {term: [] for own in self.weights for term in own}
        lengths, kept = [], []
        for row, text in enumerate(bar_of(texts, hidden=not progress, unit="doc", desc="BM25 index")):
            found = terms(text)
            own = [term for term in found if term in self._places]
            lengths.append(len(found))
            kept.append(own)
            for term in set(own):
                self._places[term].append(row)
            if seen is not None:
                seen(text, found)
        self.documents = len(lengths)
        self._index = BM25Plus(kept or [[]], delta=0)
        # lengths are those of whole documents, which the index has not seen
        self._index.doc_len, self._index.avgdl = np.array(lengths), sum(lengths) / max(1, len(lengths))

    def parts(self, query: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Term -> (the rows of the documents that have it, its parts of their scores), rows ascending."""
        return {term: self._part(term, weight) for term, weight in self.weights[query].items() if self._places[term]}

    def _part(self, term: str, weight: float) -> tuple[np.ndarray, np.ndarray]:
        rows = self._places[term]
        return np.array(rows), weight * np.array(self._index.get_batch_scores([term], rows))

    def scores(self, query: int) -> np.ndarray:
        """Of every document, (N,)."""
        total = np.zeros(self.documents)
        for rows, values in self.parts(query).values():
            total[rows] += values
        return total


class BM25Selector:
    """The `count` documents that score highest by BM25+ on terms; equal scores go by row number.

    Args:
        scores: (a query's number) -> its scores of all texts, (N,), where they are known already.
    """

    def __init__(self, count: int, *, progress: bool = True, scores: Callable[[int], np.ndarray] | None = None) -> None:
        self.count, self.progress, self.scores = count, progress, scores

    def select(self, queries: Sequence[str], texts: Sequence[str]) -> list[np.ndarray]:
        count = at_most(self.count, texts)
        scores = self.scores or BM25(queries, texts, progress=self.progress).scores
        return [top_rows(scores(number), count) for number in range(len(queries))]


def bm25_scores(queries: Sequence[str], texts: Iterable[str], *, progress: bool = True) -> Iterator[np.ndarray]:
    """BM25+ of all N texts for one query after the other, (N,); the frequencies are those of all texts."""
    index = BM25(queries, texts, progress=progress)
    return (index.scores(number) for number in range(len(queries)))


def top_rows(scores: np.ndarray, count: int) -> np.ndarray:
    """Row numbers of the `count` highest of N scores, best first, equal ones by row number; no full sort."""
    if count >= len(scores):
        return np.argsort(-scores, kind="stable").astype(np.int64)
    threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
    above = np.flatnonzero(scores > threshold)
    level = np.flatnonzero(scores == threshold)[: count - len(above)]
    return np.concatenate([above[np.argsort(-scores[above], kind="stable")], level]).astype(np.int64)
