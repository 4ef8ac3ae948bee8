"""The objective of regression heads and of reward models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from msif.data.documents import Batch
from msif.models.objectives.base import Measurement, wide
from msif.models.objectives.document import NumbersHead


class Regression(NumbersHead):
    """Squared error Σ_k (f_k − y_k)² of a Hugging Face sequence classification head with numbers for labels.

    That is minus the log likelihood of Gaussians of variance ½ around the outputs, from which labels are sampled; its
    Hessian in the outputs is 2 I.
    """

    def losses(self, outputs: Tensor, batch: Batch, targets: Tensor | None = None) -> Tensor:
        targets = self.numbers(outputs, batch) if targets is None else targets
        return (outputs.to(wide(outputs)) - targets).square().sum(-1)

    def sample(self, outputs: Tensor, batch: Batch, generators: Sequence[np.random.Generator]) -> Tensor:
        noise = np.stack([generator.standard_normal(outputs.shape[-1]) for generator in generators])
        return outputs.to(wide(outputs)) + torch.from_numpy(noise * 0.5**0.5).to(outputs.device, wide(outputs))

    def loss_gradient(self, outputs: Tensor, batch: Batch, targets: Tensor | None = None) -> Tensor:
        targets = self.numbers(outputs, batch) if targets is None else targets
        return (2 * (outputs.detach().to(wide(outputs)) - targets)).to(outputs.dtype)

    def loss_hessian_product(self, outputs: Tensor, tangent: Tensor, batch: Batch) -> Tensor:
        """2 · tangent."""
        return (2 * tangent).to(outputs.dtype)

    def measurements(self) -> Mapping[str, Measurement]:
        """ "loss"; "logit", minus the sum of the outputs, which needs no label: proponents raise the output."""
        return {"loss": self.losses, "logit": self._negative_output}

    def _negative_output(self, outputs: Tensor, batch: Batch) -> Tensor:
        return -outputs.to(wide(outputs)).sum(-1)
