"""The statements of experiments/counterfactual: models, what is asked of them, and what retrainings say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from experiments.common.cache import Cache, hashed
from experiments.common.judging import Judge
from experiments.counterfactual.setting import FactSetting
from experiments.peers.environments import Environment
from experiments.peers.rows import Row, bagged_rows, own_rows, peer_rows
from experiments.retraining.bags import bags_of
from experiments.retraining.halves import losses_on_halves
from experiments.retraining.settings import Sizes
from experiments.retraining.study import Study
from experiments.retraining.trainings import Retrainings, Training
from experiments.retraining.two_stage import Asked


@dataclass(frozen=True)
class PeerStudy:
    """All parts are made when they are first asked for, and kept in the folder, which may be that of counterfactual.

    Attributes:
        environments: of the toolkits that take part.
        models: how many of the seeds' models are explained, the first; statements are chosen by all.
    """

    setting: FactSetting
    sizes: Sizes
    folder: Path
    environments: Sequence[Environment] = ()
    models: int | None = None
    processes: int = 1
    overwrite: bool = False

    @cached_property
    def study(self) -> Study:
        """Whose models and retrainings these are."""
        return Study(self.setting.world, self.setting.choose, self.sizes, self.folder, self.processes, self.overwrite)

    @cached_property
    def places(self) -> list[int]:
        """Of the statements that are explained."""
        trainings = [Training(seed) for seed in self.sizes.training_seeds]
        return self.setting.choose_statements(self._retrainings.losses(trainings, "trainings on all documents"))

    @cached_property
    def asked(self) -> Asked:
        return self.setting.world.statements.chosen(self.places)

    @cached_property
    def judge(self) -> Judge:
        masks, losses = losses_on_halves(replace(self._retrainings, queries=self.places), self.sizes)
        return Judge(masks, losses[:, : self.models])

    @cached_property
    def rows(self) -> list[Row]:
        """The library's, then those of each toolkit."""
        world, members = self.setting.world, self.study.members[: self.models]
        cache = parts(self.study, self.asked)
        rows = own_rows(world, members, self.asked, cache)
        bags = [bag for bag in bags_of(self.sizes, len(world.texts)) if bag.pair < len(members)]
        rows += bagged_rows(world, bags, self.asked, cache, self.processes)
        for one in self.environments:
            models = [member.pretrained.folder for member in members]
            rows += peer_rows(one, world, models, self.asked, cache.folder / one.toolkit.adapter)
        return rows

    @property
    def _retrainings(self) -> Retrainings:
        everything = range(len(self.setting.world.statements))
        return Retrainings(self.setting.world, "pretrained", everything, self.study.cache, self.processes)


def parts(study: Study, asked: Asked) -> Cache:
    """Of scores, which depend on the statements."""
    return Cache(study.cache.folder / f"peers-{hashed(list(asked.titles))}", {"statements": list(asked.titles)})
