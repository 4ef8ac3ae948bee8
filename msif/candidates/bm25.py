"""Candidates that share rare words with the query: BM25+ (Lv and Zhai 2011), the one implementation of a run.

Letters: Q queries, N documents, n_t of them with a term t, f_t its number in a document, ℓ a document's terms over
their mean.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from msif.candidates.selection import at_most
from msif.candidates.words import neighbours, unpointed, words
from msif.progress import progress as bar_of

K1, B, DELTA = 1.5, 0.75, 1.0  # as rank_bm25 has them

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
    """BM25+ of all N documents for Q queries, from one pass over the texts:

        Σ_t w_t log((N + 1) / n_t) (δ + f_t (k + 1) / (f_t + k (1 − b + b ℓ)))

    over the query's terms that any document has, w_t by ``weights_of``. It holds the places of the queries' own terms
    only, so that any corpus will do.

    Attributes:
        documents: N.
    """

    def __init__(
        self, queries: Sequence[str], texts: Iterable[str], *, seen: Seen | None = None, progress: bool = True
    ) -> None:
        self.weights = [weights_of(query) for query in queries]
        self._places: dict[str, list[tuple[int, int]]] = {term: [] for own in self.weights for term in own}
        lengths = []
        for row, text in enumerate(bar_of(texts, hidden=not progress, unit="doc", desc="BM25 index")):
            found = terms(text)
            lengths.append(len(found))
            for term, count in Counter(term for term in found if term in self._places).items():
                self._places[term].append((row, count))
            if seen is not None:
                seen(text, found)
        self.documents = len(lengths)
        self._lengths = np.asarray(lengths, dtype=np.float64)

    def parts(self, query: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Term -> (the rows of the documents that have it, its parts of their scores), rows ascending."""
        return {term: self._part(term, weight) for term, weight in self.weights[query].items() if self._places[term]}

    def _part(self, term: str, weight: float) -> tuple[np.ndarray, np.ndarray]:
        rows, counts = np.asarray(self._places[term], dtype=np.int64).T
        length = 1 - B + B * self._lengths[rows] / self._lengths.mean()
        return rows, self._rarity(term, weight) * (DELTA + counts * (K1 + 1) / (K1 * length + counts))

    def _rarity(self, term: str, weight: float) -> float:
        return weight * math.log((self.documents + 1) / len(self._places[term]))

    def scores(self, query: int) -> np.ndarray:
        """Of every document, (N,).

        A term that a document lacks adds its δ all the same, as in rank_bm25: a constant of the query.
        """
        total = np.zeros(self.documents)
        for term, (rows, values) in self.parts(query).items():
            lacking = DELTA * self._rarity(term, self.weights[query][term])
            total += lacking
            total[rows] += values - lacking
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
