"""Candidates that share rare words with the query (BM25+, Lv and Zhai 2011)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from msif.candidates.selection import at_most
from msif.candidates.words import neighbours, unpointed, words
from msif.progress import progress as bar_of

# A pair of characters is no more common than each of them, but they may come many times apart. At three times the
# weight, a text that has the pair goes before one that has not, however often that one has the two.
PAIR = 3.0


def terms(text: str) -> list[str]:
    """What a document is found by: its words, and what stands for them where they are not told or not written out."""
    return [*words(text), *unpointed(text), *neighbours(text)]


class BM25Selector:
    """The `count` documents that score highest by BM25+ on terms; equal scores go by row number."""

    def __init__(self, count: int, *, progress: bool = True) -> None:
        self.count = count
        self.progress = progress

    def select(self, queries: Sequence[str], texts: Sequence[str]) -> list[np.ndarray]:
        count = at_most(self.count, texts)
        return [top_rows(scores, count) for scores in bm25_scores(queries, texts, progress=self.progress)]


def bm25_scores(queries: Sequence[str], texts: Sequence[str], *, progress: bool = True) -> Iterator[np.ndarray]:
    """BM25+ of all N texts for one query after the other, (N,); the frequencies are those of all texts."""
    from rank_bm25 import BM25Plus

    # A list of terms for each text: given plain strings, the index would be one of characters.
    index = BM25Plus([terms(text) for text in bar_of(texts, hidden=not progress, unit="doc", desc="BM25 index")])
    for query in bar_of(queries, hidden=not progress, unit="query", desc="BM25"):
        # without any word there is nothing to rank by
        yield np.zeros(len(texts)) if index.avgdl == 0 else _scores(index, query)


def _scores(index: Any, query: str) -> np.ndarray:
    """The score of each document, shape (N,)."""

    def scores(terms: list[str]) -> np.ndarray:
        # A term that no document has scores nothing, and would take a pass over the corpus.
        return np.asarray(index.get_scores([term for term in terms if term in index.idf]))

    return scores([*words(query), *unpointed(query)]) + PAIR * scores(neighbours(query))


def top_rows(scores: np.ndarray, count: int) -> np.ndarray:
    """Row numbers of the `count` highest of N scores, best first, equal ones by row number; no full sort."""
    if count >= len(scores):
        return np.argsort(-scores, kind="stable").astype(np.int64)
    threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
    above = np.flatnonzero(scores > threshold)
    level = np.flatnonzero(scores == threshold)[: count - len(above)]
    return np.concatenate([above[np.argsort(-scores[above], kind="stable")], level]).astype(np.int64)
