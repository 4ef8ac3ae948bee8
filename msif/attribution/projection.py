"""Random projections of per-sequence gradients, two-sided in each module.

    φ(z) = P_out ∇L(z) P_inᵀ = Σ_t (P_out g_t) (P_in x̄_t)ᵀ

The entries of P_out and P_in are independent signs over √p (Achlioptas 2003), so that E[PᵀP] = I and ⟨φ(a), φ(b)⟩ is an
unbiased estimate of ⟨∇a, ∇b⟩. Two sides instead of one dense matrix over vec ∇L (Choe et al. 2024, arXiv 2405.13954)
make a token cost p_out d_out + p_in d + p_out p_in multiply-adds, without forming the gradient; the price is a
variance that falls like 1/p_out + 1/p_in, not like 1/(p_out p_in).

Letters: B sequences of T positions, d = d_in + bias, p_out and p_in the projected sizes of a module, D the number of
features of a sequence, C cotangents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from msif.attribution.gradients import Side, query_rows
from msif.curvature.inputs import device_and_dtype
from msif.errors import MsifError
from msif.models.blocks import TrackedModule
from msif.models.capture import Capture, Consumer, Cotangent, FiniteGuard
from msif.models.objectives import Measurement, Objective
from msif.models.outer import Outer


def sign_matrix(p: int, d: int, seed: int, label: str) -> np.ndarray:
    """Independent signs, int8, (p, d), from the raw bits of Philox (Salmon et al. 2011) keyed by seed and label.

    They depend on nothing else: not on device, order of modules or numpy's version; fewer rows are the first ones of
    more rows.
    """
    width = -(-d // 64)
    raw = _words(seed, label, p * width).astype("<u8").view(np.uint8)
    bits = np.unpackbits(raw, bitorder="little").reshape(p, width * 64)[:, :d]
    return 1 - 2 * bits.astype(np.int8)


def count_sketch(features: int, dimension: int, seed: int, label: str) -> tuple[np.ndarray, np.ndarray]:
    """For each feature its column in 0 … dimension − 1, int64, and its sign, int8; both (features,)."""
    words = _words(seed, label, features)
    index = (words >> np.uint64(1)) % np.uint64(dimension)
    signs = 1 - 2 * (words & np.uint64(1)).astype(np.int8)
    return index.astype(np.int64), signs


def _words(seed: int, label: str, count: int) -> np.ndarray:
    name = int.from_bytes(hashlib.sha256(label.encode()).digest()[:8], "little")
    return np.random.Philox(key=np.array([seed, name], dtype=np.uint64)).random_raw(count)


@dataclass(frozen=True)
class Projection:
    """Which projection: its sizes and its seed, from which every matrix follows.

    Each module's matrices are keyed by its name, so two models with the same body are projected alike. A side that is
    not larger than its p is kept whole, without noise.

    With a ``dimension``, all modules' p_out·p_in features are added with random signs into that many shared columns
    (count sketch, Charikar et al. 2002). Unbiased too, and a pair's variance is that of a dense sign matrix, (‖a‖²‖b‖²
    + ⟨a, b⟩² − 2 Σ a²b²)/dimension, but it costs one addition a feature and no matrix: 64 × 64 features of 8 modules
    to 4096 columns would take a dense one of 0.5 GB.

    Attributes:
        p_out, p_in: rows of P_out and P_in in each module.
        dimension: features of a sequence; None keeps the modules' features side by side.

    Raises:
        MsifError: a size below 1 or a seed that is not in 0 … 2⁶⁴ − 1.
    """

    p_out: int = 16
    p_in: int = 16
    dimension: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for what, value in (("p_out", self.p_out), ("p_in", self.p_in), ("dimension", self.dimension)):
            if value is not None and value < 1:
                raise MsifError(f"{what} of the projection is {value}: it must be 1 or more.")
        if not 0 <= self.seed < 2**64:
            raise MsifError(f"the projection's seed is {self.seed}: it must be 0 or larger, and below 2**64.")

    def shape(self, module: TrackedModule) -> tuple[int, int]:
        """Shape of a module's φ."""
        d_out, d = module.shape
        return min(self.p_out, d_out), min(self.p_in, d)

    def matrices(
        self, module: TrackedModule, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64
    ) -> tuple[Tensor | None, Tensor | None]:
        """P_out (p_out, d_out) and P_in (p_in, d), each None where its side is kept whole."""
        pair: list[Tensor | None] = []
        for side, p, d in zip(("out", "in"), (self.p_out, self.p_in), module.shape, strict=True):
            if p >= d:
                pair.append(None)
                continue
            signs = torch.from_numpy(sign_matrix(p, d, self.seed, f"{side}|{module.name}"))
            pair.append(signs.to(device, dtype) / p**0.5)
        return pair[0], pair[1]

    def columns(self, tracked: Iterable[TrackedModule]) -> dict[str, slice]:
        """Which features are which module's, where there is no ``dimension``; each is φ row by row."""
        result, start = {}, 0
        for module in tracked:
            rows, columns = self.shape(module)
            result[module.name] = slice(start, start + rows * columns)
            start += rows * columns
        return result

    def width(self, tracked: Iterable[TrackedModule]) -> int:
        """D, the number of features of a sequence."""
        if self.dimension is not None:
            return self.dimension
        return sum(rows * columns for rows, columns in map(self.shape, tracked))


