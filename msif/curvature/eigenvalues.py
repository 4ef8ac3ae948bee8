"""The Λ pass: second moments of per-sequence gradients in the eigenbasis (George et al. 2018; docs/method.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from msif.curvature.factors import Factors
from msif.curvature.inputs import SharedInputs
from msif.curvature.sums import Estimate, RunningSums, mean
from msif.models.blocks import TrackedModule
from msif.models.objectives import Objective
from msif.models.outer import Outer, at_once, portions, sequence_gradients, summed_rows

# per-sequence gradients are formed for as many sequences, and rows of a large one, at a time as fit in this many
# elements
CHUNK_ELEMENTS = 2**22


class LambdaPass(RunningSums):
    """Accumulates Λ_ij = (1/N) Σ_z [(Q_Gᵀ ∇L(z, ŷ) Q_A)_ij]², one square a sequence, N supervised tokens.

    Each side is rotated before the positions are contracted or after, whichever is cheaper for the batch:
    rotating x costs T·d² a sequence (once for all modules that share it), rotating the gradient d_out·d²; likewise g
    costs T·d_out·r before and d_out·r·d after. Of a table only the rows that a sequence reads are touched, and no
    gradient of vocabulary size is held at once.
    """

    stream = 2

    def __init__(
        self,
        tracked: Sequence[TrackedModule],
        groups: Mapping[str, str],
        factors: Factors,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        label_samples: int = 1,
    ) -> None:
        super().__init__("the gradient")
        self.modules = {module.name: module for module in tracked}
        self.factors = factors
        self._label_samples = label_samples
        self._shared = SharedInputs(groups)
        self._rows_reading = {name: self._rows_of_group(groups, name) for name in groups}
        self._sums = {
            f"Lambda.{module.name}": torch.zeros(
                len(module.blocks), module.block_rows, module.shape[1], device=device, dtype=dtype
            )
            for module in tracked
        }

    def _rows_of_group(self, groups: Mapping[str, str], name: str) -> int:
        return sum(self.modules[other].d_out for other, leader in groups.items() if leader == groups[name])

    def begin(self, batch: Any, objective: Objective) -> None:
        super().begin(batch, objective)
        self._shared.clear()

    def end(self, batch: Any) -> None:
        self._shared.check()
        super().end(batch)

    def right(self, module: TrackedModule, right: Tensor) -> Tensor:
        Q_A = self.factors[module.name].Q_A
        if Q_A is None or not self._rotates_right_first(module, right.shape[1]):
            return right
        if not module.is_map:
            return _rotate_right(right, Q_A, module.bias)
        return self._shared.get(module, right, lambda x: _rotate_right(x, Q_A, module.bias))

    def _rotates_right_first(self, module: TrackedModule, positions: int) -> bool:
        return module.is_table or positions <= self._rows_reading[module.name]

    def backward(self, module: TrackedModule, uses: Sequence[Outer]) -> None:
        total = self._sums[f"Lambda.{module.name}"]
        Q_A = self.factors[module.name].Q_A
        rotated = Q_A is not None and self._rotates_right_first(module, uses[0].right.shape[1])
        # a rotated side has its bias column already
        uses = [Outer(use.left, use.right, module.bias and not rotated).to(total.dtype) for use in uses]
        if len(uses) == 1 and uses[0].lookup:
            _, rows, sums = summed_rows(uses[0], module.d_out)
            total[0].index_add_(0, rows, sums.square_())
        elif module.row_basis == "identity" and total.numel() > at_once(total.device, CHUNK_ELEMENTS):
            self._add_by_rows(total[0], uses, None if rotated else Q_A)
        else:
            self._add(module, total, uses, None if rotated else Q_A)
        self._guard.watch(module.name, total.sum())

    def _add(self, module: TrackedModule, total: Tensor, uses: Sequence[Outer], Q_A: Tensor | None) -> None:
        """Whole gradients of a few sequences at a time; Q_A is None where it has been applied, or is the identity."""
        Q_G = self.factors[module.name].Q_G
        blocks, rows, columns = total.shape
        rotate_left_first = uses[0].left.shape[1] <= columns and not module.is_table
        if rotate_left_first and Q_G is not None:
            uses = [Outer(_rotate_left(use.left, Q_G), use.right, use.bias) for use in uses]
        for some in portions(len(uses[0].left), total.numel(), total.device, CHUNK_ELEMENTS):
            gradient = sequence_gradients([use.of(some) for use in uses], module.d_out)
            if Q_A is not None:
                gradient = gradient @ Q_A
            gradient = gradient.unflatten(1, (blocks, rows))
            if not rotate_left_first and Q_G is not None:
                gradient = Q_G.transpose(1, 2) @ gradient
            if len(gradient) == 1:  # in one go over memory
                total.addcmul_(gradient[0], gradient[0])
            else:
                total += gradient.square_().sum(0)

    def _add_by_rows(self, total: Tensor, uses: Sequence[Outer], Q_A: Tensor | None) -> None:
        """Of rows that are not rotated, a chunk of them at a time: (d_out, d)."""
        products = [use for use in uses if not use.lookup]
        chunks = portions(len(total), total.shape[1], total.device, CHUNK_ELEMENTS)
        places = list(product(range(len(uses[0].left)), chunks))
        looked_up = [_divided(use, len(total), places) for use in uses if use.lookup]
        for number, (sequence, rows) in enumerate(places):
            part, one = total[rows], slice(sequence, sequence + 1)
            alone = [Outer(use.left[one, :, rows], use.right[one], use.bias) for use in products]
            gradient = sequence_gradients(alone, len(part))[0] if alone else torch.zeros_like(part)
            for row, sums, bounds in looked_up:
                mine = slice(bounds[number], bounds[number + 1])
                gradient.index_add_(0, row[mine] - rows.start, sums[mine])
            if Q_A is not None:
                gradient = gradient @ Q_A
            part.addcmul_(gradient, gradient)

    def Lambda(self, name: str) -> Tensor:
        """(nb, r, d) of one module."""
        return mean(self._sums[f"Lambda.{name}"], self._tokens())

    def _tokens(self) -> int:
        return self.counts["supervised"] * self._label_samples

    def estimates(self) -> Iterator[Estimate]:
        """Every Λ as it stands, one after the other."""
        for name in self.modules:
            yield f"{name}:Lambda", self._sums[f"Lambda.{name}"], float(self._tokens())


def _divided(use: Outer, rows: int, places: Sequence[tuple[int, slice]]) -> tuple[Tensor, Tensor, list[int]]:
    """A lookup's rows (n,) and their sums (n, C), in order, and where those of each (sequence, chunk of rows) begin."""
    sequence, row, sums = summed_rows(use, rows)
    starts = torch.tensor([which * rows + chunk.start for which, chunk in places], device=row.device)
    return row, sums, [*torch.searchsorted(sequence * rows + row, starts).tolist(), len(row)]


def _rotate_right(x: Tensor, Q_A: Tensor, bias: bool) -> Tensor:
    """x̄ Q_A, (B, T, d), without forming x̄ = [x; 1]."""
    x = x.to(Q_A.dtype)
    if not bias:
        return x @ Q_A
    flat = torch.addmm(Q_A[-1], x.reshape(-1, x.shape[-1]), Q_A[:-1])
    return flat.view(*x.shape[:-1], -1)


def _rotate_left(g: Tensor, Q_G: Tensor) -> Tensor:
    """Q_Gᵀ g by block, (B, T, nb·r)."""
    return (g.unflatten(2, Q_G.shape[:2]).transpose(1, 2) @ Q_G).transpose(1, 2).flatten(2)
