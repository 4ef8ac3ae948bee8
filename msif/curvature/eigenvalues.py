"""The Λ pass: second moments of per-sequence gradients in the eigenbasis (George et al. 2018; docs/method.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from msif.curvature.factors import Factors
from msif.curvature.inputs import SharedInputs
from msif.curvature.sums import RunningSums
from msif.models.blocks import TrackedModule
from msif.models.objectives import Objective

# per-sequence gradients are formed for as many sequences at a time as fit in this many elements
CHUNK_ELEMENTS = 2**22


class LambdaPass(RunningSums):
    """Accumulates Λ_ij = (1/N) Σ_z [(Q_Gᵀ ∇L(z, ŷ) Q_A)_ij]², one square a sequence, N supervised tokens.

    Each side is rotated before the positions are contracted or after, whichever is cheaper for the batch:
    rotating x costs T·d² a sequence (once for all modules that share it), rotating the gradient d_out·d²; likewise g
    costs T·d_out·r before and d_out·r·d after.
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

    def forward(self, module: TrackedModule, x: Tensor) -> Tensor:
        factors = self.factors[module.name]
        if not self._rotates_input_first(module, x.shape[1]):
            return x
        return self._shared.get(module, x, lambda x: _rotate_input(x, factors.Q_A, module.bias))

    def _rotates_input_first(self, module: TrackedModule, positions: int) -> bool:
        return positions <= self._rows_reading[module.name]

    def backward(self, module: TrackedModule, saved: Tensor, g: Tensor) -> None:
        factors, total = self.factors[module.name], self._sums[f"Lambda.{module.name}"]
        blocks, rows, columns = total.shape
        g = g.to(total.dtype)
        rotated_input = self._rotates_input_first(module, g.shape[1])
        rotate_g_first = g.shape[1] <= columns
        if rotate_g_first:
            g = (g.unflatten(2, (blocks, rows)).transpose(1, 2) @ factors.Q_G).transpose(1, 2).flatten(2)
        step = max(1, CHUNK_ELEMENTS // total.numel())
        for start in range(0, len(g), step):
            gradient = _sequence_gradients(
                g[start : start + step], saved[start : start + step].to(total.dtype), module, rotated_input
            )
            if not rotated_input:
                gradient = gradient @ factors.Q_A
            gradient = gradient.unflatten(1, (blocks, rows))
            if not rotate_g_first:
                gradient = factors.Q_G.transpose(1, 2) @ gradient
            for one in gradient:
                total.addcmul_(one, one)
        self._guard.watch(module.name, total.sum())

    def Lambda(self, name: str) -> Tensor:
        """(nb, r, d) of one module."""
        return self._sums[f"Lambda.{name}"] / max(self.counts["supervised"] * self._label_samples, 1)

    def estimates(self) -> Iterator[tuple[str, Tensor]]:
        """Every Λ as it stands, one after the other."""
        for name in self.modules:
            yield f"{name}:Lambda", self.Lambda(name)


def _rotate_input(x: Tensor, Q_A: Tensor, bias: bool) -> Tensor:
    """x̄ Q_A, (B, T, d), without forming x̄ = [x; 1]."""
    x = x.to(Q_A.dtype)
    if not bias:
        return x @ Q_A
    flat = torch.addmm(Q_A[-1], x.reshape(-1, x.shape[-1]), Q_A[:-1])
    return flat.view(*x.shape[:-1], -1)


def _sequence_gradients(g: Tensor, x: Tensor, module: TrackedModule, augmented: bool) -> Tensor:
    """Σ_t g_t x̄_tᵀ of each sequence, (B, d_out, d); ``augmented`` says that x has its bias column already."""
    weight = g.transpose(1, 2) @ x
    if augmented or not module.bias:
        return weight
    return torch.cat([weight, g.sum(1).unsqueeze(2)], dim=2)
