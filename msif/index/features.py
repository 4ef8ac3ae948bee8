"""What an index keeps of a gradient: its blocks' projections, scaled as the settings say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from msif.attribution.features import FeatureMap, GradientMap, TwoSidedMap, add_features
from msif.attribution.random_matrices import normal_matrix
from msif.curvature.factors import Factors, ModuleFactors
from msif.curvature.filters import Filter
from msif.curvature.vectors import Vectors
from msif.errors import MsifError
from msif.index.pools import Pools
from msif.index.scaling import mean_square, scale_of
from msif.models.blocks import TrackedModule
from msif.models.training.moments import SecondMoments


@dataclass(frozen=True)
class IndexFeatures:
    """p × p features of each block: Σ_modules P_out (∇ ⊘ √V) P_inᵀ, with normal entries of variance 1/p.

    The projection of a concatenation is the sum of its parts' projections, so that none is ever formed, and scores of
    projected gradients are unbiased estimates of those of whole ones. Where V is a matrix of its own, or EK-FAC's
    H^(−1/2) takes its place, whole gradients are formed, one module and sequence at a time; a factored V is part of the
    random matrices.

    Attributes:
        size: p.
        moments: V by module, or nothing.
        factors, filter: of H^(−1/2) = Q f(Λ)^(1/2) Qᵀ, instead of moments.
        leading: only so many entries in the eigenbasis, instead of projections.
    """

    pools: Pools
    size: int = 64
    seed: int = 0
    moments: Mapping[str, SecondMoments] | None = None
    factors: Factors | None = None
    filter: Filter | None = None
    leading: int | None = None

    def matrices(
        self, module: TrackedModule, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64
    ) -> tuple[Tensor, Tensor]:
        """P_out (p, d_out) and P_in (p, d)."""
        pair = [
            torch.from_numpy(normal_matrix(self.size, d, self.seed, f"{side}|{module.name}")).to(device, dtype)
            / self.size**0.5
            for side, d in zip(("out", "in"), module.shape, strict=True)
        ]
        return pair[0], pair[1]

    def maps(self, tracked: Sequence[TrackedModule], device: torch.device, dtype: torch.dtype) -> dict[str, FeatureMap]:
        return {module.name: self._map(module, tracked, device, dtype) for module in tracked}

    @cached_property
    def _kept(self) -> dict[tuple[str, torch.device, torch.dtype], FeatureMap]:
        return {}

    def _map(
        self, module: TrackedModule, tracked: Sequence[TrackedModule], device: torch.device, dtype: torch.dtype
    ) -> FeatureMap:
        if self.factors is not None:  # too large to be kept
            return self._in_eigenbasis(module, tracked, device, dtype)
        key = module.name, device, dtype
        if key not in self._kept:
            self._kept[key] = self._scaled(module, device, dtype)
        return self._kept[key]

    def _scaled(self, module: TrackedModule, device: torch.device, dtype: torch.dtype) -> FeatureMap:
        """A projection of gradients over the roots of their second moments."""
        P_out, P_in = self.matrices(module, device, dtype)
        if self.moments is None:
            return TwoSidedMap(module, P_out, P_in)
        scale = scale_of(self.moments[module.name], self._mean_square, device, dtype)
        if scale.matrix is not None:
            return GradientMap(module, scale.matrix, None, P_out, P_in)
        assert scale.rows is not None and scale.columns is not None
        columns = torch.cat([scale.columns, P_in.new_ones(1)]) if module.bias else scale.columns
        return TwoSidedMap(
            module, P_out * scale.rows, P_in * columns, None if scale.bias is None else P_out * scale.bias
        )

    @cached_property
    def _mean_square(self) -> float:
        assert self.moments is not None
        return mean_square(self.moments)

    def _in_eigenbasis(
        self, module: TrackedModule, tracked: Sequence[TrackedModule], device: torch.device, dtype: torch.dtype
    ) -> FeatureMap:
        factors = self._factors_of(module)
        scale = self._root(module, factors).to(device, dtype)
        factors = factors.to(device, dtype)
        if self.leading is not None:
            return GradientMap(module, scale, factors, entries=self._entries(tracked)[module.name].to(device))
        return GradientMap(module, scale, factors, *self.matrices(module, device, dtype))

    def _factors_of(self, module: TrackedModule) -> ModuleFactors:
        """From disk, as a rule."""
        assert self.factors is not None
        if module.name not in self.factors:
            raise MsifError(f"there are no factors for module '{module.name}': fit them with the same --modules.")
        return self.factors[module.name]

    def _root(self, module: TrackedModule, factors: ModuleFactors) -> Tensor:
        """f(Λ)^(1/2), (d_out, d)."""
        assert self.filter is not None and factors.Lambda is not None
        self.scales[module.name] = self.filter.scales(factors.Lambda, module.name)
        return self.filter(factors.Lambda, module.name).sqrt().flatten(0, 1)

    @cached_property
    def scales(self) -> dict[str, dict[str, Tensor]]:
        """As a preconditioner's: module -> what its eigenvalues were damped by."""
        return {}

    @cached_property
    def _held(self) -> dict[tuple[str, ...], dict[str, Tensor]]:
        return {}

    def _entries(self, tracked: Sequence[TrackedModule]) -> dict[str, Tensor]:
        """Of every module the entries that are among the first of all by (Λ f(Λ))².

        The variance of an entry's part in a score, where queries' gradients are like documents'.
        """
        key = tuple(module.name for module in tracked)
        if key not in self._held:
            assert self.leading is not None
            worth = []
            for module in tracked:
                factors = self._factors_of(module)
                assert factors.Lambda is not None
                worth.append((factors.Lambda.flatten() * self._root(module, factors).flatten().square()).cpu())
            sizes = [len(one) for one in worth]
            best = torch.cat(worth).topk(min(self.leading, sum(sizes))).indices.sort().values
            found, start = {}, 0
            for module, size in zip(tracked, sizes, strict=True):
                found[module.name] = best[(best >= start) & (best < start + size)] - start
                start += size
            self._held[key] = found
        return self._held[key]

    def places(
        self, tracked: Sequence[TrackedModule], device: torch.device, dtype: torch.dtype
    ) -> dict[str, slice | tuple[Tensor, Tensor]]:
        if self.leading is None:
            square = self.size**2
            numbers = {module.name: self.pools.of[module.name] for module in tracked}
            return {name: slice(number * square, (number + 1) * square) for name, number in numbers.items()}
        found: dict[str, slice | tuple[Tensor, Tensor]] = {}
        start = 0
        for name, entries in self._entries(tracked).items():
            found[name] = slice(start, start + len(entries))
            start += len(entries)
        return found

    def width(self, tracked: Iterable[TrackedModule]) -> int:
        if self.leading is None:
            return len(self.pools.names) * self.size**2
        return sum(map(len, self._entries(list(tracked)).values()))

    def columns(self, tracked: Sequence[TrackedModule]) -> list[slice]:
        """The features of each block, side by side; one block of all where only leading entries are kept."""
        if self.leading is not None:
            return [slice(0, self.width(tracked))]
        square = self.size**2
        return [slice(number * square, (number + 1) * square) for number in range(len(self.pools.names))]

    def of_vectors(self, tracked: Sequence[TrackedModule], vectors: Vectors) -> Tensor:
        """(Q, D) of vectors (Q, d_out, d) by module, taken out of the mapping as they are used."""
        first = next(iter(vectors.values()))
        device, dtype = first.device, first.dtype
        total = torch.zeros(len(first), self.width(tracked), device=device, dtype=dtype)
        places = self.places(tracked, device, dtype)
        for module in tracked:
            V = vectors.pop(module.name)
            add_features(total, self._map(module, tracked, device, dtype).of_matrices(V), places[module.name])
        return total

    def transposed(self, tracked: Sequence[TrackedModule], v: Tensor) -> Vectors:
        """Module name -> (Q, d_out, d), whose dot product with a gradient is that of v with its features."""
        places, result = self.places(tracked, v.device, v.dtype), {}
        for module in tracked:
            place = places[module.name]
            assert isinstance(place, slice)
            result[module.name] = self._map(module, tracked, v.device, v.dtype).transposed(v[:, place])
        return result
