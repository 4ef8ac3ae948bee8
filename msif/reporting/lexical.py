"""What documents share with queries in words, so that a lexical match is not taken for influence (BM25+)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from msif.candidates.bm25 import BM25, terms
from msif.candidates.words import normalised

NAMED = 8  # shared words


class Overlap:
    """Words in common with some queries, and how often each answer occurs; from one pass over all documents.

    Attributes:
        bm25: of the documents for the queries.
        occurrences: (Q,), in how many documents the query's answer stands.
    """

    def __init__(
        self, queries: Sequence[str], answers: Sequence[str], texts: Iterable[str], *, progress: bool = True
    ) -> None:
        """
        Args:
            texts: of every document, in the order of their row numbers.
        """
        self.answers = [normalised(answer.strip()) for answer in answers]
        self.occurrences = [0] * len(queries)
        self._by_word = _by_word(self.answers)
        self.bm25 = BM25(queries, texts, seen=self._count_answers, progress=progress)

    @property
    def documents(self) -> int:
        return self.bm25.documents

    def _count_answers(self, text: str, found: Sequence[str]) -> None:
        words = self._by_word.keys() & found
        if words:
            read = normalised(text)
            for query in {query for word in words for query in self._by_word[word]}:
                self.occurrences[query] += self.answers[query] in read

    def of(self, query: int, rows: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Row number -> score (of the terms that are shared), rank among all documents (from 1; None where nothing is
        shared), shared words.

        The words come with their parts of the score, the largest first.
        """
        parts, total = self.bm25.parts(query), self.bm25.scores(query)
        ordered = np.sort(total)
        found = {}
        for row in rows:
            rank = self.documents - int(np.searchsorted(ordered, total[row], side="right")) + 1
            shared = {term: _at(places, scores, row) for term, (places, scores) in parts.items()}
            named = sorted(((term, part) for term, part in shared.items() if part), key=lambda pair: -pair[1])
            found[row] = {
                "score": round(float(total[row]), 3),
                "rank": rank if total[row] > 0 else None,
                "words": [[term, round(part, 3)] for term, part in named[:NAMED]],
            }
        return found


def _at(places: np.ndarray, scores: np.ndarray, place: int) -> float:
    found = int(np.searchsorted(places, place))
    return float(scores[found]) if found < len(places) and places[found] == place else 0.0


def _by_word(answers: Sequence[str]) -> dict[str, list[int]]:
    """A word that an answer cannot be without -> the answers; the longest, which is the rarest as a rule."""
    by_word: dict[str, list[int]] = {}
    for number, answer in enumerate(answers):
        if own := terms(answer):
            by_word.setdefault(max(own, key=len), []).append(number)
    return by_word
