"""Which relation does a sentence state? A task that a classifier learns from all sentences together."""

from __future__ import annotations

import random
from dataclasses import dataclass

from experiments.common.training import ModelSize, Schedule
from experiments.facts.facts import FactData
from experiments.replaced_head.setting import Labelled, Parts
from experiments.retraining.settings import Recipe
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
        plain = self._plain(data)
        parts: list[list[Labelled]] = [[], [], []]
        drawn: list[int] = []
        numbers = (self.pretraining, self.finetuning, self.held_out)
        for label, relation in enumerate(self.relations):
            rows = [row for row, s in enumerate(plain.sentences) if plain.facts[s.facts[0]].relation == relation]
            if len(rows) < sum(numbers):
                raise MsifError(f"{relation} has {len(rows)} sentences, and {sum(numbers)} are needed: ask for fewer.")
            rows = random.Random(f"{seed}:{relation}").sample(rows, sum(numbers))
            drawn += rows
            for part, number in zip(parts, numbers, strict=True):
                part += [(plain.sentences[row].text, label) for row in rows[:number]]
                rows = rows[number:]
        chosen = plain.kept(plain.facts, drawn, "for size")
        return Parts(self.relations, *parts, sources=[()] * len(parts[2]), data=chosen)

    def _plain(self, data: FactData) -> FactData:
        """Short sentences that state one relation."""
        stated = [{data.facts[id].relation for id in sentence.facts} for sentence in data.sentences]
        alone = [row for row, relations in enumerate(stated) if len(relations) == 1]
        single = data.kept(data.facts, alone, "for two relations")
        short = [row for row, s in enumerate(single.sentences) if len(s.text.split()) <= self.words]
        return single.kept(single.facts, short, "for length")


RECIPE = Recipe(
    vocabulary=2000,
    size=ModelSize(layers=1, hidden=128, heads=2, positions=128),
    pretraining=Schedule(epochs=12, learning_rate=3e-3, batch_size=32),
    finetuning=Schedule(epochs=6, learning_rate=1e-3, batch_size=16),
)
