"""The covariance pass: A of inputs and G of pseudo-gradients (Grosse et al. 2023, arXiv 2308.03296; docs/method.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from msif.curvature.factors import ModuleFactors, eigendecompose
from msif.curvature.gram import accumulate_block_grams, accumulate_gram
from msif.curvature.inputs import SharedInputs
from msif.curvature.sums import RunningSums
from msif.models.blocks import TrackedModule
from msif.models.objectives import Objective


class CovariancePass(RunningSums):
    """Accumulates A = (1/T) Σ x̄ x̄ᵀ and, for each block, G = (1/T) Σ g gᵀ over the T live positions.

    A is summed in the forward pass, once for all modules that read the same input, so no input is kept; g is zero at
    positions that are not live. With several label samples a sequence, G is their mean.
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
            if groups[module.name] == module.name:
                self._sums[f"A.{module.name}"] = torch.zeros(module.d_in, module.d_in, device=device, dtype=dtype)
                self._sums[f"a.{module.name}"] = torch.zeros(module.d_in, device=device, dtype=dtype)
            blocks, rows = len(module.blocks), module.block_rows
            self._sums[f"G.{module.name}"] = torch.zeros(blocks, rows, rows, device=device, dtype=dtype)

    def begin(self, batch: Any, objective: Objective) -> None:
        super().begin(batch, objective)
        live = objective.live(batch)
        self._live = live.flatten().nonzero().squeeze(1)
        self._all_live = len(self._live) == live.numel()
        self._shared.clear()

    def forward(self, module: TrackedModule, x: Tensor) -> None:
        self._shared.get(module, x, lambda x: self._add_inputs(self.groups[module.name], x))

    def _add_inputs(self, leader: str, x: Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1])
        if not self._all_live:
            rows = rows.index_select(0, self._live)
        total = self._sums[f"A.{leader}"]
        accumulate_gram(total, rows)
        if self.modules[leader].bias:
            self._sums[f"a.{leader}"] += rows.sum(0, dtype=total.dtype)
        self._guard.watch(leader, total.diagonal().sum())

    def backward(self, module: TrackedModule, saved: Any, g: Tensor) -> None:
        total = self._sums[f"G.{module.name}"]
        accumulate_block_grams(total, g.reshape(-1, g.shape[-1]))
        self._guard.watch(module.name, total.diagonal(dim1=1, dim2=2).sum())

    def A(self, leader: str) -> Tensor:
        """(d, d) with the bias column last; d = d_in + bias."""
        weight = self._sums[f"A.{leader}"]
        count = max(self.counts["positions"], 1)
        if not self.modules[leader].bias:
            return weight / count
        ones = self._sums[f"a.{leader}"][:, None]
        corner = ones.new_full((1, 1), float(count))
        return torch.cat([torch.cat([weight, ones], 1), torch.cat([ones.T, corner], 1)], 0) / count

    def G(self, name: str) -> Tensor:
        """(nb, r, r)."""
        return self._sums[f"G.{name}"] / max(self.counts["positions"] * self._label_samples, 1)

    def estimates(self) -> Iterator[tuple[str, Tensor]]:
        """Every A and G as it stands, one after the other."""
        for name in dict.fromkeys(self.groups.values()):
            yield f"{name}:A", self.A(name)
        for name in self.modules:
            yield f"{name}:G", self.G(name)

    def decompose(self, names: Sequence[str]) -> dict[str, ModuleFactors]:
        """Eigenvectors of the named modules, each A once for the modules that share it; Λ is not there yet."""
        inputs: dict[str, tuple[Tensor, Tensor]] = {}
        factors = {}
        for name in names:
            leader = self.groups[name]
            if leader not in inputs:
                inputs[leader] = eigendecompose(self.A(leader), leader)
            S_A, Q_A = inputs[leader]
            S_G, Q_G = eigendecompose(self.G(name), name)
            factors[name] = ModuleFactors(Q_A=Q_A, Q_G=Q_G, S_A=S_A, S_G=S_G)
        return factors
