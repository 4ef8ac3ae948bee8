"""The scores of every method, the library's and other toolkits', as rows."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from experiments.common.cache import Arrays, Cache, hashed
from experiments.peers import exchange
from experiments.peers.environments import Environment
from experiments.peers.methods import METHODS, Own
from experiments.peers.toolkits import Setting
from experiments.retraining.bags import Bag, scores_of_bags
from experiments.retraining.members import Member
from experiments.retraining.methods import SETTINGS, member_scores
from experiments.retraining.two_stage import Asked, TwoStage

OWN = "msif"


@dataclass(frozen=True)
class Row:
    """One method at one setting.

    Attributes:
        scores: (S, Q, N) of S models, or (1, Q, N) of what reads no model; None with an error.
        seconds: of one model, the mean; None of a mean over several trainings, whose time counts with theirs.
    """

    toolkit: str
    method: str
    setting: str
    scores: np.ndarray | None = None
    seconds: float | None = None
    error: str | None = None


def own_rows(world: TwoStage, members: Sequence[Member], asked: Asked, cache: Cache) -> list[Row]:
    """Of the library's methods; scores and times are kept in the cache."""
    rows = []
    for own in METHODS:
        models = members if own.method.search is None else members[:1]
        found = [_own(own, world, member, asked, cache) for member in models]
        scores, seconds = np.stack([one["scores"] for one in found]), np.mean([one["seconds"] for one in found])
        rows.append(Row(OWN, own.method.family, own.method.damping, scores, float(seconds)))
    return rows


def _own(own: Own, world: TwoStage, member: Member, asked: Asked, cache: Cache) -> Arrays:
    """By one model: "scores" (Q, N) and "seconds" with those of the factors that it reads."""
    fit = _fit_seconds(member, own.stage, cache) if own.stage else 0.0

    def compute() -> Arrays:
        start = time.perf_counter()
        scores = member_scores(own.method, world, member, asked)
        return {"scores": scores, "seconds": np.array(time.perf_counter() - start + fit)}

    return cache.arrays(f"scores-{hashed(SETTINGS)}/{member.number:02d}-{own.method.key}", compute)


def bagged_rows(world: TwoStage, bags: Sequence[Bag], asked: Asked, cache: Cache, processes: int) -> list[Row]:
    """Of the defaults, averaged over models that were trained on halves, from the first weights of each model."""
    if not bags:
        return []
    method = METHODS[0].method
    score, name = partial(_by_defaults, world, asked), f"bags-{hashed([SETTINGS, method.key])}"
    scores = scores_of_bags(world, score, cache, name, bags, processes)["scores"]
    return [Row(OWN, f"{method.family}, mean of {len(scores)} trained on halves", method.damping, scores.mean(0))]


def _by_defaults(world: TwoStage, asked: Asked, member: Member) -> Arrays:
    return {"scores": member_scores(METHODS[0].method, world, member, asked)}


def _fit_seconds(member: Member, stage: str, cache: Cache) -> float:
    """The time of fitting factors, which are made anew where it is not known."""
    model = member.pretrained

    def compute() -> Arrays:
        for folder in model.folder.parent.glob(f"{model.folder.name}*-factors") if stage == "stage" else ():
            shutil.rmtree(folder)
        start = time.perf_counter()
        getattr(model, stage)
        return {"seconds": np.array(time.perf_counter() - start)}

    return float(cache.arrays(f"fits-{hashed(SETTINGS)}/{member.number:02d}-{stage}", compute)["seconds"])


def peer_rows(
    environment: Environment, world: TwoStage, models: Sequence[Path], asked: Asked, folder: Path
) -> list[Row]:
    """Of a toolkit's settings. What fails on one model is not asked of the others."""
    documents, queries = exchanged(world, asked)
    settings, found = list(environment.toolkit.settings), []
    for number, model in enumerate(models):
        found.append(environment.results(folder / f"{number:02d}", model, documents, queries, settings))
        settings = [setting for setting in settings if not found[-1][setting.key].error]
    return [_peer_row(environment.toolkit.name, setting, found) for setting in environment.toolkit.settings]


def exchanged(world: TwoStage, asked: Asked) -> tuple[list[exchange.Row], list[exchange.Row]]:
    """Documents, whose every token but the first is predicted, and queries, whose completions are."""
    supervised = exchange.Row.supervised_from
    documents = [supervised(*example, text) for example, text in zip(world.pretraining, world.texts, strict=True)]
    queries = [supervised(*example, text) for example, text in zip(asked.examples, asked.texts, strict=True)]
    return documents, queries


def _peer_row(toolkit: str, setting: Setting, found: Sequence[dict[str, exchange.Result]]) -> Row:
    results = [one[setting.key] for one in found if setting.key in one]
    errors = [one.error for one in results if one.error]
    if errors:
        return Row(toolkit, setting.method, setting.setting, error=errors[0])
    scores, seconds = [one.scores for one in results], [one.seconds for one in results]
    return Row(toolkit, setting.method, setting.setting, np.stack(scores), float(np.mean(seconds)))
