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
        removal_seeds: trainings without them, each from other first weights and in another order of batches.
        halves: random halves of the documents that both stages are trained on,
        half_seeds: each so many times.
        members: model pairs that methods look at; their seeds are none of the retrainings'.
        seed: decides the data, the halves and all first weights.

    Raises:
        MsifError: a number with which nothing can be measured.
    """

    queries: int = 6
    removed: tuple[int, ...] = (10, 30)
    removal_seeds: int = 3
    halves: int = 40
    half_seeds: int = 4
    members: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("queries", 1), ("removal_seeds", 1), ("halves", 4), ("half_seeds", 2), ("members", 1)):
            if getattr(self, name) < least:
                raise MsifError(f"--{name.replace('_', '-')} is {getattr(self, name)}: give {least} or more.")
        if not self.removed or min(self.removed) < 1:
            raise MsifError("--removed needs one or more numbers of documents, each 1 or more.")

    @property
    def first_retraining(self) -> int:
        """The seeds of retrainings and of members never meet."""
        return 1_000_000 * self.seed

    @property
    def first_member(self) -> int:
        return self.first_retraining + 500_000


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
