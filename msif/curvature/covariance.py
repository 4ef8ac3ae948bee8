"""The covariance pass: A of right sides and G of left ones (Grosse et al. 2023, arXiv 2308.03296; docs/method.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from msif.curvature.factors import ModuleFactors, eigendecompose
from msif.curvature.gram import accumulate_block_grams, accumulate_gram
from msif.curvature.inputs import SharedInputs
from msif.curvature.sums import Estimate, RunningSums, mean
from msif.models.blocks import Basis, TrackedModule
from msif.models.objectives import Objective
from msif.models.outer import Outer, portions

# rows of a vocabulary-sized side are widened and squared so many elements at a time
CHUNK_ELEMENTS = 2**24


class CovariancePass(RunningSums):
    """Accumulates A = (1/T) Σ x̄ x̄ᵀ and, for each block, G = (1/T) Σ g gᵀ over the T live positions.

    A is summed in the forward pass, once for all modules that read the same input, so no input is kept; g is zero at
    positions that are not live. With several label samples a sequence, G is their mean, and with several uses of one
    parameter A is their mean and G their sum. Where a side's basis is the identity, only the diagonal is summed.

    The uses of an embedding that is tied to the unembedding differ by orders of magnitude, and so their sides are
    weighted by each other: A = (1/T) Σ ‖left‖² right rightᵀ, and the same the other way, over the sum of all weights.
    """

    stream = 1

    def __init__(
        self,
        tracked: Sequence[TrackedModule],
        groups: Mapping[str, str],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        label_samples: int = 1,
    ) -> None:
        super().__init__("the input or gradient")
        self.modules = {module.name: module for module in tracked}
        self.groups = groups
        self._label_samples = label_samples
        self._shared = SharedInputs(groups)
        for module in tracked:
            d, blocks, rows = module.d_in, len(module.blocks), module.block_rows
            if groups[module.name] == module.name:
                square = (d, d) if module.column_basis == "eigenvectors" else (d,)
                self._sums[f"A.{module.name}"] = torch.zeros(square, device=device, dtype=dtype)
                self._sums[f"n.{module.name}"] = torch.zeros(1, dtype=torch.float64)  # rows that went in
                if module.bias:
                    self._sums[f"a.{module.name}"] = torch.zeros(d, device=device, dtype=dtype)
            shape = (blocks, rows, rows) if module.row_basis == "eigenvectors" else (blocks, rows)
            self._sums[f"G.{module.name}"] = torch.zeros(shape, device=device, dtype=dtype)

    def begin(self, batch: Any, objective: Objective) -> None:
        super().begin(batch, objective)
        live = objective.live(batch)
        self._live = live.flatten().nonzero().squeeze(1)
        self._all_live = len(self._live) == live.numel()
        self._shared.clear()

    def end(self, batch: Any) -> None:
        self._shared.check()
        super().end(batch)

    def right(self, module: TrackedModule, right: Tensor) -> Tensor | None:
        if module.mixed:
            return right  # its weight is not known yet
        if module.is_map:
            self._shared.get(module, right, lambda x: self._add_right(module, x))
        else:
            self._add_right(module, right)
        return None

    def _add_right(self, module: TrackedModule, right: Tensor, weights: Tensor | None = None) -> None:
        leader = self.groups[module.name]
        total, rows = self._sums[f"A.{leader}"], self._rows(right)
        if weights is not None:
            rows = rows.to(total.dtype) * weights.sqrt()[:, None]
        if total.ndim == 2:
            accumulate_gram(total, rows)
        else:
            total += rows.to(total.dtype).square().sum(0)
        if module.bias:
            self._sums[f"a.{leader}"] += rows.sum(0, dtype=total.dtype)
        self._sums[f"n.{leader}"] += len(rows)
        self._guard.watch(leader, total.diagonal().sum() if total.ndim == 2 else total.sum())

    def backward(self, module: TrackedModule, uses: Sequence[Outer]) -> None:
        total = self._sums[f"G.{module.name}"]
        for use in uses:
            left = self._rows(use.left)
            if not module.mixed:
                _add_left(total, left)
                continue
            weights = self._rows(use.right).to(total.dtype).square().sum(1)
            size = _add_left(total, left, weights)
            self._add_right(module, use.right, size)
        self._guard.watch(module.name, _trace(total))

    def _rows(self, side: Tensor) -> Tensor:
        """Of live positions, (n, …)."""
        rows = side.flatten(0, 1)
        return rows if self._all_live else rows.index_select(0, self._live)

    def A(self, leader: str) -> Tensor:
        """(d, d) with the bias column last, d = d_in + bias; or a diagonal, (d,)."""
        total, count = self._right_sum(leader)
        return mean(total, count)

    def G(self, name: str) -> Tensor:
        """(nb, r, r), or a diagonal, (nb, r)."""
        total, count = self._left_sum(name)
        return mean(total, count)

    def _right_sum(self, leader: str) -> tuple[Tensor, float]:
        """A's sum, with the bias column, and the positions that it is a mean over."""
        module, weight = self.modules[leader], self._sums[f"A.{leader}"]
        count = float(self._positions() if module.mixed else self._sums[f"n.{leader}"])
        if not module.bias:
            return weight, count
        ones = self._sums[f"a.{leader}"]
        if weight.ndim == 1:
            return torch.cat([weight, weight.new_full((1,), count)]), count
        corner = ones.new_full((1, 1), count)
        whole = torch.cat([torch.cat([weight, ones[:, None]], 1), torch.cat([ones[None], corner], 1)], 0)
        return whole, count

    def _left_sum(self, name: str) -> tuple[Tensor, float]:
        total = self._sums[f"G.{name}"]
        if self.modules[name].mixed:
            return total, float(_trace(total))
        return total, float(self._positions())

    def _positions(self) -> int:
        return self.counts["positions"] * self._label_samples

    def estimates(self) -> Iterator[Estimate]:
        """Every A and G as it stands, one after the other."""
        for name in dict.fromkeys(self.groups.values()):
            yield f"{name}:A", *self._right_sum(name)
        for name in self.modules:
            yield f"{name}:G", *self._left_sum(name)

    def decompose(self, names: Sequence[str]) -> dict[str, ModuleFactors]:
        """Eigenvectors of the named modules, each A once for the modules that share it; Λ is not there yet."""
        inputs: dict[str, tuple[Tensor, Tensor | None]] = {}
        factors = {}
        for name in names:
            leader = self.groups[name]
            if leader not in inputs:
                inputs[leader] = _basis(self.A(leader), self.modules[leader].column_basis, leader)
            S_A, Q_A = inputs[leader]
            S_G, Q_G = _basis(self.G(name), self.modules[name].row_basis, name)
            factors[name] = ModuleFactors(Q_A=Q_A, Q_G=Q_G, S_A=S_A, S_G=S_G)
        return factors


