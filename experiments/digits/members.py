"""The model pairs that are explained: trained on all pre-training images, with checkpoints and EK-FAC factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.common.cache import Cache
from experiments.common.judging import random_splits
from experiments.digits.engine import BETA_1, BETA_2, EPSILON, Layers, stacked, train, unstacked
from experiments.digits.exact import ExactCurvature
from experiments.digits.images import Digits, Images, Parts
from experiments.digits.network import BODY, Network, new_networks
from experiments.digits.settings import Schedule, Settings
from msif.attribution.gradients import Side
from msif.attribution.stages import FittedStage
from msif.curvature.factors import ModuleFactors
from msif.curvature.fit import FitSettings, fit
from msif.curvature.store import FactorStore
from msif.draws import generator
from msif.models.select import track_modules
from msif.models.training import natural_tau

HALVED_STREAM = 15


def segment_middles(schedule: Schedule, segments: int) -> list[int]:
    """The step in the middle of each of so many equal parts of a training."""
    return [round(schedule.steps * (2 * place + 1) / (2 * segments)) for place in range(segments)]


@dataclass(frozen=True)
class Checkpoint:
    """A network during or after a stage of training, with what curvature is taken from.

    Attributes:
        images: what the stage is trained on.
        held_out: images like those of pre-training that no training sees.
        folder: of this checkpoint's factors.
        schedule: of the stage.
    """

    network: Network
    images: Images
    held_out: Images
    folder: Path
    schedule: Schedule
    label_samples: int

    @cached_property
    def side(self) -> Side:
        """Over all linear maps, the head included."""
        return Side(self.network, track_modules(self.network), Digits())

    @cached_property
    def body(self) -> Side:
        """Over the maps that both stages share."""
        return self.side.restricted(BODY)

    @cached_property
    def store(self) -> FactorStore:
        """EK-FAC of the whole network."""
        settings = FitSettings(label_samples=self.label_samples)
        return fit(self.network, self.side.tracked, Digits(), [self.images], self.folder / "factors", settings)

    @cached_property
    def factors(self) -> dict[str, ModuleFactors]:
        """The same in memory."""
        return self.store.load_all()

    @cached_property
    def exact(self) -> ExactCurvature:
        """The dense Gauss-Newton matrix of the shared maps."""
        return ExactCurvature(self.body, self.images)

    @cached_property
    def exact_held_out(self) -> ExactCurvature:
        """Of the shared maps, on held-out images."""
        return ExactCurvature(self.body, self.held_out)

    @cached_property
    def exact_whole(self) -> ExactCurvature:
        """The same of all maps."""
        return ExactCurvature(self.side, self.images)

    @cached_property
    def tau(self) -> dict[str, Tensor]:
        """τ of every block, as the library reads it from an optimizer's state."""
        return natural_tau(self.folder, self.network, self.side.tracked, self.schedule.rate_sum)

    def adam_roots(self) -> dict[str, Tensor]:
        """√V + ε of the weights of each map, V corrected for its start at zero."""
        state = torch.load(self.folder / "optimizer.pt", weights_only=True)["state"]
        roots = {}
        for place, module in enumerate(self.side.tracked):
            entry = state[2 * place]
            roots[module.name] = (entry["exp_avg_sq"] / (1 - BETA_2 ** entry["step"])).sqrt() + EPSILON
        return roots

    @property
    def stage(self) -> FittedStage:
        """For the library's methods by name."""
        return FittedStage(self.body, self.store, self.tau, [self.images])


@dataclass(frozen=True)
class Member:
    """One training of both stages.

    Attributes:
        pretrained, finetuned: the last networks.
        pretraining, finetuning: checkpoints in the middle of each segment, in the order of training.
    """

    pretrained: Checkpoint
    finetuned: Checkpoint
    pretraining: list[Checkpoint]
    finetuning: list[Checkpoint]


@dataclass(frozen=True)
class Group:
    """Trainings that are explained.

    Attributes:
        name: of what is kept of them.
        first_seed: of the first, which the others' follow.
        seen: bool (K, N), the pre-training images of each; all see equally many.
    """

    name: str
    first_seed: int
    seen: np.ndarray

    @property
    def rows(self) -> Tensor:
        """Of the images that each sees, (K, n)."""
        return torch.from_numpy(np.stack([np.flatnonzero(own) for own in self.seen]))


