"""What one use of a parameter reads in a forward pass, and what it adds to the parameter's gradient and tangent.

Letters: B sequences, T positions; "lead" stands for the leading dimensions of a module's output, which are (B, T),
(B, T, 1), (B, 1, T), (1, B·T), (B·T,), or (1, T) where one row serves all sequences; a norm inside attention has one
of heads as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from msif.errors import MsifError
from msif.models.blocks import TrackedModule, Use, holding


class Reading(Protocol):
    """One run of a module, as one of its parameters sees it.

    Attributes:
        right: (B, T, d_in) where it is known before the gradient is, else None.
    """

    right: Tensor | None

    def left_of(self, g: Tensor) -> Tensor:
        """(B, T, d_out), or ids (B, T) of one-hot rows, from the output's gradient (lead, d)."""

    def right_of(self, g: Tensor) -> Tensor:
        """(B, T, d_in), where ``right`` is None."""

    def along(self, V: Tensor) -> Tensor:
        """The output's derivative along V, (d_out, d); in a shape that adds to the output."""


def read(
    module: TrackedModule,
    use: Use,
    inner: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    output: Tensor,
    size: tuple[int, int],
) -> Reading:
    """What a use has read, from a module's call.

    Args:
        size: (B, T).

    Raises:
        MsifError: rows that are not one a position.
    """
    if use.kind == "lookup":
        return _Lookup(module, *_looked_up(module, inner, args, kwargs, output), size)
    x = args[0] if args else next(iter(kwargs.values()))
    if use.kind == "linear":
        return _Linear(module, x, size)
    shape = getattr(inner, use.key).shape
    # as many positions as heads look alike, but heads are moved before positions by a view of (B, T, heads, d)
    heads_first = x.ndim == 4 and x.stride(1) < x.stride(2)
    if use.kind == "scale":
        return _Scale(module, normalised(inner, use.key, args, kwargs), shape, size, heads_first)
    return _Shift(module, shape, size, heads_first)


class _Linear:
    def __init__(self, module: TrackedModule, x: Tensor, size: tuple[int, int]) -> None:
        self.module, self.x, self.size = module, x.detach(), size
        self.right: Tensor | None = by_position(module, self.x, 1, size)

    def left_of(self, g: Tensor) -> Tensor:
        return by_position(self.module, g, 1, self.size)

    def right_of(self, g: Tensor) -> Tensor:
        raise AssertionError("known in the forward pass")

    def along(self, V: Tensor) -> Tensor:
        moved = self.x @ V[:, : self.module.d_in].T.to(self.x.dtype)
        return moved + V[:, -1].to(moved.dtype) if self.module.bias else moved


class _Lookup:
    right: Tensor | None = None

    def __init__(
        self, module: TrackedModule, ids: Tensor, scale: float, padding: int | None, size: tuple[int, int]
    ) -> None:
        self.module, self.ids, self.scale, self.padding, self.size = module, ids, scale, padding, size

    def left_of(self, g: Tensor) -> Tensor:
        return by_position(self.module, self.ids.expand(g.shape[:-1])[..., None], 1, self.size).squeeze(-1)

    def right_of(self, g: Tensor) -> Tensor:
        right = by_position(self.module, g if self.scale == 1.0 else g * self.scale, 1, self.size)
        if self.padding is None:
            return right
        return right.masked_fill((self.left_of(g) == self.padding)[..., None], 0.0)

    def along(self, V: Tensor) -> Tensor:
        moved = V[self.ids] * self.scale
        return moved if self.padding is None else moved.masked_fill((self.ids == self.padding)[..., None], 0.0)


class _Shift:
    right: Tensor | None = None

    def __init__(self, module: TrackedModule, shape: torch.Size, size: tuple[int, int], heads_first: bool) -> None:
        self.module, self.shape, self.size, self.heads_first = module, shape, size, heads_first

    def left_of(self, g: Tensor) -> Tensor:
        return g.new_ones(()).expand(*self.size, 1)

    def right_of(self, g: Tensor) -> Tensor:
        own = len(self.shape)
        return by_position(self.module, _without_heads(g, own, self.size, self.heads_first), own, self.size)

    def along(self, V: Tensor) -> Tensor:
        return V.view(self.shape)


