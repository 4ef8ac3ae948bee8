"""What is tracked: linear modules, and the parameter blocks that each of them is made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Block:
    """Output rows [start, stop) of one module's weight, a parameter block of its own.

    ``role`` is "q", "k" or "v" for a head's rows, else "whole"; ``head`` counts from 0 within its role.
    """

    start: int
    stop: int
    role: str = "whole"
    head: int | None = None

    @property
    def label(self) -> str:
        return self.role if self.head is None else f"{self.role}{self.head}"


@dataclass(frozen=True)
class TrackedModule:
    """A linear map ``y = W x (+ b)`` of a model, seen as W̄ = [W b] of shape (d_out, d_in + bias).

    Attributes:
        name: the module's name after the base-model prefix; the key by which two models are matched.
        path: its full name in this model (``model.get_submodule(path)``).
        blocks: ordered, adjacent, of one size, together covering all d_out rows.
    """

    name: str
    path: str
    d_in: int
    d_out: int
    bias: bool
    blocks: tuple[Block, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of W̄: (d_out, d_in + bias)."""
        return self.d_out, self.d_in + int(self.bias)

    @property
    def block_rows(self) -> int:
        """Rows of each block: d_out / number of blocks."""
        return self.d_out // len(self.blocks)


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D))


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(d_out, d_in) of an ``nn.Linear`` or ``Conv1D`` (whose weight is stored transposed)."""
    rows, columns = _weight(module).shape
    return rows, columns


def augmented_weight(module: nn.Module) -> Tensor:
    """A copy of W̄ = [W b], shape (d_out, d_in + bias)."""
    weight, bias = _weight(module).detach(), module.bias
    return weight.clone() if bias is None else torch.cat([weight, bias.detach()[:, None]], dim=1)  # type: ignore[operator]


def _weight(module: nn.Module) -> Tensor:
    """W, (d_out, d_in)."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.T if isinstance(module, Conv1D) else weight
