"""Which facts are traced, and among which sentences.

*Reranking*: a fact's candidates are the union of its sources, the sentences that score highest by BM25+, random ones
that hold its answer without being a source, and random ones that all facts of a trial share. *Full*: all sentences.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from experiments.fact_tracing.options import Sizes
from experiments.facts.reading import Asked, Pair
from msif.errors import MsifError

Protocol = Literal["rerank", "full"]
TRIAL, SHARED, TARGET = range(3)  # of the random numbers: which facts, the shared sentences, those with the answer


@dataclass(frozen=True)
class Ranking:
    """What every method ranks.

    Attributes:
        asked: Q facts, trial by trial.
        trial: int64, (Q,).
        candidates: for each fact int64 rows of the corpus, ascending.
        counts: of the sets, and of what they fell short of.
        named: the ids behind some counts.
        few: the first so many of a trial are asked of methods that are dear.
    """

    asked: tuple[Asked, ...]
    trial: np.ndarray
    candidates: tuple[np.ndarray, ...]
    counts: Mapping[str, float] = field(default_factory=dict)
    named: Mapping[str, list[str]] = field(default_factory=dict)
    few: int = 0

    @cached_property
    def rows(self) -> np.ndarray:
        """All candidates, int64 (N,), ascending."""
        return np.unique(np.concatenate(self.candidates))

    def own(self, scores: np.ndarray, facts: Sequence[int]) -> np.ndarray:
        """Of the scores (facts, N) of all candidates those of each fact's own, one fact after the other."""
        kept = [row[np.searchsorted(self.rows, self.candidates[i])] for row, i in zip(scores, facts, strict=True)]
        return np.concatenate(kept)

    def parts(self, flat: np.ndarray, facts: Sequence[int]) -> list[np.ndarray]:
        """Takes what ``own`` gave apart again: the scores of each fact's candidates."""
        return np.split(flat, np.cumsum([len(self.candidates[i]) for i in facts])[:-1])

    def relevant(self, fact: int) -> np.ndarray:
        """Which of a fact's candidates are its sources, bool."""
        return np.isin(self.candidates[fact], self.asked[fact].sources)


BM25 = Callable[[Sequence[str], Sequence[str]], np.ndarray]
"""(queries, texts) -> scores, (Q, N)."""


def rank_among(pair: Pair, protocol: Protocol, sizes: Sizes, seed: int, bm25: BM25) -> Ranking:
    """The facts of all trials, with their candidates.

    Raises:
        MsifError: too few facts for the trials, or too few sentences for a set.
    """
    trials = draw_trials(pair, sizes, seed)
    asked = tuple(pair.asked[i] for drawn in trials for i in drawn)
    trial = np.repeat(np.arange(len(trials)), [len(drawn) for drawn in trials])
    if protocol == "full":
        everything = np.arange(len(pair.texts))
        counts = {"candidates of each fact": len(everything)}
        return Ranking(asked, trial, (everything,) * len(asked), counts, few=sizes.few)
    check_sizes(len(pair.texts), sizes)
    scores = bm25([fact.text for fact in asked], pair.texts)
    shared = [rng(seed, SHARED, t).choice(len(pair.texts), sizes.random, replace=False) for t in range(len(trials))]
    holders = Holders(pair.texts)
    candidates, found = [], []
    for q, fact in enumerate(asked):
        best = np.argsort(-scores[q], kind="stable")[: sizes.bm25]
        same = np.setdiff1d(holders.of(fact.answers), fact.sources)
        found.append(len(same))
        if len(same) > sizes.same_target:
            same = rng(seed, TARGET, q).choice(same, sizes.same_target, replace=False)
        parts = [np.asarray(fact.sources), best, same, shared[trial[q]]]
        candidates.append(np.unique(np.concatenate(parts)).astype(np.int64))
    return Ranking(asked, trial, tuple(candidates), *_counts(asked, candidates, found, holders, sizes), sizes.few)


def draw_trials(pair: Pair, sizes: Sizes, seed: int) -> list[np.ndarray]:
    """Facts of each trial, as places in ``pair.asked``; no fact twice."""
    needed, there = sizes.trials * sizes.facts, len(pair.asked)
    if needed > there:
        raise MsifError(
            f"{sizes.trials} trials of {sizes.facts} facts need {needed}, and {there} of {pair.folder} have a source: "
            f"use --facts {there // sizes.trials} or fewer trials."
        )
    order = rng(seed, TRIAL, 0).permutation(there)[:needed]
    return [np.sort(order[t * sizes.facts : (t + 1) * sizes.facts]) for t in range(sizes.trials)]


def check_sizes(sentences: int, sizes: Sizes) -> None:
    """
    Raises:
        MsifError: the corpus is smaller than a set that is taken from all of it.
    """
    for flag, size in (("--bm25", sizes.bm25), ("--random", sizes.random)):
        if size > sentences:
            raise MsifError(
                f"the corpus has {sentences} sentences, and {flag} asks for {size} of them: give a smaller number, or "
                "--protocol full."
            )


class Holders:
    """Which texts hold a name, as whole words with the same capitals."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self._known: dict[str, np.ndarray] = {}

    def of(self, names: Sequence[str]) -> np.ndarray:
        """Rows of the texts that hold any of the names, ascending."""
        return np.unique(np.concatenate([self._of_one(name) for name in names]))

    def _of_one(self, name: str) -> np.ndarray:
        if name not in self._known:
            whole = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)")
            rows = [row for row, text in enumerate(self.texts) if name in text and whole.search(text)]
            self._known[name] = np.array(rows, dtype=np.int64)
        return self._known[name]


def rng(seed: int, purpose: int, number: int) -> np.random.Generator:
    """Random numbers that depend on these three alone."""
    return np.random.default_rng([seed, purpose, number])


def _counts(
    asked: Sequence[Asked], candidates: Sequence[np.ndarray], found: Sequence[int], holders: Holders, sizes: Sizes
) -> tuple[dict[str, float], dict[str, list[str]]]:
    named = {
        "facts whose answer is in none of their sources": [
            fact.id for fact in asked if not np.isin(fact.sources, holders.of(fact.answers)).any()
        ],
        f"facts with fewer than {sizes.same_target} other sentences that hold the answer": [
            fact.id for fact, there in zip(asked, found, strict=True) if there < sizes.same_target
        ],
    }
    counts = {
        "candidates of a fact, mean": float(np.mean([len(rows) for rows in candidates])),
        "sources of a fact, mean": float(np.mean([len(fact.sources) for fact in asked])),
        **{what: len(ids) for what, ids in named.items()},
        "such sentences of a fact, mean": float(np.mean(np.minimum(found, sizes.same_target))),
    }
    return counts, named
