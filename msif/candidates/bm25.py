"""Candidates that share rare words with the query (BM25+, Lv and Zhai 2011)."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from msif.candidates.selection import at_most

# Words of letters and digits; of Chinese and Japanese, written without spaces, each character is a word.
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
WORD = re.compile(rf"[{CJK}]|[^\W{CJK}]+")


def words(text: str) -> list[str]:
    """The lower-cased words of a text."""
    return WORD.findall(text.lower())


class BM25Selector:
    """The `count` documents that score highest by BM25+ on words; equal scores go by row number."""

    def __init__(self, count: int, *, progress: bool = True) -> None:
        self.count = count
        self.progress = progress

    def select(self, queries: Sequence[str], texts: Sequence[str]) -> list[np.ndarray]:
        from rank_bm25 import BM25Plus
        from tqdm import tqdm

        count = at_most(self.count, texts)
        # A list of words for each text: given plain strings, the index would be one of characters.
        bars = {"disable": None if self.progress else True, "unit": "doc", "desc": "BM25 index"}
        index = BM25Plus([words(text) for text in tqdm(texts, **bars)])
        if index.avgdl == 0:  # no text has a word: nothing to rank by
            return [np.arange(count, dtype=np.int64) for _ in queries]
        bars = {"disable": None if self.progress else True, "unit": "query", "desc": "BM25"}
        # A word that no document has scores nothing, and would take a pass over the corpus.
        known = [[word for word in words(query) if word in index.idf] for query in queries]
        return [top_rows(index.get_scores(query), count) for query in tqdm(known, **bars)]


def top_rows(scores: np.ndarray, count: int) -> np.ndarray:
    """Row numbers of the `count` highest of N scores, best first, equal ones by row number; no full sort."""
    if count >= len(scores):
        return np.argsort(-scores, kind="stable").astype(np.int64)
    threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
    above = np.flatnonzero(scores > threshold)
    level = np.flatnonzero(scores == threshold)[: count - len(above)]
    return np.concatenate([above[np.argsort(-scores[above], kind="stable")], level]).astype(np.int64)
