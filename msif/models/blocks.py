"""What is tracked: parameters, the blocks that each is made of, and the places where a forward pass uses them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

Basis = Literal["eigenvectors", "identity"]
Kind = Literal["linear", "lookup", "scale", "shift"]


@dataclass(frozen=True)
class Block:
    """Output rows [start, stop) of one parameter, a block of its own.

    ``role`` is "q", "k" or "v" for a head's rows, "rows" for some of a vocabulary's, else "whole"; ``head`` counts from
    0 within its role.
    """

    start: int
    stop: int
    role: str = "whole"
    head: int | None = None

    @property
    def label(self) -> str:
        return self.role if self.head is None else f"{self.role}{self.head}"


@dataclass(frozen=True)
class Use:
    """Where a parameter enters a forward pass.

    Attributes:
        path: full name of the module in the model.
        kind: "linear": y = W x (+ b); "lookup": y = W[id]; "scale": y = γ ⊙ x̂ + …; "shift": y = … + β.
        key: the parameter's name in the module.
    """

    path: str
    kind: Kind = "linear"
    key: str = "weight"


@dataclass(frozen=True)
class TrackedModule:
    """A parameter of a model, seen as a matrix W̄ of shape (d_out, d_in + bias).

    Its gradient is Σ left ⊗ right over positions and uses: (g, [x; 1]) of a linear map with W̄ = [W b], (one-hot id, g)
    of a lookup in a table of d_out rows, (1, g ⊙ x̂) and (1, g) of a norm's scale and shift, which are one row each.

    Attributes:
        name: after the base-model prefix; the key by which two models are matched.
        path: full name of the module that holds it (``model.get_submodule(path)``).
        blocks: ordered, adjacent, of one size, together covering all d_out rows.
        uses: all places of the forward pass; one linear map at ``path`` where nothing is said.
        row_basis, column_basis: what EK-FAC takes for the eigenvectors of either side.
    """

    name: str
    path: str
    d_in: int
    d_out: int
    bias: bool
    blocks: tuple[Block, ...]
    uses: tuple[Use, ...] = ()
    row_basis: Basis = "eigenvectors"
    column_basis: Basis = "eigenvectors"

    def __post_init__(self) -> None:
        if not self.uses:
            object.__setattr__(self, "uses", (Use(self.path),))

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of W̄: (d_out, d_in + bias)."""
        return self.d_out, self.d_in + int(self.bias)

    @property
    def block_rows(self) -> int:
        """Rows of each block: d_out / number of blocks."""
        return self.d_out // len(self.blocks)

    @property
    def mixed(self) -> bool:
        """Whether it is both read by id and multiplied: an embedding tied to the unembedding."""
        return len({use.kind for use in self.uses}) > 1

    @property
    def splits_heads(self) -> bool:
        return any(block.role in ("q", "k", "v") for block in self.blocks)

    @property
    def unembeds(self) -> bool:
        """Whether its rows are a vocabulary that it is multiplied by, whose G is left out as a rule."""
        return self.row_basis == "identity" and any(use.kind == "linear" for use in self.uses)

    @property
    def is_map(self) -> bool:
        """Whether it only multiplies inputs, as a linear map."""
        return all(use.kind == "linear" for use in self.uses)

    @property
    def is_table(self) -> bool:
        """Whether ids are looked up in it."""
        return any(use.kind == "lookup" for use in self.uses)


def is_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D))


def is_transposed(module: nn.Module) -> bool:
    """Whether its weight is stored as (d_in, d_out)."""
    return isinstance(module, Conv1D)


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(d_out, d_in)."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    rows, columns = weight.shape
    return (columns, rows) if is_transposed(module) else (rows, columns)


def stored(model: nn.Module, module: TrackedModule) -> tuple[nn.Parameter, nn.Parameter | None]:
    """The parameters of a model that make up W̄: its weight, and its bias column's."""
    inner: Any = model.get_submodule(module.path)
    return getattr(inner, module.uses[0].key), inner.bias if module.bias else None


def as_matrix(model: nn.Module, module: TrackedModule, weight: Tensor) -> Tensor:
    """A view of its weight, or of a tensor in the weight's shape, as (d_out, d_in)."""
    if is_stored_transposed(model, module):
        return weight.T
    return weight.reshape(module.d_out, module.d_in)


def is_stored_transposed(model: nn.Module, module: TrackedModule) -> bool:
    """Whether its weight is W's transpose."""
    return module.is_map and is_transposed(model.get_submodule(module.path))


def matrix_of(model: nn.Module, module: TrackedModule) -> Tensor:
    """A copy of W̄, shape (d_out, d_in + bias)."""
    weight, bias = stored(model, module)
    W = as_matrix(model, module, weight.detach())
    return W.clone() if bias is None else torch.cat([W, bias.detach()[:, None]], dim=1)


def moved_parameters(
    model: nn.Module, module: TrackedModule, change: Tensor
) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Those of W̄, and such of W̄ + change (d_out, d_in + bias) in their place; sums are taken in float32 at least."""
    weight, bias = stored(model, module)
    change = change.to(weight.device)
    matrix = as_matrix(model, module, weight.detach())
    moved = torch.empty_like(weight)
    as_matrix(model, module, moved).copy_(matrix + change[:, : module.d_in])
    found = [(weight, moved)] if bias is None else [(weight, moved), (bias, (bias + change[:, -1]).to(bias.dtype))]
    return [(own, nn.Parameter(new.detach(), requires_grad=own.requires_grad)) for own, new in found]


@contextmanager
def holding(module: nn.Module, **values: Tensor) -> Iterator[None]:
    """The module with other values for some of its parameters; the very same parameters as before after."""
    kept = {key: module._parameters[key] for key in values}
    try:
        for key, value in values.items():
            module._parameters[key] = nn.Parameter(value, requires_grad=False)
        yield
    finally:
        module._parameters.update(kept)
