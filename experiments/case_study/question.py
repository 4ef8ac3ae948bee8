"""What is asked, and what is known of it."""

from __future__ import annotations

import random
from dataclasses import dataclass

from experiments.facts.reading import Asked, Pair
from msif.errors import MsifError


@dataclass(frozen=True)
class Question:
    """A prompt; ``fact`` holds the right answers and the corpus rows that state them, where they are known."""

    prompt: str
    fact: Asked | None


def choose(pair: Pair, prompt: str | None, seed: int) -> Question:
    """The given prompt, with its fact if it is one of the test questions; else one that the model answers.

    Raises:
        MsifError: the prompt is empty, or none is given and the model answers no test question.
    """
    if prompt is not None:
        if not prompt.strip():
            raise MsifError("--prompt is empty: give a text that the model goes on from, or leave it out.")
        return Question(prompt, next((fact for fact in pair.asked if fact.prompt == prompt), None))
    right = [fact for fact in pair.asked if fact.answered]
    if not right:
        raise MsifError(
            f"the model of {pair.folder} answers none of its {len(pair.asked)} test questions: give one with --prompt."
        )
    fact = random.Random(seed).choice(right)
    return Question(fact.prompt, fact)
