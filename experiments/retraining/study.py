"""From a two-stage setting to what its report is made of: members, scores, retrainings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from experiments.common.cache import Cache, hashed
from experiments.common.judging import Judge
from experiments.common.methods import Method
from experiments.common.parallel import spread
from experiments.retraining.additive import taught_scores
from experiments.retraining.bags import bags_of, scores_of_bags
from experiments.retraining.halves import losses_on_halves
from experiments.retraining.members import Member, make_member
from experiments.retraining.methods import (
    DEFAULT_DAMPING,
    GDP,
    MULTI_STAGE,
    PULLED,
    SETTINGS,
    UNIT,
    all_methods,
    member_scores,
)
from experiments.retraining.removal import TAUGHT, Changes, measure_removals, removal_orders
from experiments.retraining.rounds import ROUND, orders_in_rounds
from experiments.retraining.settings import Sizes
from experiments.retraining.trainings import Retrainings, Training
from experiments.retraining.two_stage import Asked, TwoStage
from msif.errors import MsifError

Choose = Callable[[np.ndarray], Sequence[int]]
"""From the pairs' losses of all questions, (S, all), to the places of what is explained; removals are made for the
first."""
Listed = Callable[[bool], "list[Method]"]


@dataclass(frozen=True)
class Study:
    """All parts are kept in the folder as they are made, and made when they are first asked for.

    Attributes:
        choose: finds the questions that are explained when the pairs are trained.
        listed: the methods, by whether the pre-trained model can be asked the queries.
        processes: trainings, or pairs, at once.
    """

    world: TwoStage
    choose: Choose
    sizes: Sizes
    folder: Path
    processes: int = 1
    overwrite: bool = False
    listed: Listed = all_methods

    @cached_property
    def cache(self) -> Cache:
        """The folder, which belongs to this world, its device and these seeds, whatever the numbers of retrainings."""
        settings = {"world": self.world.fingerprint, "seed": self.sizes.seed, "device": self.world.device}
        return Cache(self.folder, settings, self.overwrite)

    @property
    def _member(self) -> Callable[[int], Member]:
        """The pair of this number, for other processes, too."""
        return partial(_member, self.world, self.cache.folder, self.sizes.training_seeds)

    @cached_property
    def members(self) -> list[Member]:
        """The model pairs that are explained."""
        numbers, make = range(self.sizes.seeds), self._member
        missing = [number for number in numbers if not _member_folder(self.cache.folder, number).exists()]
        spread(partial(_make, make), missing, min(self.processes, max(1, len(missing))), "training pairs")
        return [make(number) for number in numbers]

    @cached_property
    def places(self) -> list[int]:
        """Of what is explained among all questions."""
        chosen = list(self.choose(self.all_losses))
        if len(chosen) < max(self.sizes.queries, self.sizes.solved):
            raise MsifError(
                f"there are {len(chosen)} queries for --queries {self.sizes.queries} and --solved {self.sizes.solved}: "
                "give smaller numbers."
            )
        return chosen

    @cached_property
    def asked(self) -> Asked:
        return self.world.questions.chosen(self.places)

    @cached_property
    def parts(self) -> Cache:
        """Of scores, which depend on the queries."""
        name = hashlib.sha256(repr(self.asked).encode()).hexdigest()[:12]
        return Cache(self.cache.folder / f"asked-{name}", {"queries": list(self.asked.titles)})

    @cached_property
    def methods(self) -> list[Method]:
        return self.listed(self.world.head.one_objective)

    @cached_property
    def scores(self) -> dict[str, np.ndarray]:
        """Method's name -> (S, Q, N) of S pairs; one for methods that read no model, fewer queries for dear ones."""
        return scores_of_all(self, self.asked, self.parts)

    @cached_property
    def bags(self) -> dict[str, np.ndarray]:
        """Method's name -> (B, S, Q, N) of as many more trainings of each pair, each on a half of the documents."""
        keys = [method.key for method in self.methods if method.name in BAGGED]
        score, name = partial(_bagged, self.listed, self.world, self.asked), f"bags-{hashed([SETTINGS, keys])}"
        bags = bags_of(self.sizes, len(self.world.texts))
        return scores_of_bags(self.world, score, self.parts, name, bags, self.processes)

    @cached_property
    def retrainings(self) -> Retrainings:
        return replace(self._all_retrainings, queries=self.places)

    @property
    def _all_retrainings(self) -> Retrainings:
        everything = range(len(self.world.questions))
        return Retrainings(self.world, "finetuned", everything, self.cache, self.processes)

    @cached_property
    def all_losses(self) -> np.ndarray:
        """Of all questions by the pairs, (S, all)."""
        trainings = [Training(seed) for seed in self.sizes.training_seeds]
        return self._all_retrainings.losses(trainings, "trainings on all documents")

    @property
    def baseline(self) -> np.ndarray:
        """The queries' losses by the pairs, (S, Q)."""
        return self.all_losses[:, self.places]

    @cached_property
    def judge(self) -> Judge:
        return Judge(*losses_on_halves(self.retrainings, self.sizes))

    @cached_property
    def judge_of_solved(self) -> Judge:
        """The same on the solvers' queries alone."""
        return self.judge.of_queries(range(self.sizes.solved))

    @cached_property
    def taught(self) -> np.ndarray:
        """The reference's scores of each pair, corrected by its retrainings on halves, (S, Q, N)."""
        pairs = enumerate(self.scores[REFERENCE])
        return np.stack([taught_scores(self.judge.masks, self.judge.losses[:, pair], own) for pair, own in pairs])

    @cached_property
    def changes(self) -> Mapping[tuple[str, int], Changes]:
        """Of removals by each pair's own scores, by means over pairs and halves, and by what retraining teaches."""
        chosen = {m.name: self.scores[m.name] for m in self.methods if m.removed}
        chosen[REFERENCE + MEAN] = chosen[REFERENCE].mean(0, keepdims=True)
        if self.sizes.bags:
            chosen[REFERENCE + MEAN_OF_HALVES] = self.bags[REFERENCE].mean(0)
        chosen[TAUGHT] = self.taught
        orders = removal_orders(chosen, REFERENCE, self.sizes) | {REFERENCE + ASKED_AGAIN: asked_again(self, REFERENCE)}
        return measure_removals(self.retrainings, orders, self.sizes)


