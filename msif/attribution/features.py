"""Features of a sequence: linear functions of its gradient, made in the pass that computes it.

φ(z) = (φ_1 ‖ … ‖ φ_K), each a sum over modules of a map of ∇L_module. Two kinds of map: a projection of both sides, for
which no gradient is formed, and one of whole gradients, whose entries may be scaled one by one.

Letters: B sequences of T positions, d = d_in + bias, p_out × p_in the sizes of a projected gradient, D features of a
sequence, C cotangents.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from msif.attribution.gradients import Side, query_rows
from msif.curvature.factors import ModuleFactors
from msif.curvature.inputs import device_and_dtype
from msif.models.blocks import TrackedModule
from msif.models.capture import Consumer, Cotangent, FiniteGuard
from msif.models.check import CheckedCapture
from msif.models.objectives import Measurement, Objective
from msif.models.outer import CHUNK_ELEMENTS, Outer, portions, sequence_gradients


class FeatureMap(ABC):
    """A linear map from one module's gradient (d_out, d) to k features."""

    def right(self, right: Tensor) -> Tensor:
        """What is kept of a use's right side, (B, T, …)."""
        return right

    @abstractmethod
    def of_uses(self, uses: Sequence[Outer], weights: Tensor | None) -> Tensor:
        """(B, k) of the gradients Σ left ⊗ right, whose right sides ``right`` made; weights: (B, T), or ones."""

    @abstractmethod
    def of_matrices(self, V: Tensor) -> Tensor:
        """(n, k) of (n, d_out, d)."""

    @abstractmethod
    def transposed(self, v: Tensor) -> Tensor:
        """The map's transpose, (n, d_out, d) from (n, k): ⟨v, map(∇)⟩ = ⟨transposed(v), ∇⟩."""


class TwoSidedMap(FeatureMap):
    """P_out ∇ P_inᵀ, row by row, from the sides alone.

    Args:
        P_out, P_in: (p_out, d_out) and (p_in, d); None is the identity.
        P_bias: (p_out, d_out), the left matrix of the bias column where it is another than that of the weight.
    """

    def __init__(
        self, module: TrackedModule, P_out: Tensor | None, P_in: Tensor | None, P_bias: Tensor | None = None
    ) -> None:
        self.module, self.P_out, self.P_in, self.P_bias = module, P_out, P_in, P_bias

    def right(self, right: Tensor) -> Tensor:
        module, P_in = self.module, self.P_in
        if P_in is None:
            return torch.cat([right, right.new_ones(*right.shape[:2], 1)], dim=2) if module.bias else right
        mapped = right.to(P_in.dtype) @ P_in[:, : module.d_in].T
        return mapped + P_in[:, module.d_in] if module.bias and self.P_bias is None else mapped

    def of_uses(self, uses: Sequence[Outer], weights: Tensor | None) -> Tensor:
        return torch.stack([self._of_use(use, weights) for use in uses]).sum(0)

    def _of_use(self, use: Outer, weights: Tensor | None) -> Tensor:
        if self.P_out is not None:
            mapped = use.mapped(self.P_out.T)
        else:
            mapped = F.one_hot(use.left, self.module.d_out).to(use.right.dtype) if use.lookup else use.left
        if weights is not None:
            mapped = mapped * weights.to(mapped.dtype).unsqueeze(2)
        phi = mapped.transpose(1, 2) @ use.right
        if self.P_bias is not None and self.P_in is not None:
            left = use.left if weights is None else use.left * weights.to(use.left.dtype).unsqueeze(2)
            phi = phi + (left.sum(1) @ self.P_bias.T).unsqueeze(2) * self.P_in[:, self.module.d_in]
        return phi.flatten(1)

    def of_matrices(self, V: Tensor) -> Tensor:
        d = self.module.d_in
        if self.P_bias is not None and self.P_in is not None:
            weight = _two_sided(V[..., :d], self.P_out, self.P_in[:, :d])
            return (weight + (V[..., d] @ self.P_bias.T).unsqueeze(2) * self.P_in[:, d]).flatten(1)
        return _two_sided(V, self.P_out, self.P_in).flatten(1)

    def transposed(self, v: Tensor) -> Tensor:
        d_out, d = self.module.shape
        p_out = d_out if self.P_out is None else len(self.P_out)
        v = v.unflatten(1, (p_out, -1))
        back = _two_sided(v, _T(self.P_out), _T(self.P_in))
        if self.P_bias is not None and self.P_in is not None:
            back[..., d - 1] = (v @ self.P_in[:, d - 1]) @ self.P_bias
        return back


