"""The setting: pre-trained on sentences that state facts, fine-tuned on questions for half of the facts.

Queries are questions for the other half, whose answers the model can only have from the sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from experiments.common.training import ModelSize, Schedule, build_tokenizer, completion
from experiments.facts import questions
from experiments.facts.facts import Fact, FactData
from experiments.facts.halves import FINETUNE, QUERY, of_half, split
from experiments.facts.selection import Plain, divisible, plainly_stated, with_question
from experiments.retraining.members import Member
from experiments.retraining.settings import Recipe
from experiments.retraining.two_stage import Asked, LanguageHead, TwoStage, measured_losses
from msif.errors import MsifError

RELATIONS = ("P103", "P127", "P136", "P138", "P176", "P407", "P1303", "P31", "P364", "P740", "P527")
"""Of which LAMA has facts enough with several short sentences."""


@dataclass(frozen=True)
class FactSizes:
    """
    Attributes:
        facts: of a relation, at most.
        sentences: of a fact, at most; plain ones (``facts.selection``),
        words: of so many words at most,
        lead: so many of them before the subject.
        least: so many plain sentences must state a fact.
        asked: questions whose losses are measured after every training; the first are those of removals.
    """

    relations: tuple[str, ...] = RELATIONS
    facts: int = 8
    sentences: int = 4
    least: int = 3
    words: int = 18
    lead: int = 18
    asked: int = 16


# One layer: it carries what sentences say of a subject over to questions after so little training, two do not. The
# learning rate is low enough for a training to stay near itself when a few random documents leave it.
RECIPE = Recipe(
    vocabulary=2000,
    size=ModelSize(layers=1, hidden=128, heads=2, positions=128),
    pretraining=Schedule(epochs=16, learning_rate=3e-3, batch_size=32),
    finetuning=Schedule(epochs=16, learning_rate=1e-3, batch_size=16),
)


@dataclass(frozen=True)
class FactSetting:
    """The world, and what is needed to choose questions for it.

    Attributes:
        data: what is pre-trained on and asked, with the counts of all that was left out.
    """

    world: TwoStage
    data: FactData
    others: Sequence[Fact]
    templates: dict[str, str] = field(repr=False)
    sizes: FactSizes

    def choose(self, world: TwoStage, members: list[Member]) -> Asked:
        """The questions that the pairs answer with the largest mean probability, one for each answer.

        Such probabilities are high partly by chance; what that does to removals shows in those of random documents.
        """
        everything = self._asked(self.others)
        batches = world.query_batches(everything.examples)
        losses = [measured_losses(m.finetuned.model, m.finetuned.objective, batches) for m in members]
        likeliest = np.argsort(-np.exp(-np.stack(losses)).mean(0), kind="stable")
        chosen: dict[str, int] = {}
        for place in likeliest:
            chosen.setdefault(everything.answers[place], int(place))
        return everything.chosen(list(chosen.values())[: self.sizes.asked])

    def _asked(self, facts: Sequence[Fact]) -> Asked:
        prompts = [questions.question(self.templates[fact.relation], fact.subject) for fact in facts]
        answers = [questions.completion(fact.answers[0]) for fact in facts]
        pairs = list(zip(prompts, answers, strict=True))
        return Asked(
            [completion(self.world.tokenizer, prompt, answer, end=False) for prompt, answer in pairs],
            [prompt + answer for prompt, answer in pairs],
            [fact.id for fact in facts],
            [fact.answers[0] for fact in facts],
        )


def fact_setting(
    data: FactData, templates: dict[str, str], sizes: FactSizes, recipe: Recipe, seed: int, device: str = "cpu"
) -> FactSetting:
    """Sentences to pre-train on, questions of one half to fine-tune on, and the facts of the other.

    Raises:
        MsifError: nothing is left of the data, or a relation has a single fact.
    """
    asked = with_question(data.restricted(sizes.relations), templates)
    plain = divisible(plainly_stated(asked, Plain(sizes.words, sizes.lead), sizes.least))
    if not plain.facts:
        raise MsifError(
            f"no fact of {', '.join(sizes.relations)} has {sizes.least} plain sentences of {sizes.words} words: "
            "give other relations, or longer sentences."
        )
    small = plain.restricted(None, sizes.facts, sizes.sentences, seed)
    texts = [sentence.text for sentence in small.sentences]
    halves = split(small, seed)
    tuned, others = of_half(small, halves, FINETUNE), of_half(small, halves, QUERY)
    pairs = [
        (questions.question(templates[fact.relation], fact.subject), questions.completion(fact.answers[0]))
        for fact in (*tuned, *others)
    ]
    tokenizer = build_tokenizer([*texts, *(prompt + answer for prompt, answer in pairs)], recipe.vocabulary)
    finetuning = [completion(tokenizer, *pair) for pair in pairs[: len(tuned)]]
    world = TwoStage(tokenizer, texts, finetuning, recipe, LanguageHead(), device)
    return FactSetting(world, small, others, templates, sizes)
