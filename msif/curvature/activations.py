"""What a batch holds until its backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from msif.models.blocks import TrackedModule
from msif.models.capture import Consumer


class Activations(Consumer):
    """Counts what autograd saves and hooks keep of a forward pass.

    Attributes:
        bytes: of all of it, each memory once, without the weights.
    """

    def __init__(self, model: nn.Module) -> None:
        self.bytes = 0
        self._weights = {_memory(parameter) for parameter in model.parameters()}
        self._kept: dict[int, Tensor] | None = None

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Around a forward pass, until ``end_of_forward``."""
        self._kept = {}  # held to the end, so that no memory is given to another tensor and counted once for both
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor):
                yield
        finally:
            self._kept = None

    def end_of_forward(self) -> None:
        """What comes later, such as a cotangent's own gradients, is not counted."""
        if self._kept is not None:
            self.bytes = sum(tensor.untyped_storage().nbytes() for tensor in self._kept.values())
            self._kept = None

    def right(self, module: TrackedModule, right: Tensor) -> Any:
        return self._keep(right)

    def _keep(self, tensor: Tensor) -> Tensor:
        if self._kept is not None and _memory(tensor) not in self._weights:
            self._kept.setdefault(_memory(tensor), tensor)
        return tensor


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