def _add_left(total: Tensor, left: Tensor, weights: Tensor | None = None) -> Tensor | None:
    """total += Σ weight left leftᵀ by block, or its diagonal; ‖left‖² (n,) where there are weights."""
    if left.dtype == torch.int64:
        ones = torch.ones(len(left), device=left.device, dtype=total.dtype)
        total.view(-1).index_add_(0, _on_diagonal(total, left), ones if weights is None else weights)
        return ones
    if weights is None and total.ndim == 3:
        accumulate_block_grams(total, left)
        return None
    sizes = []
    for some in portions(len(left), left.shape[1], left.device, CHUNK_ELEMENTS):
        rows = left[some].to(total.dtype)
        squares = rows.square()
        if weights is None:
            total.view(-1).add_(squares.sum(0))
            continue
        weight = weights[some]
        if total.ndim == 3:
            accumulate_block_grams(total, rows * weight.sqrt()[:, None])
        else:
            total.view(-1).add_(weight @ squares)
        sizes.append(squares.sum(1))
    return torch.cat(sizes) if sizes else None


def _on_diagonal(total: Tensor, rows: Tensor) -> Tensor:
    """Where a row's square lies in the flat sums: (nb, r), or (nb, r, r)."""
    if total.ndim == 2:
        return rows
    r = total.shape[1]
    return rows // r * r * r + rows % r * (r + 1)


def _trace(total: Tensor) -> Tensor:
    return total.diagonal(dim1=-2, dim2=-1).sum() if total.ndim == 3 else total.sum()


def _basis(moment: Tensor, basis: Basis, name: str) -> tuple[Tensor, Tensor | None]:
    """(eigenvalues or diagonal, eigenvectors or None)."""
    return (moment, None) if basis == "identity" else eigendecompose(moment, name)
