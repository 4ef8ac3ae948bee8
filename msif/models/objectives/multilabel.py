"""The objective of classifiers with any number of classes a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from msif.data.documents import Batch
from msif.models.objectives.base import Measurement, wide
from msif.models.objectives.document import NumbersHead


class MultiLabelClassification(NumbersHead):
    """Binary cross-entropy of each of a Hugging Face sequence classifier's K labels.

    Labels are independent Bernoulli variables of p_k = sigmoid(f_k), from which they are sampled; the Hessian in the
    outputs is diag p_k (1 − p_k).
    """

    def losses(self, outputs: Tensor, batch: Batch, targets: Tensor | None = None) -> Tensor:
        targets = self.numbers(outputs, batch) if targets is None else targets
        logits = outputs.to(wide(outputs))
        return (softplus(logits) - targets * logits).sum(-1)

    def sample(self, outputs: Tensor, batch: Batch, generators: Sequence[np.random.Generator]) -> Tensor:
        p = torch.sigmoid(outputs.to(wide(outputs)))
        uniform = np.stack([generator.random(outputs.shape[-1]) for generator in generators])
        # in float64, where a draw close to 1 is still below a p of 1
        return (torch.from_numpy(uniform).to(p.device) < p).to(p.dtype)

    def loss_gradient(self, outputs: Tensor, batch: Batch, targets: Tensor | None = None) -> Tensor:
        targets = self.numbers(outputs, batch) if targets is None else targets
        return (torch.sigmoid(outputs.detach().to(wide(outputs))) - targets).to(outputs.dtype)

    def loss_hessian_product(self, outputs: Tensor, tangent: Tensor, batch: Batch) -> Tensor:
        """p (1 − p) · tangent, label by label."""
        p = torch.sigmoid(outputs.to(wide(outputs)))
        return (p * (1 - p) * tangent).to(outputs.dtype)

    def measurements(self) -> Mapping[str, Measurement]:
        """ "loss"; "margin" and "logit", which are one here: minus the labels' log odds log p/(1−p), summed."""
        return {"loss": self.losses, "margin": self._negative_margin, "logit": self._negative_margin}

    def _negative_margin(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Σ_k (1 − 2 y_k) f_k: the log odds of a label that is off are those of its absence."""
        return ((1 - 2 * self.numbers(outputs, batch)) * outputs.to(wide(outputs))).sum(-1)
