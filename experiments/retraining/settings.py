"""What a study consists of: how many retrainings of which kind, and of which models."""

from __future__ import annotations

from dataclasses import dataclass

from experiments.common.training import ModelSize, Schedule
from msif.errors import MsifError


@dataclass(frozen=True)
class Sizes:
    """
    Attributes:
        queries: how many answers are explained.
        removed: how many of a query's top documents are taken out of pre-training, several numbers.
        seeds: model pairs that are explained; each is trained again from its own first weights, in its own order.
        halves: random halves of the documents that each pair is trained on again.
        removal_seeds: of these pairs, for how many removals are made.
        orders: trainings of a pair on each half, from the same first weights, with batches of their own.
        seed: decides the data, the halves and all first weights.

    Raises:
        MsifError: a number with which nothing can be measured.
    """

    queries: int = 8
    removed: tuple[int, ...] = (5, 20)
    seeds: int = 5
    removal_seeds: int = 3
    halves: int = 100
    orders: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("queries", 1), ("seeds", 2), ("removal_seeds", 1), ("halves", 8), ("orders", 1)):
            if getattr(self, name) < least:
                raise MsifError(f"--{name} is {getattr(self, name)}: give {least} or more.")
        if not self.removed or min(self.removed) < 1:
            raise MsifError("--removed needs one or more numbers of documents, each 1 or more.")

    @property
    def training_seeds(self) -> list[int]:
        """Of the pairs, and of all their retrainings."""
        return [1_000_000 * self.seed + number for number in range(self.seeds)]

    @property
    def pairs_of_removals(self) -> list[int]:
        """The training seeds of the pairs that removals are made for."""
        return self.training_seeds[: self.removal_seeds]


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