REFERENCE = f"{MULTI_STAGE}, λ = {DEFAULT_DAMPING}"
"""The method that others are compared with: at the command line's default damping."""


BAGGED = (
    REFERENCE,
    f"{MULTI_STAGE}, λ = {PULLED}",
    f"{UNIT}, λ = {DEFAULT_DAMPING}",
    f"{UNIT}, prior bm25:0.5, λ = {PULLED}",
    GDP,
)
"""Methods that are asked of trainings on halves, too."""

MEAN, MEAN_OF_HALVES = "; mean of the pairs", "; mean over halves"
ASKED_AGAIN = f"; asked again every {ROUND}"


def scores_of_all(study: Study, asked: Asked, cache: Cache) -> dict[str, np.ndarray]:
    """Of a study's methods for any queries: name -> (S, Q, N), see ``Study.scores``."""
    numbers = range(study.sizes.seeds)
    work = partial(_score, study.world, asked, study.sizes.solved, study.listed, cache, study._member)
    by_member = spread(work, numbers, min(study.processes, len(numbers)), "scoring, by pairs")
    return {m.name: np.stack([scores[m.name] for scores in by_member if m.name in scores]) for m in study.methods}


def asked_again(study: Study, name: str) -> np.ndarray:
    """The order of documents by a method as it is asked again by pairs without the first ones, (S, Q, N)."""
    method = next(method for method in study.methods if method.name == name)
    score = partial(_of_query, study.listed, study.world, study.asked, name)
    folder = f"rounds-{hashed([SETTINGS, method.key])}"
    own = study.scores[name]
    return orders_in_rounds(study.world, score, own, study.parts, folder, study.sizes, study.processes)


def _member_folder(folder: Path, number: int) -> Path:
    return folder / "members" / f"{number:02d}"


def _member(world: TwoStage, folder: Path, seeds: Sequence[int], number: int) -> Member:
    return make_member(world, _member_folder(folder, number), number, seeds[number])


def _bagged(listed: Listed, world: TwoStage, asked: Asked, member: Member) -> dict[str, np.ndarray]:
    methods = [method for method in listed(world.head.one_objective) if method.name in BAGGED]
    return {method.name: member_scores(method, world, member, asked) for method in methods}


def _of_query(
    listed: Listed, world: TwoStage, asked: Asked, name: str, query: int, member: Member
) -> dict[str, np.ndarray]:
    """One query's scores of all documents by a method, (N,)."""
    method = next(method for method in listed(world.head.one_objective) if method.name == name)
    return {"scores": member_scores(method, world, member, asked.chosen([query]))[0]}


def _make(make: Callable[[int], Member], number: int) -> None:
    """So that no model travels between processes."""
    make(number)


def _score(
    world: TwoStage,
    asked: Asked,
    first: int,
    listed: Listed,
    cache: Cache,
    make: Callable[[int], Member],
    number: int,
) -> dict[str, np.ndarray]:
    """Method's name -> (Q, N) by one member: read, or computed and kept."""
    member, scores = make(number), {}

    def compute(method: Method) -> dict[str, np.ndarray]:
        return {"scores": member_scores(method, world, member, asked.chosen(range(first)) if method.dear else asked)}

    for method in listed(world.head.one_objective):
        if method.search is None or number == 0:
            name = f"scores-{hashed(SETTINGS)}/{number:02d}-{method.key}" + (f"-{first}" if method.dear else "")
            scores[method.name] = cache.arrays(name, partial(compute, method))["scores"]
    return scores
