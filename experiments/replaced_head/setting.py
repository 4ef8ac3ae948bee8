"""The second setting: a language model becomes a classifier that tells which relation a sentence states."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from experiments.common.training import Example, ModelSize, Schedule, build_tokenizer
from experiments.counterfactual.members import Member
from experiments.counterfactual.settings import Recipe
from experiments.counterfactual.two_stage import Asked, TwoStage
from experiments.fact_tracing.facts import FactData
from experiments.replaced_head.head import ClassifierHead
from msif.errors import MsifError
from msif.models.capture import frozen

RELATIONS = ("P19", "P136", "P176", "P413", "P527", "P740")


@dataclass(frozen=True)
class LabelSizes:
    """Sentences of each relation, all different ones of so many words at most.

    Attributes:
        pretraining, finetuning, held_out: for each part.
        asked: of those held out, whose losses are measured after every training; the first are those of removals.
    """

    relations: tuple[str, ...] = RELATIONS
    pretraining: int = 40
    finetuning: int = 32
    held_out: int = 12
    asked: int = 16
    words: int = 20


RECIPE = Recipe(
    vocabulary=2000,
    size=ModelSize(layers=1, hidden=128, heads=2, positions=128),
    pretraining=Schedule(epochs=12, learning_rate=3e-3, batch_size=32),
    finetuning=Schedule(epochs=6, learning_rate=1e-3, batch_size=16),
)


@dataclass(frozen=True)
class LabelSetting:
    """
    Attributes:
        labels: of the pre-training documents, class numbers; training never sees them.
        held_out, truth: sentences that no training sees, as classes are asked of them, and their classes.
    """

    world: TwoStage
    labels: np.ndarray
    held_out: Sequence[str]
    truth: np.ndarray
    asked: int

    def predicted(self, members: Sequence[Member]) -> np.ndarray:
        """Log probabilities of classes, (K, held out, classes), by each pair."""
        examples: list[Example] = [(ids, 0) for ids in self.world.tokenizer(list(self.held_out))["input_ids"]]
        batches = self.world.query_batches(examples)
        found = np.empty((len(members), len(examples), len(self.world.head.classes)))
        with torch.no_grad():
            for number, member in enumerate(members):
                with frozen(member.finetuned.model):
                    for batch in batches:
                        logits = member.finetuned.objective.outputs(member.finetuned.model, batch.to(self.world.device))
                        found[number, batch.indices.numpy()] = logits.double().log_softmax(-1).cpu().numpy()
        return found

    def chosen(self) -> np.ndarray:
        """Which of the sentences held out are asked about: one of each class after the other."""
        order = sorted(
            range(len(self.truth)), key=lambda i: (int((self.truth[:i] == self.truth[i]).sum()), self.truth[i])
        )
        return np.array(order[: self.asked])

    def choose(self, world: TwoStage, members: list[Member]) -> Asked:
        """What is explained of each is the class that the pairs find likeliest, right or wrong."""
        classes = world.head.classes
        said = self.predicted(members).mean(0).argmax(1)
        places = self.chosen()
        tokens = world.tokenizer([self.held_out[i] for i in places])["input_ids"]
        return Asked(
            [(ids, int(said[i])) for ids, i in zip(tokens, places, strict=True)],
            [self.held_out[i] for i in places],
            [f"held out {i}" for i in places],
            [
                classes[said[i]] + ("" if said[i] == self.truth[i] else f", wrongly: {classes[self.truth[i]]}")
                for i in places
            ],
        )


def label_setting(data: FactData, sizes: LabelSizes, recipe: Recipe, seed: int, device: str = "cpu") -> LabelSetting:
    """Sentences that state one relation, drawn into three parts without overlap.

    Raises:
        MsifError: fewer than two relations, or one with too few sentences.
    """
    if len(sizes.relations) < 2:
        raise MsifError("a classifier needs two relations or more.")
    parts: list[list[tuple[str, int]]] = [[], [], []]
    numbers = (sizes.pretraining, sizes.finetuning, sizes.held_out)
    for label, relation in enumerate(sizes.relations):
        texts = _stating(data, relation, sizes.words)
        if len(texts) < sum(numbers):
            raise MsifError(f"{relation} has {len(texts)} sentences, and {sum(numbers)} are needed: ask for fewer.")
        random.Random(f"{seed}:{relation}").shuffle(texts)
        for part, number in zip(parts, numbers, strict=True):
            part += [(texts.pop(), label) for _ in range(number)]
    documents, tuned, held_out = parts
    tokenizer = build_tokenizer([text for text, _ in (*documents, *tuned)], recipe.vocabulary)
    finetuning = [
        (ids, label) for ids, (_, label) in zip(tokenizer([t for t, _ in tuned])["input_ids"], tuned, strict=True)
    ]
    head = ClassifierHead(tuple(sizes.relations))
    world = TwoStage(tokenizer, [text for text, _ in documents], finetuning, recipe, head, device)
    labels, truth = (np.array([label for _, label in part]) for part in (documents, held_out))
    return LabelSetting(world, labels, [text for text, _ in held_out], truth, sizes.asked)


def _stating(data: FactData, relation: str, words: int) -> list[str]:
    """Short sentences that state facts of this relation, and of no other."""
    found = []
    for sentence in data.sentences:
        relations = {data.facts[fact].relation for fact in sentence.facts}
        if relations == {relation} and len(sentence.text.split()) <= words:
            found.append(sentence.text)
    return found