def _T(P: Tensor | None) -> Tensor | None:
    return None if P is None else P.T


def _two_sided(V: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """left V rightᵀ; None is the identity."""
    V = V if left is None else left @ V
    return V if right is None else V @ right.T


class GradientMap(FeatureMap):
    """P_out (S ⊙ Q_Gᵀ ∇ Q_A) P_inᵀ of whole gradients, or some entries of S ⊙ Q_Gᵀ ∇ Q_A.

    Args:
        scale: S, (d_out, d).
        factors: Q_G and Q_A; None takes gradients as they are.
        P_out, P_in: (p_out, d_out) and (p_in, d).
        entries: int64, (k,), of the matrix row by row, instead of a projection.
    """

    def __init__(
        self,
        module: TrackedModule,
        scale: Tensor,
        factors: ModuleFactors | None = None,
        P_out: Tensor | None = None,
        P_in: Tensor | None = None,
        entries: Tensor | None = None,
    ) -> None:
        self.module, self.scale, self.factors = module, scale, factors
        self.P_out, self.P_in, self.entries = P_out, P_in, entries

    def of_uses(self, uses: Sequence[Outer], weights: Tensor | None) -> Tensor:
        if weights is not None:
            uses = [Outer(use.left, use.right * weights.unsqueeze(2), use.bias) for use in uses]
        uses = [Outer(use.left, use.right, self.module.bias).to(self.scale.dtype) for use in uses]
        some = portions(len(uses[0].right), self.scale.numel(), self.scale.device, CHUNK_ELEMENTS)
        chunks = ([use.of(sequences) for use in uses] for sequences in some)
        return torch.cat([self.of_matrices(sequence_gradients(chunk, self.module.d_out)) for chunk in chunks])

    def of_matrices(self, V: Tensor) -> Tensor:
        if self.factors is not None:
            V = self.factors.rotate(V).flatten(1, 2)
        V = V * self.scale
        return V.flatten(1)[:, self.entries] if self.entries is not None else self._projected(V)

    def _projected(self, V: Tensor) -> Tensor:
        return _two_sided(V, self.P_out, self.P_in).flatten(1)

    def transposed(self, v: Tensor) -> Tensor:
        d_out, d = self.module.shape
        if self.entries is not None:
            V = v.new_zeros(len(v), d_out * d)
            V[:, self.entries] = v
            V = V.unflatten(1, (d_out, d))
        else:
            p_out = d_out if self.P_out is None else len(self.P_out)
            V = _two_sided(v.unflatten(1, (p_out, -1)), _T(self.P_out), _T(self.P_in))
        V = V * self.scale
        if self.factors is None:
            return V
        return self.factors.rotate_back(V.unflatten(1, (self.factors.blocks, -1)))


class Features(Protocol):
    """What maps there are, and where their features go among the D of a sequence."""

    def maps(
        self, tracked: Sequence[TrackedModule], device: torch.device, dtype: torch.dtype
    ) -> Mapping[str, FeatureMap]: ...

    def places(
        self, tracked: Sequence[TrackedModule], device: torch.device, dtype: torch.dtype
    ) -> Mapping[str, slice | tuple[Tensor, Tensor]]:
        """Each module's columns, to which its features are added; or for each of its features a column and a sign."""
        ...

    def width(self, tracked: Iterable[TrackedModule]) -> int:
        """D."""
        ...


class FeaturePass(Consumer):
    """A consumer that makes features; after a run, ``features`` is (C, B, D), one matrix for each cotangent.

    Attributes:
        current: the cotangent whose backward pass is under way.
        weights: (B, T), multiplies what each position adds; None for ones. At hidden layers g_t also carries the
            losses of later tokens: to weight the tokens' losses, weight them in the cotangent.
    """

    def __init__(self, side: Side, features: Features, cotangents: int = 1) -> None:
        self.device, self.dtype = device_and_dtype(side.model)
        self.size = cotangents, features.width(side.tracked)
        self.features = torch.empty(0)
        self.weights: Tensor | None = None
        self.current = 0
        self.maps = features.maps(side.tracked, self.device, self.dtype)
        self._places = features.places(side.tracked, self.device, self.dtype)
        self._guard = FiniteGuard("the projected gradient")

    def begin(self, batch: Any, objective: Objective) -> None:
        cotangents, width = self.size
        self.features = torch.zeros(cotangents, len(batch), width, device=self.device, dtype=self.dtype)

    def right(self, module: TrackedModule, right: Tensor) -> Tensor:
        """Of a map of both sides P_in x̄, (B, T, p_in): the input itself need not be kept."""
        return self.maps[module.name].right(right.to(self.dtype))

    def backward(self, module: TrackedModule, uses: Sequence[Outer]) -> None:
        weights = None if self.weights is None else self.weights.to(self.dtype)
        phi = self.maps[module.name].of_uses([use.to(self.dtype) for use in uses], weights)
        add_features(self.features[self.current], phi, self._places[module.name])
        self._guard.watch(module.name, phi.sum())

    def end(self, batch: Any) -> None:
        self._guard.check(batch)


def add_features(features: Tensor, phi: Tensor, place: slice | tuple[Tensor, Tensor]) -> None:
    """features (B, D) += a module's φ (B, k), where they belong."""
    if isinstance(place, slice):
        features[:, place] += phi
    else:
        index, signs = place
        features.index_add_(1, index, phi * signs)


class GradientProjector:
    """A context in which a call takes a batch to the features of its sequences' gradients, (C, B, D).

    A batch costs one forward pass, and a backward pass for each cotangent; ``outputs`` holds the model's last ones.

    Raises:
        MsifError: NaN or infinity in a gradient, and what ``Capture`` refuses.
    """

    def __init__(self, side: Side, features: Features, cotangents: Sequence[Cotangent]) -> None:
        self.side = side
        self.consumer = FeaturePass(side, features, len(cotangents))
        self.outputs = torch.empty(0)
        self._cotangents = [self._numbered(number, cotangent) for number, cotangent in enumerate(cotangents)]
        self._capture = CheckedCapture(side.model, side.tracked, self.consumer)

    def __enter__(self) -> GradientProjector:
        self._capture.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._capture.__exit__(*exception)

    def __call__(self, batch: Any, weights: Tensor | None = None) -> Tensor:
        """``weights``: see ``FeaturePass``."""
        self.consumer.weights = None if weights is None else weights.to(self.consumer.device)
        batch = batch.to(self.consumer.device)
        self.outputs = self._capture.run(self.side.objective, batch, self._cotangents)
        return self.consumer.features

    def _numbered(self, number: int, cotangent: Cotangent) -> Cotangent:
        def numbered(outputs: Tensor, batch: Any) -> Tensor:
            self.consumer.current = number
            return cotangent(outputs, batch)

        return numbered


def measurement_cotangent(objective: Objective, measurement: str | Measurement) -> Cotangent:
    """The gradient of a measurement, by name or as a callable, with respect to the outputs.

    Raises:
        MsifError: a name that the objective does not know.
    """
    measure: Callable[[Tensor, Any], Tensor]
    measure = objective.measurement(measurement) if isinstance(measurement, str) else measurement
    return lambda outputs, batch: objective.measurement_gradient(outputs, batch, measure)


def query_features(side: Side, queries: Iterable[Any], features: Features, measurement: str | Measurement) -> Tensor:
    """Features of ∇m of each query, (Q, D), rows ordered by the queries' ``indices``.

    Raises:
        MsifError: an unknown measurement, no query, or indices that are not 0 … Q − 1.
    """
    return features_of(side, queries, features, measurement_cotangent(side.objective, measurement))


def features_of(side: Side, batches: Iterable[Any], features: Features, cotangent: Cotangent) -> Tensor:
    """Features of the gradient that starts from a cotangent, (n, D), rows ordered by the ``indices``.

    Raises:
        MsifError: no sequence, or indices that are not 0 … n − 1.
    """
    parts, numbers = [], []
    with GradientProjector(side, features, [cotangent]) as project:
        for batch in batches:
            parts.append(project(batch)[0])
            numbers.append(batch.indices)
    rows = query_rows(numbers)
    return torch.cat(parts)[rows.to(parts[0].device)]
