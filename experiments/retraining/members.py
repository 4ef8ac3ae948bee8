"""The model pairs that are explained: trained on all documents, with factors and the natural scale of each stage."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import GPTNeoXForCausalLM

from experiments.common.cache import Cache, built
from experiments.common.training import Trained
from experiments.retraining.two_stage import STAGES, TwoStage
from msif.attribution.gradients import Side
from msif.attribution.stages import FittedStage
from msif.curvature.fit import FitSettings, fit
from msif.models.adapted import Adapted
from msif.models.objectives import CausalLM, Objective
from msif.models.select import track_modules
from msif.models.training import adapter_tau, natural_tau, training_segments

MODULES = {True: "maps", False: "layers"}
"""Every linear map that both stages share: the unembedding, too, if fine-tuning keeps it."""
SEGMENTS = {"pretrained": 4, "finetuned": 2}
"""Of a stage's training, each of as many steps, with a checkpoint at its end."""
Score = Callable[["Member"], Mapping[str, np.ndarray]]
"""From a pair to its scores of all documents, by name."""
LABEL_SAMPLES = 4
"""Draws of labels for each sequence and pass: with a few hundred sequences, factors of one draw are noisy."""


@dataclass(frozen=True)
class Model:
    """One trained model with what curvature is taken from.

    Attributes:
        folder: of the model; its factors lie beside it.
        batches: of what the stage was trained on.
        modules: which parameters count, as ``track_modules`` takes it.
        held_out: batches that the stage was not trained on.
        adapter: what the stage trained, if it is an adapter.
    """

    folder: Path
    model: nn.Module
    objective: Objective
    batches: Sequence[Any]
    modules: str
    held_out: Sequence[Any] = ()
    adapter: Adapted | None = None

    @cached_property
    def stage(self) -> FittedStage:
        """With factors, which are fitted when they are first asked for, τ of each block and the stage's data."""
        return self._stage(self.modules, "factors")

    @cached_property
    def held_out_stage(self) -> FittedStage:
        """The same with curvature of held-out data."""
        other = replace(self, batches=self.held_out)
        return other._stage(self.modules, "held-out-factors")

    @cached_property
    def layers(self) -> FittedStage:
        """The same of the decoder layers alone."""
        return self._stage("layers", "layers-factors")

    @cached_property
    def everything(self) -> FittedStage:
        """The same of every parameter."""
        return self._stage("everything", "everything-factors")

    def with_vocabulary(self, basis: str) -> FittedStage:
        """The same with another basis of the unembedding's rows."""
        return self._stage(self.modules, f"{basis.replace(':', '-')}-factors", basis)

    @cached_property
    def in_segments(self) -> FittedStage:
        """With a stage for each checkpoint of its training."""
        folders = training_segments(self.folder, self.folder)
        since = [None, *folders]
        parts = [self._segment(*pair) for pair in zip(folders, since[:-1], strict=True)]
        return FittedStage(self.stage.side, segments=parts)

    def _segment(self, folder: Path, since: Path | None) -> FittedStage:
        """The steps from one checkpoint to another."""
        one = self
        if folder != self.folder:
            model = type(self.model).from_pretrained(folder).to(self.model.device)  # type: ignore[attr-defined]
            one = replace(self, folder=folder, model=model)
        tau = natural_tau(folder, one.model, one.stage.side.tracked, since=since)
        return replace(one.stage, tau=tau)

    def _stage(self, modules: str, name: str, basis: str = "identity") -> FittedStage:
        tracked = track_modules(self.model, modules, vocabulary_basis=basis)
        factors = self.folder.with_name(f"{self.folder.name}-{name}")
        settings = FitSettings(label_samples=LABEL_SAMPLES)
        store = fit(self.model, tracked, self.objective, self.batches, factors, settings)
        side = Side(self.model, tracked, self.objective)
        if self.adapter is not None:
            tau = adapter_tau(self.folder, self.adapter)
        else:
            tau = natural_tau(self.folder, self.model, tracked)
        return FittedStage(side, store.load_all(), tau, self.batches, self.adapter)


@dataclass(frozen=True)
class Member:
    """A model pair.

    Attributes:
        number: its place among all.
        again: n -> the same pre-trained model fine-tuned once more, its examples in the n-th other order.
    """

    number: int
    pretrained: Model
    finetuned: Model
    again: Callable[[int], Model]


def make_member(world: TwoStage, folder: Path, number: int, seed: int, left_out: Sequence[int] = ()) -> Member:
    """Trains a pair into the folder, or loads the one that is there.

    Args:
        left_out: rows of the documents that it never sees, of which its curvature has none either.
    """

    def build(part: Path) -> None:
        def keep(stage: str, trained: Trained) -> None:
            step, places = len(trained.log), range(1, SEGMENTS[stage])
            if step in [round(place * trained.steps / SEGMENTS[stage]) for place in places]:
                trained.save(part / stage / f"checkpoint-{step}", world.tokenizer)

        for stage, trained in zip(STAGES, world.train(seed, left_out, after_step=keep), strict=True):
            trained.save(part / stage, world.tokenizer)

    built(folder, {"seed": seed, "segments": SEGMENTS}, build)
    modules = MODULES[world.head.one_objective]
    pretrained = GPTNeoXForCausalLM.from_pretrained(folder / "pretrained").to(world.device)
    return Member(
        number,
        Model(
            folder / "pretrained",
            pretrained,
            CausalLM(),
            world.pretraining_batches(left_out),
            modules,
            world.held_out_batches(),
        ),
        _finetuned(world, folder / "finetuned"),
        partial(_finetuned_again, world, folder, pretrained, seed),
    )


def retrained_scores(
    world: TwoStage, score: Score, cache: Cache, name: str, number: int, seed: int, left_out: Sequence[int]
) -> dict[str, np.ndarray]:
    """What ``score`` makes of a pair that never saw some documents: read, or computed and kept; its models are not."""

    def compute() -> dict[str, np.ndarray]:
        with tempfile.TemporaryDirectory(dir=cache.folder) as folder:
            return dict(score(make_member(world, Path(folder) / "pair", number, seed, left_out)))

    return cache.arrays(name, compute)


def _finetuned(world: TwoStage, folder: Path) -> Model:
    model, adapter = world.head.load(folder)
    modules, batches = MODULES[world.head.one_objective], world.finetuning_batches()
    return Model(folder, model.to(world.device), world.head.objective, batches, modules, adapter=adapter)


def _finetuned_again(world: TwoStage, folder: Path, pretrained: nn.Module, seed: int, number: int) -> Model:
    """Trained beside the pair when it is first asked for."""
    again = folder / f"finetuned-again-{number}"

    def build(part: Path) -> None:
        world.finetune(pretrained, seed, number).save(part, world.tokenizer)

    built(again, {"seed": seed, "order": number}, build)
    return _finetuned(world, again)
