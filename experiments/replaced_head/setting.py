"""The setting: a language model becomes a classifier, of one task or another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from experiments.common.training import Example, build_tokenizer
from experiments.facts.facts import FactData
from experiments.replaced_head.head import ClassifierHead
from experiments.retraining.members import Member
from experiments.retraining.settings import Recipe
from experiments.retraining.two_stage import Asked, TwoStage
from msif.errors import MsifError
from msif.models.capture import frozen

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

    def predicted(self, members: Sequence[Member]) -> np.ndarray:
        """Probabilities of classes, (K, held out, classes), by each pair."""
        texts = [text for text, _ in self.parts.held_out]
        examples: list[Example] = [(ids, 0) for ids in self.world.tokenizer(texts)["input_ids"]]
        batches = self.world.query_batches(examples)
        found = np.empty((len(members), len(examples), len(self.world.head.classes)))
        with torch.no_grad():
            for number, member in enumerate(members):
                with frozen(member.finetuned.model):
                    for batch in batches:
                        logits = member.finetuned.objective.outputs(member.finetuned.model, batch.to(self.world.device))
                        found[number, batch.indices.numpy()] = logits.double().softmax(-1).cpu().numpy()
        return found

    def order(self) -> np.ndarray:
        """The texts held out, one of each class after the other, (H,)."""
        turns: Counter[int] = Counter()
        keys = []
        for place, label in enumerate(self.truth):
            keys.append((turns[label], int(label), place))
            turns[label] += 1
        return np.array([place for *_, place in sorted(keys)])

    def choose(self, world: TwoStage, members: list[Member]) -> Asked:
        """All that is held out. Of each is explained the class that the pairs find likeliest, right or wrong."""
        classes, places = self.parts.classes, self.order()
        said = self.predicted(members).mean(0).argmax(1)[places]
        texts = [self.parts.held_out[place][0] for place in places]
        answers = [
            classes[label] + ("" if label == self.truth[place] else f", wrongly: {classes[self.truth[place]]}")
            for place, label in zip(places, said, strict=True)
        ]
        tokens = world.tokenizer(texts)["input_ids"]
        examples = [(ids, int(label)) for ids, label in zip(tokens, said, strict=True)]
        return Asked(examples, texts, [f"held out {place}" for place in places], answers)


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
    world = TwoStage(tokenizer, texts, finetuning, recipe, ClassifierHead(parts.classes), device)
    return LabelSetting(world, parts)
