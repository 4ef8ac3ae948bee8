"""The objective of classifiers with one class a document."""

from __future__ import annotations

import torch
from torch import Tensor

from msif.data.documents import Batch
from msif.models.objectives.categorical import Categorical
from msif.models.objectives.document import DocumentHead


class SequenceClassification(DocumentHead, Categorical):
    """Cross-entropy of a Hugging Face sequence classifier: one prediction a document."""

    def targets(self, batch: Batch) -> Tensor:
        return self.labels(batch)

    def predicting(self, batch: Batch) -> Tensor:
        return torch.ones(len(batch), dtype=torch.bool, device=batch.input_ids.device)