def on_everything(settings: Settings) -> Group:
    """The members, which see all images."""
    return Group("members", settings.first_member, np.ones((settings.members, settings.pretraining), dtype=bool))


def on_halves(settings: Settings) -> Group:
    """Trainings on random halves other than those of the truth; every two share out all images."""
    draw = generator(settings.seed, HALVED_STREAM)
    return Group("halved", settings.first_halved, random_splits(draw, settings.halved, settings.pretraining))


class Members(Sequence[Member]):
    """A group, trained at once and kept in the cache, as are their factors; each is made anew when asked for, and with
    it goes the curvature that it holds."""

    def __init__(self, settings: Settings, parts: Parts, cache: Cache, group: Group) -> None:
        self.settings, self.parts, self.group, self.folder = settings, parts, group, cache.folder / group.name
        self.stages = {"pretraining": settings.pretrain, "finetuning": settings.finetune}
        self.kept = {
            name: [*segment_middles(schedule, segments), schedule.steps]
            for (name, schedule), segments in zip(self.stages.items(), settings.segments, strict=True)
        }
        self.arrays = cache.arrays(group.name, lambda: _train(settings, parts, group, self.kept))

    def __len__(self) -> int:
        return len(self.group.seen)

    def __getitem__(self, number: int) -> Member:  # type: ignore[override]
        if not 0 <= number < len(self):
            raise IndexError(number)
        pretraining, finetuning = (
            [self._checkpoint(number, name, step) for step in steps] for name, steps in self.kept.items()
        )
        return Member(pretraining[-1], finetuning[-1], pretraining[:-1], finetuning[:-1])

    def _checkpoint(self, number: int, name: str, step: int) -> Checkpoint:
        network = unstacked(_layers(self.arrays, f"{name}-{step}"), number)
        folder, schedule = self.folder / f"{number:02d}-{name}-{step:04d}", self.stages[name]
        folder.mkdir(parents=True, exist_ok=True)
        if schedule.optimizer == "adam":
            _save_moments(folder, schedule, [V[number] for V in _layers(self.arrays, f"{name}-moments")])
        images = self.parts.finetuning
        if name == "pretraining":
            images = self.parts.pretraining.chosen(self.group.rows[number])
        return Checkpoint(network, images, self.parts.held_out, folder, schedule, self.settings.label_samples)


def _train(settings: Settings, parts: Parts, group: Group, kept: dict[str, list[int]]) -> dict[str, np.ndarray]:
    seeds = [group.first_seed + number for number in range(len(group.seen))]
    firsts, heads = zip(*(new_networks(seed) for seed in seeds), strict=True)
    first = train(stacked(firsts), parts.pretraining, group.rows, settings.pretrain, kept["pretraining"])
    rows = parts.finetuning.indices.expand(len(seeds), -1)
    start = first.layers[:-2] + stacked(heads)[-2:]
    second = train(start, parts.finetuning, rows, settings.finetune, kept["finetuning"])
    arrays = {}
    for name, trained in (("pretraining", first), ("finetuning", second)):
        named = {str(step): layers for step, layers in trained.kept.items()} | {"moments": trained.moments}
        for key, layers in named.items():
            arrays |= {f"{name}-{key}.{place}": value.numpy() for place, value in enumerate(layers)}
    return arrays


def _layers(arrays: dict[str, np.ndarray], key: str) -> Layers:
    return [torch.from_numpy(arrays[f"{key}.{place}"]) for place in range(6)]


def _save_moments(folder: Path, schedule: Schedule, moments: Layers) -> None:
    """Adam's state as torch writes it, from which the library reads τ."""
    state = {place: {"exp_avg_sq": V, "step": schedule.steps} for place, V in enumerate(moments)}
    group = {
        "lr": schedule.learning_rate,
        "betas": (BETA_1, BETA_2),
        "eps": EPSILON,
        "params": list(range(len(moments))),
    }
    torch.save({"state": state, "param_groups": [group]}, folder / "optimizer.pt")
