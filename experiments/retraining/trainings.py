"""Training both stages again without some documents, each training kept, several processes at once."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from experiments.common.cache import Cache
from experiments.common.parallel import spread
from experiments.retraining.two_stage import TwoStage
from msif.errors import MsifError


@dataclass(frozen=True)
class Training:
    """One training of both stages.

    Attributes:
        seed: of first weights and batches.
        left_out: rows of the pre-training documents that it never sees, ascending.
        order: of batches, see ``TwoStage.train``.
    """

    seed: int
    left_out: tuple[int, ...] = ()
    order: int = 0

    @classmethod
    def without(cls, rows: Collection[int], seed: int, order: int = 0) -> Training:
        return cls(seed, tuple(sorted(int(row) for row in rows)), order)

    @property
    def key(self) -> str:
        digest = hashlib.sha256(repr(self.left_out).encode()).hexdigest()[:16]
        order = f".{self.order}" if self.order else ""
        return f"{self.seed}{order}-{digest if self.left_out else 'all'}"


@dataclass(frozen=True)
class Retrainings:
    """What the losses of a model's queries are after any training of both stages.

    Every training is a file of its own in the cache, under a name made of its seed and its documents: one that two
    methods ask for is made once, and one that an interrupted run made is there. It holds the losses of all questions
    and statements.

    Attributes:
        stage: whose losses are read, "pretrained" or "finetuned".
        queries: places of what is read among all that this stage may be asked.
        processes: trainings at once, with a thread each; their results do not depend on it.
    """

    world: TwoStage
    stage: str
    queries: Sequence[int]
    cache: Cache
    processes: int = 1

    def losses(self, trainings: Sequence[Training], title: str) -> np.ndarray:
        """(M, Q) of M trainings.

        Raises:
            MsifError: a process was killed, or documents that are left out are none.
        """
        documents = len(self.world.texts)
        for training in trainings:
            if training.left_out and not 0 <= training.left_out[0] <= training.left_out[-1] < documents:
                raise MsifError(f"a training leaves out row {training.left_out[-1]} of {documents}: rows start at 0.")
        needed = {t.key: t for t in trainings if not self.cache.has(_name(t))}
        work = partial(_train, replace(self, processes=1))
        try:
            spread(work, list(needed.values()), self.processes if len(needed) > 1 else 1, title)
        except BrokenProcessPool as error:
            raise MsifError("a training process was killed: run the same command again, and it goes on.") from error
        return np.stack([_train(self, training)[self.stage][list(self.queries)] for training in trainings])


def _name(training: Training) -> str:
    return f"trainings/{training.key}"


def _train(retrainings: Retrainings, training: Training) -> dict[str, np.ndarray]:
    """The losses of all statements and questions after a training: read, or made and kept."""

    def compute() -> dict[str, np.ndarray]:
        world = retrainings.world
        pretrained, finetuned = world.train(training.seed, training.left_out, training.order)
        return world.measured(pretrained.model, finetuned.model)

    return retrainings.cache.arrays(_name(training), compute)
