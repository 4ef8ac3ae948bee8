"""What documents share with queries in words, so that a lexical match is not taken for influence: BM25+ over a corpus.

It holds the places of the queries' own words only, so that one pass over the texts is enough for any corpus.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from msif.candidates.bm25 import terms
from msif.candidates.words import normalised

K1, B, DELTA = 1.5, 0.75, 1.0  # of rank_bm25's BM25Plus, by which bm25:N chooses
NAMED = 8  # shared words


class Overlap:
    """BM25+ of all documents for some queries, and how often each answer occurs.

    Attributes:
        documents: N, how many there are.
        occurrences: (Q,), in how many of them the query's answer stands.
    """

    def __init__(self, queries: Sequence[str], answers: Sequence[str], texts: Iterable[str]) -> None:
        """
        Args:
            texts: of every document, in the order of their row numbers.
        """
        self.terms = [sorted(set(terms(query))) for query in queries]
        known = {term for own in self.terms for term in own}
        self.answers = [normalised(answer.strip()) for answer in answers]
        by_word = _by_word(self.answers)
        watched = known | by_word.keys()
        self.occurrences = [0] * len(queries)
        self.places: dict[str, list[tuple[int, int]]] = {term: [] for term in known}
        lengths = []
        for row, text in enumerate(texts):
            found = terms(text)
            lengths.append(len(found))
            counted = Counter(term for term in found if term in watched)
            for term, count in counted.items():
                if term in known:
                    self.places[term].append((row, count))
            self._count_answers(text, counted, by_word)
        self.lengths = np.asarray(lengths, dtype=np.float64)
        self.documents = len(lengths)

    def _count_answers(self, text: str, counted: Counter[str], by_word: dict[str, list[int]]) -> None:
        asked = {query for word in counted if word in by_word for query in by_word[word]}
        if asked:
            read = normalised(text)
            for query in asked:
                self.occurrences[query] += self.answers[query] in read

    def of(self, query: int, rows: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Row number -> score, rank among all documents (from 1; None where nothing is shared), shared words.

        The words come with their parts of the score, the largest first.
        """
        parts = {term: self._scores(term) for term in self.terms[query] if self.places[term]}
        total = np.zeros(self.documents)
        for places, scores in parts.values():
            total[places] += scores
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

    def _scores(self, term: str) -> tuple[np.ndarray, np.ndarray]:
        """(places, parts of the score) of the documents that have a term."""
        places, counts = np.asarray(self.places[term], dtype=np.int64).T
        weight = math.log((self.documents + 1) / len(places))
        length = 1 - B + B * self.lengths[places] / self.lengths.mean()
        return places, weight * (DELTA + counts * (K1 + 1) / (K1 * length + counts))


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
