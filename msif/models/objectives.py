"""Objectives: what a batch's loss is, how labels are drawn from the model, and what is measured on a query.

Letters: B sequences of T positions, V classes (the vocabulary), N = B·T predictions (B for a classifier).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from msif.data.documents import Batch
from msif.draws import generator
from msif.errors import MsifError

Measurement = Callable[[Tensor, Any], Tensor]
"""(outputs, batch) -> (B,), differentiable in the outputs; *lower* means that the answer is more likely."""


class Objective(ABC):
    """A summed loss L(z) over outputs of a model, with a distribution from which labels can be drawn.

    Subclass it to use the library with any ``nn.Module``. A batch is whatever ``outputs`` understands; it needs
    ``indices``, int64 (B,), the sequences' row numbers, ``to(device)`` and ``len``.
    """

    @abstractmethod
    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        """The forward pass: the tensor from which the loss is computed, B first."""

    @abstractmethod
    def losses(self, outputs: Tensor, batch: Any, targets: Tensor | None = None) -> Tensor:
        """L(z) of each sequence, (B,): the sum over its supervised positions; ``targets`` replace the true labels."""

    @abstractmethod
    def sample(self, outputs: Tensor, batch: Any, generators: Sequence[np.random.Generator]) -> Tensor:
        """Targets drawn from the model's own distribution, with one generator a sequence."""

    @abstractmethod
    def supervised_counts(self, batch: Any) -> Tensor:
        """Supervised positions of each sequence, int64 (B,)."""

    def live(self, batch: Any) -> Tensor:
        """Positions that can receive gradient, bool (B, T); (B, 1) for models without a time axis."""
        return torch.ones(len(batch), 1, dtype=torch.bool, device=batch.indices.device)

    def loss_gradient(self, outputs: Tensor, batch: Any, targets: Tensor | None = None) -> Tensor:
        """d Σ_z L(z) / d outputs, in the outputs' shape."""
        return _gradient(lambda free: self.losses(free, batch, targets), outputs)

    def sampled_loss_gradient(self, outputs: Tensor, batch: Any, generators: Sequence[np.random.Generator]) -> Tensor:
        """The same with labels drawn from the model."""
        return self.loss_gradient(outputs, batch, self.sample(outputs.detach(), batch, generators))

    def loss_hessian_product(self, outputs: Tensor, tangent: Tensor, batch: Any) -> Tensor:
        """∇²L(outputs) · tangent, in the outputs' shape; L must be such that its Hessian does not depend on labels."""
        free = outputs.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.losses(free, batch).sum(), free, create_graph=True)
            (product,) = torch.autograd.grad(gradient, free, tangent)
        return product

    def measurement(self, name: str) -> Measurement:
        """A named measurement of a query; "loss" is its summed loss."""
        if name == "loss":
            return lambda outputs, batch: self.losses(outputs, batch)
        raise MsifError(f"unknown measurement '{name}': {type(self).__name__} knows 'loss'; or pass a callable.")

    def measurement_gradient(self, outputs: Tensor, batch: Any, measurement: Measurement) -> Tensor:
        """d Σ_q m(q) / d outputs."""
        return _gradient(lambda free: measurement(free, batch), outputs)


def _gradient(function: Callable[[Tensor], Tensor], outputs: Tensor) -> Tensor:
    free = outputs.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(function(free).sum(), free)
    return gradient


