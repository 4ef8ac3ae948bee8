"""What an objective is: a summed loss, labels drawn from the model, and measurements of a query.

Letters: B sequences of T positions, V classes (the vocabulary), K outputs of a head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from msif.draws import generator
from msif.errors import MsifError

Measurement = Callable[[Tensor, Any], Tensor]
"""(outputs, batch) -> (B,), differentiable in the outputs; *lower* means that the answer is more likely."""


class Objective(ABC):
    """A summed loss L(z) over outputs of a model, with a distribution from which labels can be drawn.

    L must be minus the log likelihood of that distribution, or else the sampled Fisher is not its Gauss-Newton matrix.

    Subclass it to use the library with any ``nn.Module``. A batch is whatever ``outputs`` understands; it needs
    ``indices``, int64 (B,), the sequences' row numbers, ``to(device)`` and ``len``.
    """

    @abstractmethod
    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        """The forward pass: the tensor from which the loss is computed, B first."""

    @abstractmethod
    def losses(self, outputs: Tensor, batch: Any, targets: Tensor | None = None) -> Tensor:
        """L(z) of each sequence, (B,): the sum over its supervised predictions; ``targets`` replace the true labels."""

    @abstractmethod
    def sample(self, outputs: Tensor, batch: Any, generators: Sequence[np.random.Generator]) -> Tensor:
        """Targets drawn from the model's own distribution, with one generator a sequence."""

    @abstractmethod
    def supervised_counts(self, batch: Any) -> Tensor:
        """Supervised predictions of each sequence, int64 (B,)."""

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

    def measurements(self) -> Mapping[str, Measurement]:
        """What can be measured of a query, by name; "loss" is its summed loss."""
        return {"loss": self.losses}

    def measurement(self, name: str) -> Measurement:
        """
        Raises:
            MsifError: there is none of that name.
        """
        known = self.measurements()
        if name not in known:
            names = " or ".join(f"'{other}'" for other in known)
            raise MsifError(f"unknown measurement '{name}': {type(self).__name__} has {names}.")
        return known[name]

    def measurement_gradient(self, outputs: Tensor, batch: Any, measurement: Measurement) -> Tensor:
        """d Σ_q m(q) / d outputs."""
        return _gradient(lambda free: measurement(free, batch), outputs)


def _gradient(function: Callable[[Tensor], Tensor], outputs: Tensor) -> Tensor:
    free = outputs.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(function(free).sum(), free)
    return gradient


def generators_for(seed: int, stream: int, indices: Tensor, draw: int = 0) -> list[np.random.Generator]:
    """One counter-based generator a sequence: its draws depend on (seed, stream, draw, row number) and on nothing else,
    so that labels are the same whatever the batch, the order or the device."""
    return [generator(seed, stream, draw, index) for index in indices.tolist()]


def wide(outputs: Tensor) -> torch.dtype:
    """At least float32."""
    return torch.float64 if outputs.dtype == torch.float64 else torch.float32


def up_to_last(mask: Tensor) -> Tensor:
    """True at and before each row's last True."""
    return mask.flip(1).long().cumsum(1).flip(1) > 0
