"""Candidates that share rare words with the query (BM25+, Lv and Zhai 2011)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from msif.candidates.selection import at_most
from msif.candidates.words import neighbours, unpointed, words
from msif.progress import progress

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
        from rank_bm25 import BM25Plus

        count = at_most(self.count, texts)
        # A list of terms for each text: given plain strings, the index would be one of characters.
        hidden = not self.progress
        index = BM25Plus([terms(text) for text in progress(texts, hidden=hidden, unit="doc", desc="BM25 index")])
        if index.avgdl == 0:  # no text has a word: nothing to rank by
            return [np.arange(count, dtype=np.int64) for _ in queries]
        bar = progress(queries, hidden=hidden, unit="query", desc="BM25")
        return [top_rows(_scores(index, query), count) for query in bar]


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
