"""Influence asked again and again: a query's top documents are left out, the pair is trained without them, and the next
are chosen by the scores of that pair.

A score is a derivative at a model that has seen all documents. Where several say the same, taking the first of them
away changes what the others are worth, which no sum of scores knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from experiments.common.cache import Cache
from experiments.common.parallel import spread
from experiments.retraining.members import Member, retrained_scores
from experiments.retraining.settings import Sizes
from experiments.retraining.two_stage import TwoStage

ROUND = 5
"""Documents that one pair chooses."""
Score = Callable[[int, Member], Mapping[str, np.ndarray]]
"""From a query's place and a pair to "scores" of all documents, (N,)."""


def orders_in_rounds(
    world: TwoStage, score: Score, scores: np.ndarray, cache: Cache, name: str, sizes: Sizes, processes: int
) -> np.ndarray:
    """The order in which each query's documents are taken out of the pairs that its removals are made for, (S, Q, N);
    that of the scores elsewhere.

    Args:
        score: can be pickled, for other processes.
        scores: by the pairs themselves, (S, Q, N).
        name: under which scores by pairs that are trained again are kept.
    """
    orders = np.argsort(-scores, axis=2, kind="stable")
    places = [(pair, query) for query, pairs in enumerate(sizes.pairs_of_removals) for pair in pairs]
    work = partial(_order, world, score, scores, cache, name, sizes)
    for place, order in zip(places, spread(work, places, processes, "asking again"), strict=True):
        orders[place] = order
    return orders


def _order(
    world: TwoStage, score: Score, scores: np.ndarray, cache: Cache, name: str, sizes: Sizes, place: tuple[int, int]
) -> np.ndarray:
    """Of all documents, (N,): those that are taken, then the others as the last pair orders them."""
    pair, query = place
    values, taken, last = scores[place], np.empty(0, dtype=int), max(sizes.removed)
    while True:
        by_value = np.argsort(-values, kind="stable")
        rest = by_value[~np.isin(by_value, taken)]
        if len(taken) + ROUND >= last:
            return np.concatenate([taken, rest])
        taken = np.concatenate([taken, rest[:ROUND]])
        kept, seed = f"{name}/{query:02d}-{pair:02d}-{len(taken):03d}", sizes.training_seeds[pair]
        values = retrained_scores(world, partial(score, query), cache, kept, pair, seed, taken.tolist())["scores"]
