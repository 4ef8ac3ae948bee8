"""What a study consists of: how many retrainings of which kind, and of which models."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.common.training import ModelSize, Schedule
from msif.errors import MsifError

LEAST = {"queries": 1, "solved": 1, "seeds": 2, "removal_seeds": 1, "halves": 8, "orders": 1, "bags": 0}


@dataclass(frozen=True)
class Sizes:
    """
    Attributes:
        queries: for how many of the answers that are explained removals are made.
        solved: of these, how many the dear methods are asked.
        removed: how many of a query's top documents are taken out of pre-training, several numbers.
        seeds: model pairs that are explained; each is trained again from its own first weights, in its own order.
        halves: random halves of the documents that each pair is trained on again.
        removal_seeds: for how many pairs a query's removals are made: each query's begin with another pair.
        bags: other random halves, on each of which each pair is trained once more, for the mean of their scores.
        orders: trainings of a pair on each half, from the same first weights, with batches of their own.
        seed: decides the data, the halves and all first weights.

    Raises:
        MsifError: a number with which nothing can be measured.
    """

    queries: int = 24
    solved: int = 8
    removed: tuple[int, ...] = (1, 5, 20)
    seeds: int = 5
    removal_seeds: int = 1
    halves: int = 100
    bags: int = 8
    orders: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise MsifError(f"--{name.replace('_', '-')} is {getattr(self, name)}: give {least} or more.")
        if not self.removed or min(self.removed) < 1:
            raise MsifError("--removed needs one or more numbers of documents, each 1 or more.")

    @property
    def training_seeds(self) -> list[int]:
        """Of the pairs, and of all their retrainings."""
        return [1_000_000 * self.seed + number for number in range(self.seeds)]

    @property
    def pairs_of_removals(self) -> list[list[int]]:
        """For each query, the places of the pairs that its removals are made for: all pairs in turn, so that with many
        queries one pair each tells as much as the same number of trainings of few queries, and more of queries."""
        pairs = min(self.removal_seeds, self.seeds)
        return [[(query + number) % self.seeds for number in range(pairs)] for query in range(self.queries)]


@dataclass(frozen=True)
class Recipe:
    """How one model pair is trained.

    Attributes:
        vocabulary: of the byte-level BPE, which all trainings share, whatever is left out.
    """

    vocabulary: int
    size: ModelSize
    pretraining: Schedule
    finetuning: Schedule
