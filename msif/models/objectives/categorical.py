"""Cross-entropy over classes: the loss of language models and of classifiers with one class a document.

N = B·T predictions, or B for a classifier.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msif.models.objectives.base import Measurement, Objective, wide
from msif.models.outer import portions

# wide copies of the outputs, and what labels are drawn from, are held of so many elements at once
PART_ELEMENTS = 2**27


class Categorical(Objective):
    """Cross-entropy over V classes at the supervised predictions (``CausalLM``, ``SequenceClassification``)."""

    @abstractmethod
    def targets(self, batch: Any) -> Tensor:
        """True labels of all predictions, int64, outputs.shape[:-1]."""

    @abstractmethod
    def predicting(self, batch: Any) -> Tensor:
        """Which predictions are supervised, bool, outputs.shape[:-1]."""

    def losses(self, outputs: Tensor, batch: Any, targets: Tensor | None = None) -> Tensor:
        targets = self.targets(batch) if targets is None else targets
        log_p = torch.log_softmax(outputs, dim=-1, dtype=wide(outputs))
        losses = -log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        return _sum_per_sequence(losses, self.predicting(batch))

    def sample(self, outputs: Tensor, batch: Any, generators: Sequence[np.random.Generator]) -> Tensor:
        return self._sample(_softmax(outputs), generators)

    def _sample(self, probabilities: Tensor, generators: Sequence[np.random.Generator]) -> Tensor:
        per_sequence = probabilities.shape[1:-1].numel()
        uniform = np.stack([generator.random(per_sequence) for generator in generators])
        flat = probabilities.reshape(-1, probabilities.shape[-1])
        # below 1 also after rounding: at 1 the last class would be drawn, whatever its probability
        below = torch.from_numpy(uniform).to(flat.device, flat.dtype).clamp_(max=1 - torch.finfo(flat.dtype).eps / 2)
        labels = inverse_cdf(flat, below.reshape(-1))
        return labels.view(probabilities.shape[:-1])

    def supervised_counts(self, batch: Any) -> Tensor:
        return self.predicting(batch).reshape(len(batch), -1).sum(1)

    def loss_gradient(self, outputs: Tensor, batch: Any, targets: Tensor | None = None) -> Tensor:
        labels = self.targets(batch) if targets is None else targets
        return self._residual(outputs, batch, lambda part, probabilities: labels[part])

    def sampled_loss_gradient(self, outputs: Tensor, batch: Any, generators: Sequence[np.random.Generator]) -> Tensor:
        return self._residual(outputs, batch, lambda part, probabilities: self._sample(probabilities, generators[part]))

    def loss_hessian_product(self, outputs: Tensor, tangent: Tensor, batch: Any) -> Tensor:
        """(diag(p) − p pᵀ) · tangent at supervised predictions, 0 elsewhere."""
        probabilities = _softmax(outputs)
        tangent = tangent.to(probabilities.dtype)
        product = probabilities * (tangent - (probabilities * tangent).sum(-1, keepdim=True))
        return product.masked_fill_(~self.predicting(batch).unsqueeze(-1), 0.0).to(outputs.dtype)

    def _residual(self, outputs: Tensor, batch: Any, labels: Callable[[slice, Tensor], Tensor]) -> Tensor:
        """(p − onehot) at supervised predictions, 0 elsewhere; ``labels`` of some sequences, whose p are given."""
        predicting, residuals = self.predicting(batch).unsqueeze(-1), []
        for part in portions(len(outputs), outputs[:1].numel(), outputs.device, PART_ELEMENTS):
            probabilities = _softmax(outputs[part].detach())
            chosen = labels(part, probabilities).unsqueeze(-1)
            probabilities.scatter_add_(-1, chosen, probabilities.new_full((1,), -1.0).expand(chosen.shape))
            residuals.append(probabilities.masked_fill_(~predicting[part], 0.0).to(outputs.dtype))
        return residuals[0] if len(residuals) == 1 else torch.cat(residuals)

    def measurements(self) -> Mapping[str, Measurement]:
        """ "loss"; "margin", −log p/(1−p); "logit", minus the true class's logit: each lower for likelier answers.

        Each is summed over the query's supervised predictions. (Park et al. 2023, TRAK, use the margin.)
        """
        return {"loss": self.losses, "margin": self._negative_margin, "logit": self._negative_logit}

    def _negative_logit(self, outputs: Tensor, batch: Any) -> Tensor:
        logits = outputs.to(wide(outputs)).gather(-1, self.targets(batch).unsqueeze(-1)).squeeze(-1)
        return -_sum_per_sequence(logits, self.predicting(batch))

    def _negative_margin(self, outputs: Tensor, batch: Any) -> Tensor:
        logits, targets = outputs.to(wide(outputs)), self.targets(batch).unsqueeze(-1)
        # log p − log(1−p) = own logit − logsumexp of the others: no cancellation where p is close to 1
        others = logits.scatter(-1, targets, float("-inf")).logsumexp(-1)
        margin = logits.gather(-1, targets).squeeze(-1) - others
        return -_sum_per_sequence(margin, self.predicting(batch))


def inverse_cdf(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """For each row of (N, V) the class at which the cumulative probability first exceeds ``uniform`` (N,).

    Two levels of about √V classes each: group sums, then one group a row. A fortieth of ``multinomial``'s time,
    and one random number a row.
    """
    rows, classes = probabilities.shape
    width = max(1, int(classes**0.5))
    groups = classes // width
    sums = probabilities[:, : groups * width].reshape(rows, groups, width).sum(-1)
    rest = probabilities[:, groups * width :].sum(-1, keepdim=True)
    edges = torch.cat([sums, rest], dim=1).cumsum(1)
    point = uniform.unsqueeze(1) * edges[:, -1:]
    group = torch.searchsorted(edges, point, right=True).clamp_(max=groups)
    before = torch.where(group > 0, edges.gather(1, (group - 1).clamp(min=0)), torch.zeros_like(point))
    columns = group * width + torch.arange(width, device=probabilities.device)
    inside = probabilities.gather(1, columns.clamp(max=classes - 1)).masked_fill_(columns >= classes, 0.0)
    # a point that rounding pushed past the group's end takes the group's last possible class
    offset = torch.searchsorted(inside.cumsum(1), point - before, right=True)
    last = (inside > 0).long().mul_(torch.arange(1, width + 1, device=inside.device)).amax(1, keepdim=True) - 1
    return (group * width + torch.minimum(offset, last.clamp_(min=0))).clamp_(max=classes - 1).squeeze(1)


def _sum_per_sequence(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, torch.zeros_like(values)).reshape(len(values), -1).sum(1)


def _softmax(outputs: Tensor) -> Tensor:
    return torch.softmax(outputs, dim=-1, dtype=wide(outputs))
