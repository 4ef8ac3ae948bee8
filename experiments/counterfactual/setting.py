"""The setting: pre-trained on sentences that state facts, fine-tuned on questions for half of the facts.

Queries are questions for the other half, whose answers the model can only have from the sentences.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from experiments.common.training import ModelSize, Schedule, build_tokenizer, completion
from experiments.facts import questions
from experiments.facts.facts import Fact, FactData
from experiments.facts.halves import FINETUNE, QUERY, of_half, split
from experiments.facts.lama import load_lama
from experiments.facts.selection import Plain, divisible, plainly_stated, with_question
from experiments.retraining.settings import Recipe
from experiments.retraining.two_stage import Asked, LanguageHead, TwoStage
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
        asked: questions, and statements, that are explained; the first are those of removals.
    """

    relations: tuple[str, ...] = RELATIONS
    facts: int = 8
    sentences: int = 4
    least: int = 3
    words: int = 18
    lead: int = 18
    asked: int = 24


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
        asked: how many questions, and how many statements, are explained.
    """

    world: TwoStage
    data: FactData
    asked: int

    def choose(self, losses: np.ndarray) -> list[int]:
        """The questions that the pairs answer with the largest mean probability, one for each answer.

        Such probabilities are high partly by chance; what that does to removals shows in those of random documents.

        Args:
            losses: of all questions, (S, Q).
        """
        return self._likeliest(losses, self.world.questions.answers)

    def choose_statements(self, losses: np.ndarray) -> list[int]:
        """The same of statements and the pre-trained models."""
        return self._likeliest(losses, self.world.statements.answers)

    def _likeliest(self, losses: np.ndarray, answers: Sequence[str]) -> list[int]:
        chosen: dict[str, int] = {}
        for place in np.argsort(-np.exp(-losses).mean(0), kind="stable"):
            chosen.setdefault(answers[place], int(place))
        return list(chosen.values())[: self.asked]


def fact_setting(
    data: FactData, templates: dict[str, str], sizes: FactSizes, recipe: Recipe, seed: int, device: str = "cpu"
) -> FactSetting:
    """Sentences to pre-train on, questions of one half to fine-tune on, and those of the other to ask; and sentences
    of the same facts that no training sees, whose objects the pre-trained model is asked for.

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
    pairs = {
        fact.id: (questions.question(templates[fact.relation], fact.subject), questions.completion(fact.answers[0]))
        for fact in (*tuned, *others)
    }
    tokenizer = build_tokenizer([*texts, *(prompt + answer for prompt, answer in pairs.values())], recipe.vocabulary)
    finetuning = [completion(tokenizer, *pairs[fact.id]) for fact in tuned]
    asked = _asked(tokenizer, [(fact, *pairs[fact.id]) for fact in others])
    statements = _asked(tokenizer, _unseen_statements(plain, small, Plain(sizes.words, sizes.lead), seed))
    unseen = [sentence.text for sentence in plain.sentences if sentence.text not in set(texts)]
    held_out = random.Random(f"{seed}:held out").sample(unseen, min(len(unseen), len(texts)))
    world = TwoStage(tokenizer, texts, finetuning, recipe, LanguageHead(), asked, statements, held_out, device)
    return FactSetting(world, small, sizes.asked)


def lama_setting(folder: str, sizes: FactSizes, recipe: Recipe, seed: int, device: str = "cpu") -> FactSetting:
    """``fact_setting`` of LAMA's facts and questions in a folder.

    Raises:
        MsifError: a file of them is missing or not right; see ``fact_setting``.
    """
    data = load_lama(folder, sizes.relations)
    templates = questions.load_questions(Path(folder) / "lama_questions.jsonl")
    return fact_setting(data, templates, sizes, recipe, seed, device)


def _asked(tokenizer: PreTrainedTokenizerFast, prompts: Sequence[tuple[Fact, str, str]]) -> Asked:
    """Facts with a prompt and its answer each."""
    return Asked(
        [completion(tokenizer, prompt, answer, end=False) for _, prompt, answer in prompts],
        [prompt + answer for _, prompt, answer in prompts],
        [fact.id for fact, *_ in prompts],
        [fact.answers[0] for fact, *_ in prompts],
    )


def _unseen_statements(data: FactData, seen: FactData, plain: Plain, seed: int) -> list[tuple[Fact, str, str]]:
    """For each fact that is seen, a plain sentence that is not, up to its object, and the object."""
    texts, found = {sentence.text for sentence in seen.sentences}, []
    for fact in seen.facts.values():
        sentences = [data.sentences[row] for row in data.sources(fact.id)]
        unseen = [s.text for s in sentences if s.text not in texts and plain.states(s, fact)]
        if unseen:
            text = random.Random(f"{seed}:{fact.id}:statement").choice(unseen)
            start = text.find(fact.answers[0], text.find(fact.subject) + len(fact.subject))
            found.append((fact, text[:start].rstrip(), questions.completion(fact.answers[0])))
    return found
