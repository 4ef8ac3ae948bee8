"""Random projections of per-sequence gradients, two-sided in each module.

    φ(z) = P_out ∇L(z) P_inᵀ = Σ_t (P_out g_t) (P_in x̄_t)ᵀ

The entries of P_out and P_in are independent signs over √p (Achlioptas 2003), so that E[PᵀP] = I and ⟨φ(a), φ(b)⟩ is an
unbiased estimate of ⟨∇a, ∇b⟩. Two sides instead of one dense matrix over vec ∇L (Choe et al. 2024, arXiv 2405.13954)
make a token cost p_out d_out + p_in d + p_out p_in multiply-adds, without forming the gradient; the price is a
variance that falls like 1/p_out + 1/p_in, not like 1/(p_out p_in).

Letters: d = d_in + bias, p_out and p_in the projected sizes of a module, D the number of features of a sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from msif.attribution.features import FeatureMap, TwoSidedMap
from msif.attribution.random_matrices import count_sketch, sign_matrix
from msif.errors import MsifError
from msif.models.blocks import TrackedModule


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

    def maps(self, tracked: Sequence[TrackedModule], device: torch.device, dtype: torch.dtype) -> dict[str, FeatureMap]:
        return {module.name: TwoSidedMap(module, *self.matrices(module, device, dtype)) for module in tracked}

    def places(
        self, tracked: Sequence[TrackedModule], device: torch.device, dtype: torch.dtype
    ) -> Mapping[str, slice | tuple[Tensor, Tensor]]:
        if self.dimension is None:
            return self.columns(tracked)
        found = {}
        for module in tracked:
            rows, columns = self.shape(module)
            index, signs = count_sketch(rows * columns, self.dimension, self.seed, f"sum|{module.name}")
            found[module.name] = torch.from_numpy(index).to(device), torch.from_numpy(signs).to(device, dtype)
        return found


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
