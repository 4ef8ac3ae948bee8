"""A classifier on a pre-trained language model, all of whose parameters are fine-tuned."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from transformers import GPTNeoXForCausalLM, GPTNeoXForSequenceClassification

from experiments.common.training import CLASSES, Example, Task
from msif.data.documents import Document
from msif.models.adapted import Adapted
from msif.models.objectives import Objective, SequenceClassification


@dataclass(frozen=True)
class ClassifierHead:
    """The unembedding goes, and a linear map to classes is put on the last token; its first weights are the seed's."""

    classes: tuple[str, ...]

    task: ClassVar[Task] = CLASSES
    objective: ClassVar[Objective] = SequenceClassification(pad_token_id=0)
    one_objective: ClassVar[bool] = False

    def start(self, pretrained: GPTNeoXForCausalLM, seed: int) -> nn.Module:
        config = copy.deepcopy(pretrained.config)
        config.update({"id2label": dict(enumerate(self.classes)), "architectures": None})
        config.label2id = {name: number for number, name in enumerate(self.classes)}
        torch.manual_seed(seed)
        model = GPTNeoXForSequenceClassification(config).to(pretrained.device)
        model.base_model.load_state_dict(pretrained.base_model.state_dict())
        return model

    def load(self, folder: Path) -> tuple[nn.Module, Adapted | None]:
        return GPTNeoXForSequenceClassification.from_pretrained(folder), None

    def document(self, index: int, example: Example) -> Document:
        tokens, label = example
        return Document(index, np.asarray(tokens, dtype=np.int32), np.zeros(len(tokens), dtype=bool), label)
