"""A model that is trained twice, with some of its pre-training documents left out or none."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import nn
from transformers import GPTNeoXForCausalLM, PreTrainedTokenizerFast

from experiments.common.training import NEXT_TOKENS, Example, Task, Trained, new_model, plain_text, train
from experiments.retraining.settings import Recipe
from msif.data.batching import batches_of
from msif.data.documents import Batch, Document
from msif.models.adapted import Adapted
from msif.models.capture import frozen
from msif.models.objectives import CausalLM, Objective

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Asked:
    """Queries: as examples for models, and as texts for search.

    Attributes:
        titles: how tables name them.
        answers: what is explained of each.
    """

    examples: Sequence[Example]
    texts: Sequence[str]
    titles: Sequence[str]
    answers: Sequence[str]

    def chosen(self, places: Sequence[int]) -> Asked:
        pick = lambda values: [values[place] for place in places]  # noqa: E731
        return Asked(pick(self.examples), pick(self.texts), pick(self.titles), pick(self.answers))

    def __len__(self) -> int:
        return len(self.examples)


STAGES = ("pretrained", "finetuned")
NOTHING = Asked((), (), (), ())


class Head(Protocol):
    """What fine-tuning makes of a pre-trained language model, and how its answers are measured.

    Attributes:
        task, objective: what fine-tuning trains, for training and for the library.
        one_objective: whether the pre-trained model can be asked the fine-tuned one's queries.
    """

    @property
    def task(self) -> Task: ...
    @property
    def objective(self) -> Objective: ...
    @property
    def one_objective(self) -> bool: ...

    def start(self, pretrained: GPTNeoXForCausalLM, seed: int) -> nn.Module:
        """Where fine-tuning starts; the pre-trained model stays as it is."""
        ...

    def load(self, folder: Path) -> tuple[nn.Module, Adapted | None]:
        """A saved fine-tuned model beside its pre-trained one, and what it trained if that is an adapter."""
        ...

    def document(self, index: int, example: Example) -> Document:
        """An example as the library reads it."""
        ...


@dataclass(frozen=True)
class LanguageHead:
    """The head stays: fine-tuning goes on predicting tokens."""

    task: ClassVar[Task] = NEXT_TOKENS
    objective: ClassVar[Objective] = CausalLM()
    one_objective: ClassVar[bool] = True

    def start(self, pretrained: GPTNeoXForCausalLM, seed: int) -> nn.Module:
        return copy.deepcopy(pretrained)

    def load(self, folder: Path) -> tuple[nn.Module, Adapted | None]:
        return GPTNeoXForCausalLM.from_pretrained(folder), None

    def document(self, index: int, example: Example) -> Document:
        tokens, start = example
        return Document(index, np.asarray(tokens, dtype=np.int32), np.arange(len(tokens)) >= start)


@dataclass(frozen=True)
class TwoStage:
    """
    Attributes:
        texts: the pre-training documents, by row number.
        finetuning: what the second stage is trained on, never left out.
        questions: all that the fine-tuned model may be asked, whose losses are measured after every training.
        statements: the same of the pre-trained model.
        held_out: texts like those of pre-training that no training sees, for curvature that holds none of the
            documents that are scored.
        device: of trainings.
    """

    tokenizer: PreTrainedTokenizerFast
    texts: Sequence[str]
    finetuning: Sequence[Example]
    recipe: Recipe
    head: Head
    questions: Asked
    statements: Asked = NOTHING
    held_out: Sequence[str] = ()
    device: str = "cpu"

    @property
    def fingerprint(self) -> str:
        """Of all that decides a training, beside its seed."""
        parts = (
            list(self.texts),
            list(self.finetuning),
            self.recipe,
            repr(self.head),
            list(self.questions.examples),
            list(self.statements.examples),
            sorted(self.tokenizer.get_vocab().items()),
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    @cached_property
    def pretraining(self) -> list[Example]:
        return plain_text(self.tokenizer, self.texts)

    def train(
        self,
        seed: int,
        left_out: Collection[int] = (),
        order: int = 0,
        after_step: Callable[[str, Trained], None] | None = None,
    ) -> tuple[Trained, Trained]:
        """Both stages; the seed decides first weights and batches, and leaving documents out changes neither.

        Args:
            order: 0 for the seed's own batches, else others from the same first weights.
            after_step: is called after every step, with the stage's name.
        """
        call: list[Any] = [after_step and partial(after_step, stage) for stage in STAGES]
        model, batches = new_model(self.tokenizer, self.recipe.size, seed).to(self.device), _batches_seed(seed, order)
        schedule = self.recipe.pretraining
        first = train(model, self.pretraining, schedule, batches, None, left_out=left_out, after_step=call[0])
        return first, self.finetune(first.model, seed, order, call[1])

    def finetune(
        self,
        pretrained: GPTNeoXForCausalLM,
        seed: int,
        order: int = 0,
        after_step: Callable[[Trained], None] | None = None,
    ) -> Trained:
        """The second stage, which leaves the pre-trained model as it is; see ``train``."""
        model, batches = self.head.start(pretrained, seed), _batches_seed(seed, order)
        schedule = self.recipe.finetuning
        return train(model, self.finetuning, schedule, batches, None, self.head.task, after_step=after_step)

    def measured(self, pretrained: nn.Module, finetuned: nn.Module) -> dict[str, np.ndarray]:
        """The losses of all statements by the one and of all questions by the other: STAGES -> (Q,)."""
        asked = (
            (pretrained, LanguageHead(), self.statements),
            (finetuned, self.head, self.questions),
        )
        return {
            stage: measured_losses(model, head.objective, _batches(head, queries.examples))
            for stage, (model, head, queries) in zip(STAGES, asked, strict=True)
        }

    def pretraining_batches(self, left_out: Collection[int] = ()) -> list[Batch]:
        gone = set(left_out)
        return _batches(LanguageHead(), [example for row, example in enumerate(self.pretraining) if row not in gone])

    def held_out_batches(self) -> list[Batch]:
        return _batches(LanguageHead(), plain_text(self.tokenizer, self.held_out) if self.held_out else [])

    def finetuning_batches(self) -> list[Batch]:
        return _batches(self.head, self.finetuning)

    def query_batches(self, examples: Sequence[Example]) -> list[Batch]:
        return _batches(self.head, examples)


def _batches_seed(seed: int, order: int) -> int | str:
    return f"{seed}:{order}" if order else seed


def _batches(head: Head, examples: Sequence[Example]) -> list[Batch]:
    return batches_of([head.document(i, example) for i, example in enumerate(examples)], BATCH_TOKENS)


@torch.no_grad()
def measured_losses(model: nn.Module, objective: Objective, batches: Sequence[Any]) -> np.ndarray:
    """The summed loss of each of Q queries, float64 (Q,): what influence is said to change."""
    losses = np.empty(sum(len(batch) for batch in batches))
    device = next(model.parameters()).device
    with frozen(model):
        for batch in batches:
            here = batch.to(device)
            found = objective.losses(objective.outputs(model, here), here)
            losses[batch.indices.numpy()] = found.double().cpu().numpy()
    return losses
