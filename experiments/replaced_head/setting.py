"""The setting: a language model becomes a classifier, of one task or another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerFast

from experiments.common.training import build_tokenizer
from experiments.facts.facts import FactData
from experiments.replaced_head.head import ClassifierHead
from experiments.retraining.settings import Recipe
from experiments.retraining.two_stage import Asked, TwoStage
from msif.errors import MsifError

Labelled = tuple[str, int]
"""A text and the number of its class."""


@dataclass(frozen=True)
class Parts:
    """What a task consists of; no text is in two parts.

    Attributes:
        documents: of pre-training, with the class that each states; training never sees these.
        finetuning: what the classifier is trained on.
        held_out: what it is asked.
        sources: of each text that is held out, the documents that its class can be known from; () where none is
            nearer to it than all others of its class.
        data: the facts and sentences that all this is of, with the counts of what was left out.
    """

    classes: tuple[str, ...]
    documents: Sequence[Labelled]
    finetuning: Sequence[Labelled]
    held_out: Sequence[Labelled]
    sources: Sequence[Sequence[int]]
    data: FactData


@dataclass(frozen=True)
class LabelSetting:
    """The world that these parts make."""

    world: TwoStage
    parts: Parts

    @property
    def labels(self) -> np.ndarray:
        """Of the pre-training documents, class numbers (N,)."""
        return np.array([label for _, label in self.parts.documents])

    @property
    def truth(self) -> np.ndarray:
        """Of what is held out, class numbers (H,)."""
        return np.array([label for _, label in self.parts.held_out])

    def predicted(self, losses: np.ndarray) -> np.ndarray:
        """Probabilities of classes, (S, held out, classes), from the losses of all questions, (S, questions)."""
        return np.exp(-losses).reshape(len(losses), len(self.parts.held_out), len(self.parts.classes))

    def order(self) -> np.ndarray:
        """The texts held out, one of each class after the other, (H,)."""
        turns: Counter[int] = Counter()
        keys = []
        for place, label in enumerate(self.truth):
            keys.append((turns[label], int(label), place))
            turns[label] += 1
        return np.array([place for *_, place in sorted(keys)])

    def choose(self, losses: np.ndarray) -> list[int]:
        """All that is held out. Of each is explained the class that the pairs find likeliest, right or wrong."""
        said = self.predicted(losses).mean(0).argmax(1)
        return [int(place * len(self.parts.classes) + said[place]) for place in self.order()]


def _questions(tokenizer: PreTrainedTokenizerFast, parts: Parts) -> Asked:
    """Each text held out with each class: the texts in their order, and with each its classes."""
    texts = [text for text, _ in parts.held_out]
    asked = [
        (
            (ids, number),
            text,
            f"held out {place}",
            name if number == label else f"{name}, wrongly: {parts.classes[label]}",
        )
        for place, ((text, label), ids) in enumerate(zip(parts.held_out, tokenizer(texts)["input_ids"], strict=True))
        for number, name in enumerate(parts.classes)
    ]
    return Asked(*(list(column) for column in zip(*asked, strict=True)))


def label_setting(parts: Parts, recipe: Recipe, device: str = "cpu") -> LabelSetting:
    """The world of these parts.

    Raises:
        MsifError: fewer than two classes.
    """
    if len(parts.classes) < 2:
        raise MsifError(f"a classifier needs two classes or more, and this one has {len(parts.classes)}.")
    texts = [text for text, _ in parts.documents]
    tokenizer = build_tokenizer([*texts, *(text for text, _ in parts.finetuning)], recipe.vocabulary)
    tokens = tokenizer([text for text, _ in parts.finetuning])["input_ids"]
    finetuning = [(ids, label) for ids, (_, label) in zip(tokens, parts.finetuning, strict=True)]
    world = TwoStage(
        tokenizer, texts, finetuning, recipe, ClassifierHead(parts.classes), _questions(tokenizer, parts), device=device
    )
    return LabelSetting(world, parts)