class FeaturePass(Consumer):
    """A consumer that projects gradients; after a run, ``features`` is (C, B, D), one matrix for each cotangent.

    Attributes:
        current: the cotangent whose backward pass is under way.
        weights: (B, T), multiplies what each position adds; None for ones. At hidden layers g_t also carries the
            losses of later tokens: to weight the tokens' losses, weight them in the cotangent.
    """

    def __init__(self, side: Side, projection: Projection, cotangents: int = 1) -> None:
        self.device, self.dtype = device_and_dtype(side.model)
        self.size = cotangents, projection.width(side.tracked)
        self.features = torch.empty(0)
        self.weights: Tensor | None = None
        self.current = 0
        self._maps = {module.name: projection.matrices(module, self.device, self.dtype) for module in side.tracked}
        self._columns = {} if projection.dimension else projection.columns(side.tracked)
        self._sketches = {}
        for module in side.tracked if projection.dimension else ():
            rows, columns = projection.shape(module)
            assert projection.dimension is not None
            index, signs = count_sketch(rows * columns, projection.dimension, projection.seed, f"sum|{module.name}")
            tensors = torch.from_numpy(index).to(self.device), torch.from_numpy(signs).to(self.device, self.dtype)
            self._sketches[module.name] = tensors
        self._guard = FiniteGuard("the projected gradient")

    def begin(self, batch: Any, objective: Objective) -> None:
        cotangents, width = self.size
        self.features = torch.zeros(cotangents, len(batch), width, device=self.device, dtype=self.dtype)

    def right(self, module: TrackedModule, right: Tensor) -> Tensor:
        """P_in x̄, (B, T, p_in): the input itself need not be kept."""
        x = right.to(self.dtype)
        _, P_in = self._maps[module.name]
        if P_in is None:
            return torch.cat([x, x.new_ones(*x.shape[:2], 1)], dim=2) if module.bias else x
        mapped = x @ P_in[:, : module.d_in].T
        return mapped + P_in[:, module.d_in] if module.bias else mapped

    def backward(self, module: TrackedModule, uses: Sequence[Outer]) -> None:
        for use in uses:
            self._add(module, use.to(self.dtype))

    def _add(self, module: TrackedModule, use: Outer) -> None:
        P_out, _ = self._maps[module.name]
        if P_out is not None:
            mapped = use.mapped(P_out.T)
        else:
            mapped = F.one_hot(use.left, module.d_out).to(self.dtype) if use.lookup else use.left
        if self.weights is not None:
            mapped = mapped * self.weights.to(self.dtype).unsqueeze(2)
        phi = (mapped.transpose(1, 2) @ use.right).flatten(1)
        features = self.features[self.current]
        if self._sketches:
            index, signs = self._sketches[module.name]
            features.index_add_(1, index, phi * signs)
        else:
            features[:, self._columns[module.name]] += phi
        self._guard.watch(module.name, phi.sum())

    def end(self, batch: Any) -> None:
        self._guard.check(batch)


class GradientProjector:
    """A context in which a call takes a batch to the projected gradients of its sequences, (C, B, D).

    A batch costs one forward pass, and a backward pass for each cotangent; ``outputs`` holds the model's last ones.

    Raises:
        MsifError: NaN or infinity in a gradient, and what ``Capture`` refuses.
    """

    def __init__(self, side: Side, projection: Projection, cotangents: Sequence[Cotangent]) -> None:
        self.side = side
        self.consumer = FeaturePass(side, projection, len(cotangents))
        self.outputs = torch.empty(0)
        self._cotangents = [self._numbered(number, cotangent) for number, cotangent in enumerate(cotangents)]
        self._capture = Capture(side.model, side.tracked, self.consumer)

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


def query_features(
    side: Side, queries: Iterable[Any], projection: Projection, measurement: str | Measurement
) -> Tensor:
    """Projected ∇m of each query, (Q, D), rows ordered by the queries' ``indices``.

    Raises:
        MsifError: an unknown measurement, no query, or indices that are not 0 … Q − 1.
    """
    parts, numbers = [], []
    with GradientProjector(side, projection, [measurement_cotangent(side.objective, measurement)]) as project:
        for batch in queries:
            parts.append(project(batch)[0])
            numbers.append(batch.indices)
    rows = query_rows(numbers)
    return torch.cat(parts)[rows.to(parts[0].device)]


def add_gram(total: Tensor, features: Tensor) -> None:
    """total += ΦᵀΦ in total's dtype, float64; features (B, D), total (D, D)."""
    features = features.to(total.dtype)
    total.addmm_(features.T, features)


def solve_damped(gram: Tensor, right: Tensor, damping: float | None, damping_scale: float, what: str) -> Tensor:
    """(gram + λI)⁻¹ right in float64, by Cholesky; (D, D) and (D, Q).

    λ is ``damping``, or ``damping_scale`` times the mean eigenvalue; with a relative λ, a gram that is zero gives zero.

    Raises:
        MsifError: the damped matrix is singular in float64.
    """
    dimension = len(gram)
    mean = gram.diagonal().mean()
    if damping is None and float(mean) == 0.0:
        return torch.zeros_like(right, dtype=gram.dtype)
    shift = damping_scale * mean if damping is None else torch.full_like(mean, damping)
    damped = gram.clone()
    damped.diagonal().add_(shift)
    factor, failed = torch.linalg.cholesky_ex(damped)
    pivots = factor.diagonal().square()
    if int(failed) or not bool(pivots.min() > dimension * torch.finfo(gram.dtype).eps * pivots.max()):
        raise MsifError(
            f"{what} is singular ({dimension} features; too few sequences?) and the damping does not lift it: "
            "use a larger --damping, or a smaller projection."
        )
    return torch.cholesky_solve(right.to(gram.dtype), factor)
