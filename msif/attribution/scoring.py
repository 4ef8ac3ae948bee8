"""Scores of candidates: ⟨v_q, ∇L(z)⟩ for Q query vectors, in one forward and one backward pass over candidates.

Letters: B sequences of T positions, Q queries, P = d_out·d_in, r the rank of v.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from msif.curvature.vectors import Vectors
from msif.errors import MsifError
from msif.models.blocks import TrackedModule
from msif.models.capture import Consumer, FiniteGuard
from msif.models.objectives import Objective
from msif.models.outer import Outer, squared_norms, squares, weight_gradients

Route = Literal["gradient", "direct", "low-rank"]

# what touching one element of a temporary costs, in multiply-adds of a matrix product
TOUCH = 16
# a full decomposition up to this width; beyond it, subspace iteration with so many more columns and rounds
EXACT_SVD, OVERSAMPLING, POWER_ITERATIONS = 128, 8, 4


@dataclass
class QueryVectors:
    """The Q preconditioned query vectors of one module, weight and bias column apart.

    Attributes:
        weight: (Q, d_out, d_in), or None when only the factored form is kept.
        bias: (Q, d_out), or None.
        left, right: (Q, d_out, r) and (Q, d_in, r) with weight ≈ left rightᵀ, or None.
    """

    weight: Tensor | None
    bias: Tensor | None
    left: Tensor | None = None
    right: Tensor | None = None

    @property
    def queries(self) -> int:
        kept = self.weight if self.weight is not None else self.left
        assert kept is not None
        return kept.shape[0]

    def dense(self) -> Tensor:
        """The weight part, (Q, d_out, d_in), multiplied out when factored."""
        if self.weight is not None:
            return self.weight
        assert self.left is not None and self.right is not None
        return self.left @ self.right.transpose(1, 2)


def split_bias(vectors: Vectors, biased: dict[str, bool]) -> dict[str, QueryVectors]:
    """Takes (Q, d_out, d) vectors over and splits the bias column off each, one module at a time."""
    result = {}
    for name in list(vectors):
        V = vectors.pop(name)
        if biased[name]:
            result[name] = QueryVectors(V[..., :-1].contiguous(), V[..., -1].contiguous())
        else:
            result[name] = QueryVectors(V.contiguous(), None)
    return result


def stack(vectors: list[dict[str, QueryVectors]]) -> dict[str, QueryVectors]:
    """Takes several sets of vectors over, one module at a time, and puts them one after the other.

    A module is factored in all of them or in none.
    """
    if len(vectors) == 1:
        return vectors[0]
    result = {}
    for name in list(vectors[0]):
        parts = [vars(one.pop(name)) for one in vectors]
        result[name] = QueryVectors(
            **{
                key: None if value is None else torch.cat([part[key] for part in parts])
                for key, value in parts[0].items()
            }
        )
    return result


def picked(vectors: dict[str, QueryVectors], rows: Tensor) -> dict[str, QueryVectors]:
    """The vectors of some queries, in the order of ``rows``."""
    return {
        name: QueryVectors(**{key: None if value is None else value[rows] for key, value in vars(v).items()})
        for name, v in vectors.items()
    }


def cheapest_route(positions: int, d_out: int, d_in: int, queries: int, rank: int | None) -> Route:
    """Which algebra to use for one module."""
    costs = route_costs(positions, d_out, d_in, queries, rank)
    return min(costs, key=lambda route: costs[route])


def route_costs(positions: int, d_out: int, d_in: int, queries: int, rank: int | None) -> dict[Route, float]:
    """The number of multiply-adds and touched elements of a sequence, for each algebra that there is for one module.

    gradient: form Σ_t g_t x_tᵀ, contract it with all queries; direct: g_tᵀ v x_t for each query; low-rank: the same
    through r columns.
    """
    P, narrow = d_out * d_in, min(d_out, d_in)
    costs: dict[Route, float] = {
        "gradient": positions * P + queries * P + TOUCH * P,
        "direct": queries * positions * (P + TOUCH * narrow),
    }
    if rank is not None:
        costs = {"low-rank": queries * positions * rank * (d_out + d_in + TOUCH), **costs}
    return costs


def over_norms(values: Tensor, norms: Tensor) -> Tensor:
    """values / norms, and values where a norm is zero: they are zero too."""
    return values / torch.where(norms > 0, norms, 1.0)


class ScorePass(Consumer):
    """Computes the scores of each batch; after a run, ``scores`` is (B, Q), and ``norms`` (B,) where asked for.

    Norms are those of ∇L(z) over the tracked modules.
    """

    def __init__(self, vectors: dict[str, QueryVectors], with_norms: bool = False) -> None:
        self.vectors = vectors
        self.with_norms = with_norms
        self.scores = torch.empty(0)
        self.norms = torch.empty(0)
        self._guard = FiniteGuard("the gradient")

    def begin(self, batch: Any, objective: Objective) -> None:
        some = next(iter(self.vectors.values()))
        kept = some.weight if some.weight is not None else some.left
        assert kept is not None
        self.scores = kept.new_zeros(len(batch), some.queries)
        self.norms = kept.new_zeros(len(batch), dtype=torch.float64)  # squared until the end of the batch

    def backward(self, module: TrackedModule, uses: Sequence[Outer]) -> None:
        v = self.vectors[module.name]
        uses = [use.to(self.scores.dtype) for use in uses]
        routes = [self._route(use, v) for use in uses]
        formed = "gradient" in routes
        if formed:
            scores = torch.zeros_like(self.scores)
            weight = v.dense().flatten(1).T
            for rows, gradient in weight_gradients(uses, module.d_out):
                scores[rows] = gradient.flatten(1) @ weight
                if self.with_norms:
                    self.norms[rows] += squares(gradient)
        else:
            scores = torch.stack(
                [
                    _by_rank(use, v) if route == "low-rank" else _directly(use, v.dense())
                    for use, route in zip(uses, routes, strict=True)
                ]
            ).sum(0)
            if self.with_norms:
                self.norms += squared_norms(uses, module.d_out)
        if v.bias is not None:
            summed = torch.stack([use.bias_gradient() for use in uses]).sum(0)
            scores = scores + summed @ v.bias.T
            if self.with_norms:
                self.norms += squares(summed)
        self.scores += scores
        self._guard.watch(module.name, scores.sum())

    def _route(self, use: Outer, v: QueryVectors) -> Route:
        if use.lookup:  # its rows are there to be read
            return "direct" if v.left is None else "low-rank"
        rank = None if v.left is None else v.left.shape[2]
        return cheapest_route(use.right.shape[1], use.left.shape[2], use.right.shape[2], v.queries, rank)

    def end(self, batch: Any) -> None:
        self.norms = self.norms.sqrt().to(self.scores.dtype)
        self._guard.check(batch)


def _directly(use: Outer, weight: Tensor) -> Tensor:
    """Σ_t left_tᵀ v_q right_t, (B, Q)."""
    return torch.stack([use.contracted(v) for v in weight], dim=1)


def _by_rank(use: Outer, v: QueryVectors) -> Tensor:
    """Σ_t (left_t · U_q) · (right_t · B_q), (B, Q)."""
    assert v.left is not None and v.right is not None
    queries, _, rank = v.left.shape
    left = use.mapped(v.left.permute(1, 0, 2).flatten(1))
    right = use.right @ v.right.permute(1, 0, 2).flatten(1)
    return (left * right).sum(1).unflatten(1, (queries, rank)).sum(2)


def compress(vectors: dict[str, QueryVectors], rank: int) -> tuple[dict[str, QueryVectors], Tensor]:
    """Rank-r factors of each query's weight part, and the relative error that they cause.

    Returns:
        The factored vectors (a module whose rank is r or less stays dense), and for each query ‖v − v_r‖ / ‖v‖ over
        all modules, (Q,).

    Raises:
        MsifError: singular vectors that do not converge.
    """
    result, lost, whole = {}, [], []
    for name, v in vectors.items():
        weight = v.dense()
        whole.append(squares(weight) + (squares(v.bias) if v.bias is not None else 0.0))
        if rank >= min(weight.shape[1:]):
            result[name] = v
            continue
        try:
            U, S, V = _top_singular(weight, rank)
        except torch.linalg.LinAlgError as failure:
            raise MsifError(
                f"the singular vectors of a query in module '{name}' do not converge: leave --query-rank out."
            ) from failure
        lost.append((squares(weight) - squares(S)).clamp(min=0))
        result[name] = QueryVectors(None, v.bias, (U * S[:, None]).contiguous(), V.contiguous())
    total = torch.stack(whole).sum(0)
    error = torch.stack(lost).sum(0) if lost else torch.zeros_like(total)
    return result, over_norms(error, total).sqrt()


def _top_singular(weight: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The r largest singular triples of (Q, d_out, d_in): (Q, d_out, r), (Q, r), (Q, d_in, r).

    Exact where the matrix is small; else by randomised subspace iteration (Halko et al. 2011), which projects, so that
    the lost norm is still ‖v‖² − ‖v_r‖².
    """
    if min(weight.shape[1:]) <= max(4 * rank, EXACT_SVD):
        U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
        return U[:, :, :rank], S[:, :rank], Vh[:, :rank].transpose(1, 2)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(weight.shape[2], rank + OVERSAMPLING, generator=generator).to(weight.device, weight.dtype)
    basis = torch.linalg.qr(weight @ start).Q
    for _ in range(POWER_ITERATIONS):
        basis = torch.linalg.qr(weight @ torch.linalg.qr(weight.transpose(1, 2) @ basis).Q).Q
    U, S, Vh = torch.linalg.svd(basis.transpose(1, 2) @ weight, full_matrices=False)
    return basis @ U[:, :, :rank], S[:, :rank], Vh[:, :rank].transpose(1, 2)