class Categorical(Objective):
    """Cross-entropy over V classes at the supervised predictions; the base of both Hugging Face objectives."""

    @abstractmethod
    def targets(self, batch: Any) -> Tensor:
        """True labels of all predictions, int64, outputs.shape[:-1]."""

    @abstractmethod
    def predicting(self, batch: Any) -> Tensor:
        """Which predictions are supervised, bool, outputs.shape[:-1]."""

    def losses(self, outputs: Tensor, batch: Any, targets: Tensor | None = None) -> Tensor:
        targets = self.targets(batch) if targets is None else targets
        log_p = torch.log_softmax(outputs, dim=-1, dtype=_wide(outputs))
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
        probabilities = _softmax(outputs.detach())
        return self._residual(probabilities, self.targets(batch) if targets is None else targets, batch, outputs.dtype)

    def sampled_loss_gradient(self, outputs: Tensor, batch: Any, generators: Sequence[np.random.Generator]) -> Tensor:
        probabilities = _softmax(outputs.detach())
        return self._residual(probabilities, self._sample(probabilities, generators), batch, outputs.dtype)

    def loss_hessian_product(self, outputs: Tensor, tangent: Tensor, batch: Any) -> Tensor:
        """(diag(p) − p pᵀ) · tangent at supervised predictions, 0 elsewhere."""
        probabilities = _softmax(outputs)
        wide = tangent.to(probabilities.dtype)
        product = probabilities * (wide - (probabilities * wide).sum(-1, keepdim=True))
        return product.masked_fill_(~self.predicting(batch).unsqueeze(-1), 0.0).to(outputs.dtype)

    def _residual(self, probabilities: Tensor, targets: Tensor, batch: Any, dtype: torch.dtype) -> Tensor:
        """(p − onehot) at supervised predictions, 0 elsewhere; overwrites the probabilities."""
        minus_one = probabilities.new_full((1,), -1.0).expand(targets.shape).unsqueeze(-1)
        probabilities.scatter_add_(-1, targets.unsqueeze(-1), minus_one)
        probabilities.masked_fill_(~self.predicting(batch).unsqueeze(-1), 0.0)
        return probabilities.to(dtype)

    def measurement(self, name: str) -> Measurement:
        """ "loss"; "margin", −log p/(1−p); "logit", minus the true class's logit: each lower for likelier answers.

        Each is summed over the query's supervised predictions. (Park et al. 2023, TRAK, use the margin.)
        """
        if name == "margin":
            return self._negative_margin
        if name == "logit":
            return self._negative_logit
        if name == "loss":
            return super().measurement(name)
        raise MsifError(f"unknown measurement '{name}': choose 'loss', 'margin' or 'logit'.")

    def _negative_logit(self, outputs: Tensor, batch: Any) -> Tensor:
        logits = outputs.to(_wide(outputs)).gather(-1, self.targets(batch).unsqueeze(-1)).squeeze(-1)
        return -_sum_per_sequence(logits, self.predicting(batch))

    def _negative_margin(self, outputs: Tensor, batch: Any) -> Tensor:
        logits, targets = outputs.to(_wide(outputs)), self.targets(batch).unsqueeze(-1)
        # log p − log(1−p) = own logit − logsumexp of the others: no cancellation where p is close to 1
        others = logits.scatter(-1, targets, float("-inf")).logsumexp(-1)
        margin = logits.gather(-1, targets).squeeze(-1) - others
        return -_sum_per_sequence(margin, self.predicting(batch))


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
        """At or before the last position that predicts a supervised token."""
        return _up_to_last(self.predicting(batch))


class SequenceClassification(Categorical):
    """Cross-entropy of a Hugging Face sequence classifier: one prediction a document."""

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        ids = batch.input_ids.masked_fill(batch.attention_mask == 0, self.pad_token_id)
        return model(input_ids=ids, attention_mask=batch.attention_mask, use_cache=False).logits

    def targets(self, batch: Batch) -> Tensor:
        if batch.labels is None:
            raise MsifError("this batch has no labels: a classifier's documents need a label field.")
        return batch.labels

    def predicting(self, batch: Batch) -> Tensor:
        return torch.ones(len(batch), dtype=torch.bool, device=batch.input_ids.device)

    def live(self, batch: Batch) -> Tensor:
        """At or before the position that the head reads: the last token that is not the padding token, or the first."""
        read = (batch.input_ids != self.pad_token_id) & (batch.attention_mask == 1)
        read[:, 0] = True
        return _up_to_last(read)


def generators_for(seed: int, stream: int, indices: Tensor, draw: int = 0) -> list[np.random.Generator]:
    """One counter-based generator a sequence: its draws depend on (seed, stream, draw, row number) and on nothing else,
    so that labels are the same whatever the batch, the order or the device."""
    return [generator(seed, stream, draw, index) for index in indices.tolist()]


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


def _up_to_last(mask: Tensor) -> Tensor:
    """True at and before each row's last True."""
    return mask.flip(1).long().cumsum(1).flip(1) > 0


def _softmax(outputs: Tensor) -> Tensor:
    return torch.softmax(outputs, dim=-1, dtype=_wide(outputs))


def _wide(outputs: Tensor) -> torch.dtype:
    """At least float32."""
    return torch.float64 if outputs.dtype == torch.float64 else torch.float32
