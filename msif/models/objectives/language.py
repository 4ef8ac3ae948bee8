"""The objective of language models."""

from __future__ import annotations

from torch import Tensor, nn

from msif.data.documents import Batch
from msif.models.objectives.base import up_to_last
from msif.models.objectives.categorical import Categorical


class CausalLM(Categorical):
    """Next-token cross-entropy of a Hugging Face causal language model at the supervised tokens."""

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        result = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        return result.logits

    def targets(self, batch: Batch) -> Tensor:
        # the last position predicts nothing; what stands there is masked by `predicting`
        return batch.input_ids.roll(-1, dims=1)

    def predicting(self, batch: Batch) -> Tensor:
        following = batch.supervised.roll(-1, dims=1)
        following[:, -1] = False
        return following

    def live(self, batch: Batch) -> Tensor:
        """Tokens at or before the last position that predicts a supervised one."""
        return up_to_last(self.predicting(batch)) & (batch.attention_mask == 1)
