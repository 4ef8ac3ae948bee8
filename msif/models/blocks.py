"""What is tracked: linear modules, and the parameter blocks that each of them is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
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


def is_transposed(module: nn.Module) -> bool:
    """Whether its weight is stored as (d_in, d_out); an embedding is a map of one-hot tokens, d_in of them."""
    return isinstance(module, (Conv1D, nn.Embedding))


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(d_out, d_in)."""
    rows, columns = _weight(module).shape
    return rows, columns


def bias_of(module: nn.Module) -> Tensor | None:
    return getattr(module, "bias", None)  # embeddings have no such attribute


def augmented_weight(module: nn.Module) -> Tensor:
    """A copy of W̄ = [W b], shape (d_out, d_in + bias)."""
    weight, bias = _weight(module).detach(), bias_of(module)
    return weight.clone() if bias is None else torch.cat([weight, bias.detach()[:, None]], dim=1)


def input_of(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """What W is applied to in a call: x, or an embedding's tokens as one-hot rows, (..., d_in).

    The row of an embedding's padding token is zero, for that token is never trained.
    """
    x = args[0] if args else next(iter(kwargs.values()))
    if not isinstance(module, nn.Embedding):
        return x
    x = F.one_hot(x, module.num_embeddings).to(module.weight.dtype)
    if module.padding_idx is not None:
        x[..., module.padding_idx] = 0
    return x


def _weight(module: nn.Module) -> Tensor:
    """W, (d_out, d_in)."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.T if is_transposed(module) else weight
