"""Which relation does a sentence state? A task that a classifier learns from all sentences together."""

from __future__ import annotations

import random
from dataclasses import dataclass

from experiments.common.training import ModelSize, Schedule
from experiments.counterfactual.settings import Recipe
from experiments.fact_tracing.facts import FactData
from experiments.replaced_head.setting import Labelled, Parts
from msif.errors import MsifError


@dataclass(frozen=True)
class RelationTask:
    """Sentences of each relation, all different ones of so many words at most.

    Attributes:
        pretraining, finetuning, held_out: for each part.
    """

    relations: tuple[str, ...] = ("P19", "P136", "P176", "P413", "P527", "P740")
    pretraining: int = 40
    finetuning: int = 32
    held_out: int = 12
    words: int = 20

    def parts(self, data: FactData, seed: int) -> Parts:
        """Sentences that state one relation, drawn into three parts without overlap.

        Raises:
            MsifError: a relation has too few sentences.
        """
        parts: list[list[Labelled]] = [[], [], []]
        numbers = (self.pretraining, self.finetuning, self.held_out)
        for label, relation in enumerate(self.relations):
            texts = _stating(data, relation, self.words)
            if len(texts) < sum(numbers):
                raise MsifError(f"{relation} has {len(texts)} sentences, and {sum(numbers)} are needed: ask for fewer.")
            random.Random(f"{seed}:{relation}").shuffle(texts)
            for part, number in zip(parts, numbers, strict=True):
                part += [(texts.pop(), label) for _ in range(number)]
        return Parts(self.relations, *parts, sources=[()] * len(parts[2]))


RECIPE = Recipe(
    vocabulary=2000,
    size=ModelSize(layers=1, hidden=128, heads=2, positions=128),
    pretraining=Schedule(epochs=12, learning_rate=3e-3, batch_size=32),
    finetuning=Schedule(epochs=6, learning_rate=1e-3, batch_size=16),
)


def _stating(data: FactData, relation: str, words: int) -> list[str]:
    """Short sentences that state facts of this relation, and of no other."""
    found = []
    for sentence in data.sentences:
        relations = {data.facts[fact].relation for fact in sentence.facts}
        if relations == {relation} and len(sentence.text.split()) <= words:
            found.append(sentence.text)
    return found
