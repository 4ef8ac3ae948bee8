"""Trainings of the pairs on random halves of the documents, other than those that judge, for the mean of their scores.

A linear datamodel's weight of a document is the mean, over random halves of the others, of what it changes: so
influence is asked for where the datamodel is, at models trained on such halves (docs/method.md). It is subagging
(Bühlmann and Yu 2002), with every two halves sharing out all documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from experiments.common.cache import Cache
from experiments.common.judging import random_splits
from experiments.common.parallel import spread
from experiments.retraining.members import Score, retrained_scores
from experiments.retraining.settings import Sizes
from experiments.retraining.two_stage import TwoStage
from msif.draws import generator

BAGS_STREAM = 23


@dataclass(frozen=True)
class Bag:
    """
    Attributes:
        number: among the halves of its pair.
        pair: its place, whose first weights and order of batches it takes.
        left_out: rows of the documents that it never sees.
    """

    number: int
    pair: int
    seed: int
    left_out: tuple[int, ...]


def bags_of(sizes: Sizes, documents: int) -> list[Bag]:
    """Of every pair its first half, then the second of each, and so on; more bags change none of the first."""
    draws = [generator(sizes.seed, BAGS_STREAM, pair) for pair in range(sizes.seeds)]
    splits = [random_splits(draw, sizes.bags, documents) for draw in draws]
    return [
        Bag(number, pair, sizes.training_seeds[pair], tuple(np.flatnonzero(~splits[pair][number]).tolist()))
        for number in range(sizes.bags)
        for pair in range(sizes.seeds)
    ]


def scores_of_bags(
    world: TwoStage, score: Score, cache: Cache, name: str, bags: Sequence[Bag], processes: int
) -> dict[str, np.ndarray]:
    """What ``score`` makes of each of ``bags_of``, by its names: (Q, N) each, (B, S, Q, N) of B bags of S pairs."""
    each = spread(partial(bagged_scores, world, score, cache, name), bags, processes, "trainings on halves to average")
    pairs = len({bag.pair for bag in bags})
    return {key: np.stack([one[key] for one in each]).reshape(-1, pairs, *own.shape) for key, own in each[0].items()}


def bagged_scores(world: TwoStage, score: Score, cache: Cache, name: str, bag: Bag) -> dict[str, np.ndarray]:
    """One bag's scores of all documents."""
    kept = f"{name}/{bag.pair:02d}-{bag.number:02d}"
    return retrained_scores(world, score, cache, kept, bag.pair, bag.seed, bag.left_out)