class _Scale(_Shift):
    def __init__(
        self, module: TrackedModule, x: Tensor, shape: torch.Size, size: tuple[int, int], heads_first: bool
    ) -> None:
        super().__init__(module, shape, size, heads_first)
        self.x = x

    def right_of(self, g: Tensor) -> Tensor:
        return super().right_of(g * self.x)

    def along(self, V: Tensor) -> Tensor:
        return self.x * V.view(self.shape).to(self.x.dtype)


@torch.no_grad()
def normalised(inner: nn.Module, key: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """x̂ of a module y = γ ⊙ x̂ (+ β), or (1 + γ) ⊙ x̂ (+ β): its derivative by γ."""
    args = tuple(one.detach() if isinstance(one, Tensor) else one for one in args)
    kwargs = {name: one.detach() if isinstance(one, Tensor) else one for name, one in kwargs.items()}
    values = {name: torch.zeros_like(p) for name, p in inner._parameters.items() if p is not None}
    with holding(inner, **values):
        without = type(inner).forward(inner, *args, **kwargs)
    with holding(inner, **{**values, key: torch.ones_like(values[key])}):
        return type(inner).forward(inner, *args, **kwargs) - without


class _Tables(TorchFunctionMode):
    """Notes what is looked up in one table."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table, self.calls = table, list[tuple[Tensor, Tensor]]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is F.embedding and args[1] is self.table:
            self.calls.append((args[0], result))
        return result


@torch.no_grad()
def _looked_up(
    module: TrackedModule, inner: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor
) -> tuple[Tensor, float, int | None]:
    """(ids, factor, padding id) of y = factor · W[ids]; a subclass may make its ids itself, and scale what it reads."""
    padding: Any = inner.padding_idx
    if type(inner) is nn.Embedding:
        return (args[0] if args else next(iter(kwargs.values()))), 1.0, padding
    with _Tables(inner.weight) as tables:  # type: ignore[arg-type]
        type(inner).forward(inner, *args, **kwargs)
    shared = tuple(output.shape[1:])  # rows that all sequences share may have become those of each since
    if len(tables.calls) != 1 or tables.calls[0][1].shape not in (output.shape, shared, (1, *shared)):
        raise MsifError(f"module '{module.name}' does more than look up rows: leave it out with --modules.")
    ids, rows = tables.calls[0]
    rows, found = rows.double(), output.detach().double()
    largest = rows.abs().argmax()
    scale = float(found.flatten()[largest] / rows.flatten()[largest]) if bool(rows.any()) else 1.0
    precision = 8 * torch.finfo(output.dtype).eps * found.abs().max()
    if not bool(((found - scale * rows).abs() <= precision).all()):
        raise MsifError(f"module '{module.name}' changes the rows that it looks up: leave it out with --modules.")
    return ids, 1.0 if abs(scale - 1) < 1e-9 else scale, padding


def _without_heads(values: Tensor, own: int, size: tuple[int, int], heads_first: bool) -> Tensor:
    """The sum over heads of what a norm or bias does to each: it is one row whatever the head, as a map's is not.

    ``heads_first`` says which of two equal dimensions heads are.
    """
    (B, T), lead = size, tuple(values.shape[: values.ndim - own])
    if len(lead) == 3 and lead[:2] == (B, T) and not (heads_first and lead[2] == T):
        return values.sum(2)
    if len(lead) == 3 and lead[0] == B and lead[2] == T:
        return values.sum(1)
    return values


def by_position(module: TrackedModule, values: Tensor, own: int, size: tuple[int, int]) -> Tensor:
    """(B, T, n) from (lead, …) with ``own`` last dimensions of n numbers.

    Raises:
        MsifError: leading dimensions that are not one row a position.
    """
    (B, T), lead = size, tuple(values.shape[: values.ndim - own])
    flat = values.flatten(values.ndim - own) if own > 1 else values
    if lead in ((B, T), (1, B * T), (B * T,), (B, 1, T), (B, T, 1)):
        return flat.reshape(B, T, flat.shape[-1])
    raise MsifError(
        f"module '{module.name}' reads {lead} rows where the batch has {B} "
        f"sequences of {T} positions, in this order (a routed expert, or one map for all heads?): "
        "leave it out with --modules."
    )
