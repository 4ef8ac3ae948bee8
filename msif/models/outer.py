"""Gradients as sums of outer products, Σ_t left_t ⊗ right_t: the one place where they are formed and contracted.

Letters: B sequences, T positions, W̄ (d_out, d) with d = d_in + bias, C columns of a right side, Q queries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# per-sequence gradients are formed for as many sequences at a time as fit in this many elements
CHUNK_ELEMENTS = 2**24
# the same of a GPU, which waits for small products to be launched, where a CPU waits for what its caches do not hold
GPU_ELEMENTS = 2**26


def at_once(device: torch.device, elements: int) -> int:
    """How many elements of temporaries are held at a time where a CPU holds so many."""
    return elements if device.type == "cpu" else max(elements, GPU_ELEMENTS)


def portions(count: int, each: int, device: torch.device, elements: int) -> Iterator[slice]:
    """Of so many items of ``each`` elements, as many at a time as are held ``at_once``."""
    step = max(1, at_once(device, elements) // max(each, 1))
    return (slice(start, start + step) for start in range(0, count, step))


@dataclass
class Outer:
    """What one use adds to the gradients of a batch's sequences.

    Attributes:
        left: (B, T, d_out), or int64 (B, T): the rows that are one.
        right: (B, T, C), whatever the consumer made of the use's right side.
        bias: whether a column of ones follows, which ``right`` leaves out.
    """

    left: Tensor
    right: Tensor
    bias: bool = False

    @property
    def lookup(self) -> bool:
        return self.left.dtype == torch.int64

    def of(self, sequences: slice | Tensor) -> Outer:
        return Outer(self.left[sequences], self.right[sequences], self.bias)

    def to(self, dtype: torch.dtype) -> Outer:
        return Outer(self.left if self.lookup else self.left.to(dtype), self.right.to(dtype), self.bias)

    def bias_gradient(self) -> Tensor:
        """Σ_t left_t, (B, d_out)."""
        return self.left.sum(1)

    def mapped(self, V: Tensor) -> Tensor:
        """left_tᵀ V at every position, (B, T, C), for V (d_out, C)."""
        return V[self.left] if self.lookup else self.left @ V

    def contracted(self, V: Tensor) -> Tensor:
        """Σ_t left_tᵀ V right_t, (B,), for V (d_out, C); the wider side is contracted first."""
        if self.lookup or V.shape[0] >= V.shape[1]:
            return torch.linalg.vecdot(self.mapped(V).flatten(1), self.right.flatten(1))
        return torch.linalg.vecdot((self.right @ V.T).flatten(1), self.left.flatten(1))

    def parts(self, V: Tensor, blocks: int) -> Tensor:
        """left_tᵀ V [right_t; 1] of each block's rows, float64, (B, T, blocks), for V (d_out, d)."""
        B, T, _ = self.right.shape
        some = portions(B, T * len(V), V.device, CHUNK_ELEMENTS)
        return torch.cat([self.of(sequences)._parts(V, blocks) for sequences in some])

    def _parts(self, V: Tensor, blocks: int) -> Tensor:
        C = self.right.shape[2]
        if self.lookup:
            part = (self.mapped(V) * self.right).sum(2, dtype=torch.float64)[..., None]
            places = (self.left // (len(V) // blocks))[..., None]
            return part.new_zeros(*part.shape[:2], blocks).scatter_(2, places, part)
        moved = self.right @ V[:, :C].T
        if self.bias:
            moved = moved + V[:, C]
        return (moved * self.left).unflatten(2, (blocks, -1)).sum(3, dtype=torch.float64)


def weight_gradients(uses: Sequence[Outer], rows: int) -> Iterator[tuple[slice, Tensor]]:
    """Σ over uses and positions without bias columns, (b, rows, C), of b sequences at a time, and which they are."""
    B, C = len(uses[0].right), uses[0].right.shape[2]
    for part in portions(B, rows * C, uses[0].right.device, CHUNK_ELEMENTS):
        total: Tensor | None = None
        for use in sorted(uses, key=lambda use: use.lookup):  # products first: they make the matrix
            total = _added(use, part, rows, total)
        assert total is not None
        yield part, total


def _added(use: Outer, part: slice, rows: int, total: Tensor | None) -> Tensor:
    left, right = use.left[part], use.right[part]
    if not use.lookup:
        product = left.transpose(1, 2) @ right
        return product if total is None else total.add_(product)
    if total is None:
        total = right.new_zeros(len(right), rows, right.shape[2])
    total.view(-1, right.shape[2]).index_add_(0, _places(left, rows), right.flatten(0, 1))
    return total


def _places(ids: Tensor, rows: int) -> Tensor:
    """Of each (sequence, position) its row in the tables of all sequences, one after the other, (B·T,)."""
    return (ids + rows * torch.arange(len(ids), device=ids.device)[:, None]).flatten()


def sequence_gradients(uses: Sequence[Outer], rows: int) -> Tensor:
    """∇L of each sequence, (B, rows, d)."""
    parts = [gradient for _, gradient in weight_gradients(uses, rows)]
    weight = parts[0] if len(parts) == 1 else torch.cat(parts)
    if not uses[0].bias:
        return weight
    column = torch.stack([use.bias_gradient() for use in uses]).sum(0)
    return torch.cat([weight, column[..., None]], dim=2)


def add_total(total: Tensor, uses: Sequence[Outer]) -> None:
    """total += Σ_z ∇L(z) of the batch, (d_out, d), in total's dtype."""
    for use in (use.to(total.dtype) for use in uses):
        C = use.right.shape[2]
        right = use.right.flatten(0, 1)
        if use.lookup:
            total.index_add_(0, use.left.flatten(), right)
            continue
        left = use.left.flatten(0, 1)
        total[:, :C] += left.T @ right
        if use.bias:
            total[:, C] += left.sum(0)


def summed_rows(use: Outer, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """A lookup's gradients by the rows that each sequence reads: (which sequence (n,), which row (n,), (n, C))."""
    found, where = _places(use.left, rows).unique(return_inverse=True)
    sums = use.right.new_zeros(len(found), use.right.shape[2]).index_add_(0, where, use.right.flatten(0, 1))
    return found // rows, found % rows, sums


def squares(rows: Tensor) -> Tensor:
    """Σ of the squares of each of n rows, (n,), float64, from (n, …)."""
    rows = rows.flatten(1)
    largest = torch.linalg.vector_norm(rows, math.inf, dim=1, keepdim=True)
    # to largest entry 1 first: in float32 squares vanish below 1e-23 and overflow above 1e19
    scaled = rows / torch.where(largest > 0, largest, 1.0)
    return scaled.square_().sum(1).double() * largest[:, 0].double().square()


def squared_norms(uses: Sequence[Outer], rows: int) -> Tensor:
    """‖∇L(z)‖² without bias columns, (B,), float64."""
    norms = uses[0].right.new_zeros(len(uses[0].right), dtype=torch.float64)
    if len(uses) == 1 and uses[0].lookup:
        sequence, _, sums = summed_rows(uses[0], rows)
        return norms.index_add_(0, sequence, squares(sums))
    for part, gradient in weight_gradients(uses, rows):
        norms[part] = squares(gradient)
    return norms
