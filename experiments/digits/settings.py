"""What a run consists of: data sizes, training, how many retrainings, which members."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """One stage of full-batch training with a constant learning rate."""

    learning_rate: float
    steps: int
    optimizer: Literal["descent", "adam"] = "descent"

    @property
    def rate_sum(self) -> float:
        """ηK, which is τ for gradient descent."""
        return self.learning_rate * self.steps


@dataclass(frozen=True)
class Settings:
    """
    Attributes:
        pretraining, finetuning, queries: numbers of images, all different ones.
        halves: random halves of the pre-training images on which both stages are trained again,
        seeds: each so many times.
        members: model pairs whose scores are averaged; of other seeds than the retrainings.
        halved: as many more, each trained on a random half of the pre-training images.
        few: of these, how many the dear methods are asked of.
        unrolled: of these, how many have their training differentiated exactly.
        segments: of pre-training and fine-tuning, with a checkpoint in the middle of each, for SOURCE.
        label_samples: draws of labels for each image and pass when EK-FAC is fitted.
        removed: how many of a query's top images the counterfactual takes away.
        counterfactual_queries, counterfactual_seeds: for how many queries, and each so many times.
        seed: decides the images of each part, the halves and all first weights.
    """

    pretraining: int = 600
    finetuning: int = 300
    queries: int = 60
    halves: int = 100
    seeds: int = 20
    members: int = 16
    halved: int = 16
    few: int = 2
    unrolled: int = 2
    pretrain: Schedule = field(default_factory=lambda: Schedule(0.5, 800))
    finetune: Schedule = field(default_factory=lambda: Schedule(0.25, 200))
    segments: tuple[int, int] = (4, 2)
    label_samples: int = 4
    removed: tuple[int, ...] = (20, 60)
    counterfactual_queries: int = 24
    counterfactual_seeds: int = 2
    seed: int = 0

    @property
    def first_retraining(self) -> int:
        """The seeds of retrainings, of the counterfactual's and of members never meet."""
        return 1_000_000 * self.seed

    @property
    def first_counterfactual(self) -> int:
        return self.first_retraining + 100_000

    @property
    def first_member(self) -> int:
        return self.first_retraining + 200_000

    @property
    def first_halved(self) -> int:
        return self.first_retraining + 300_000

    def with_adam(self) -> Settings:
        """The same network and images trained by Adam, with fewer retrainings and members."""
        schedules = {"pretrain": Schedule(0.003, 300, "adam"), "finetune": Schedule(0.001, 100, "adam")}
        return replace(self, seeds=min(self.seeds, 12), members=min(self.members, 8), halved=0, **schedules)


SMALL = Settings(
    pretraining=120,
    finetuning=120,
    queries=24,
    halves=40,
    seeds=4,
    members=2,
    halved=2,
    few=1,
    unrolled=1,
    pretrain=Schedule(0.5, 120),
    finetune=Schedule(0.25, 40),
    segments=(2, 1),
    label_samples=2,
    removed=(12,),
    counterfactual_queries=6,
    counterfactual_seeds=1,
)
