"""What the objectives of all sequence classification heads share: one row of K outputs a document."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from msif.data.documents import Batch
from msif.errors import MsifError
from msif.models.objectives.base import Objective, up_to_last, wide


class DocumentHead(Objective):
    """A Hugging Face sequence classification head, which reads each document at its last token.

    Args:
        pad_token_id: the padding token of the model's configuration, by which the head finds that token.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        ids = batch.input_ids.masked_fill(batch.attention_mask == 0, self.pad_token_id)
        return model(input_ids=ids, attention_mask=batch.attention_mask, use_cache=False).logits

    def live(self, batch: Batch) -> Tensor:
        """At or before the position that the head reads: the last token that is not the padding token, or the first."""
        read = (batch.input_ids != self.pad_token_id) & (batch.attention_mask == 1)
        read[:, 0] = True
        return up_to_last(read)

    def labels(self, batch: Batch) -> Tensor:
        """
        Raises:
            MsifError: the documents have none.
        """
        if batch.labels is None:
            raise MsifError("this batch has no labels: a classifier's documents need a label field.")
        return batch.labels


class NumbersHead(DocumentHead):
    """A head each of whose K outputs is a prediction of its own, with a number for a label.

    L(z) sums over the K predictions, and a document counts as K of them, so that H is the Hessian of the mean over
    documents and outputs: the loss that transformers trains (MSELoss, BCEWithLogitsLoss).

    Args:
        outputs: K, the model's ``num_labels``.
    """

    def __init__(self, pad_token_id: int, outputs: int) -> None:
        super().__init__(pad_token_id)
        self.count = outputs

    def supervised_counts(self, batch: Batch) -> Tensor:
        return torch.full((len(batch),), self.count, device=batch.input_ids.device)

    def numbers(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The labels, (B, K), in float32 or better.

        Raises:
            MsifError: the documents have none, or not K of them.
        """
        labels = self.labels(batch).to(outputs.device, wide(outputs))
        if labels.shape != outputs.shape:
            given = 1 if labels.ndim < 2 else labels.shape[1]
            raise MsifError(f"each document has {given} label(s) and the model {outputs.shape[-1]} output(s).")
        return labels
