"""LoGra: influence in a two-sided random projection of each module's gradient (Choe et al. 2024, arXiv 2405.13954).

    score(z → q) = Σ_modules φ_m(q)ᵀ (CᵀC/N + λI)⁻¹ φ_L(z),    φ = vec(P_out ∇ P_inᵀ)

The rows of C are projected gradients of the sequences that the curvature is taken from, N their supervised tokens: the
projection of the same H that EK-FAC and CG use, with modules apart, so λ means the same. Matrices are random signs
(``projection``); the paper's other choice, the leading eigenvectors of K-FAC, is not offered.

Cost: one forward and one backward pass over queries, over the data of C and over candidates; for each module
(p_out p_in)² n multiply-adds for n sequences of C, a third of its cube for the solve.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from msif.attribution.features import GradientProjector
from msif.attribution.gradients import Side
from msif.attribution.projected import ProjectedScorer
from msif.attribution.projection import Projection, add_gram, solve_damped
from msif.errors import MsifError
from msif.models.capture import Cotangent
from msif.models.objectives import Measurement, generators_for
from msif.progress import progress

LABEL_STREAM = 6
"""Of the generator of labels: other than those of the passes that fit factors, and of the projection's bits."""


DEFAULT_PROJECTION = Projection(p_out=16, p_in=16)


class Curvature:
    """CᵀC of each module, float64, and N; never damped in place."""

    def __init__(self, side: Side, projection: Projection) -> None:
        self.side = side
        self.columns = projection.columns(side.tracked)
        self.tokens = 0
        self.grams: dict[str, Tensor] = {}

    def add(self, features: Tensor, batch: Any) -> None:
        self.tokens += int(self.side.objective.supervised_counts(batch).sum())
        for name, columns in self.columns.items():
            if name not in self.grams:
                size = columns.stop - columns.start
                self.grams[name] = features.new_zeros(size, size, dtype=torch.float64)
            add_gram(self.grams[name], features[:, columns])

    def solve(self, phi: Tensor, damping: float | None, damping_scale: float) -> Tensor:
        """(CᵀC/N + λI)⁻¹ φ, module by module; φ (Q, D), result (D, Q)."""
        result = []
        for name, columns in self.columns.items():
            gram = self.grams[name] / max(self.tokens, 1)
            right = phi[:, columns].T.to(gram.device)
            result.append(solve_damped(gram, right, damping, damping_scale, f"LoGra's curvature of module '{name}'"))
        return torch.cat(result)


class LoGraScorer(ProjectedScorer[Curvature]):
    """Scores by LoGra; positive for a proponent.

    Args:
        query_side, candidate_side: as for ``InfluenceScorer``; curvature is the candidate side's.
        projection: 16 × 16 a module by default; it must have no ``dimension``, for modules stay apart.
        measurement: see ``query_gradients``.
        labels: "sampled" from the model, as everywhere here, or "true": the empirical Fisher, as in the published code.
        damping, damping_scale: λ, absolute, or relative to each module's mean eigenvalue where no damping is given.
        curvature_data: batches of the sequences of C; None takes the candidates. Their curvature is formed once.
        seed: of the labels that are sampled.

    Raises:
        MsifError: an unknown choice, or the two sides share no block.
    """

    def __init__(
        self,
        query_side: Side,
        candidate_side: Side,
        projection: Projection | None = None,
        *,
        measurement: str | Measurement = "loss",
        labels: Literal["sampled", "true"] = "sampled",
        damping: float | None = None,
        damping_scale: float = 0.1,
        curvature_data: Iterable[Any] | None = None,
        seed: int = 0,
    ) -> None:
        if labels not in ("sampled", "true"):
            raise MsifError(f"LoGra's labels are '{labels}': choose 'sampled' or 'true'.")
        projection = projection or DEFAULT_PROJECTION
        if projection.dimension is not None:
            raise MsifError("LoGra keeps the modules' features apart: give a projection without a dimension.")
        super().__init__(query_side, candidate_side, projection, measurement, damping, damping_scale, curvature_data)
        self.labels, self.seed = labels, seed

    def _kernel_of(self, data: Iterable[Any]) -> Curvature:
        side = self.candidate_side
        curvature = Curvature(side, self.projection)
        with GradientProjector(side, self.projection, [self._index_cotangent()]) as project:
            for batch in progress(data, desc="curvature", unit="batch"):
                curvature.add(project(batch)[0], batch)
        if not curvature.tokens:
            raise MsifError("LoGra's curvature has no supervised token: give candidates, or curvature data.")
        return curvature

    def _index_cotangent(self) -> Cotangent:
        return self._sampled if self.labels == "sampled" else self.candidate_side.objective.loss_gradient

    def _sampled(self, outputs: Tensor, batch: Any) -> Tensor:
        generators = generators_for(self.seed, LABEL_STREAM, batch.indices)
        return self.candidate_side.objective.sampled_loss_gradient(outputs, batch, generators)

    def _solved(self, kernel: Curvature, phi: Tensor) -> Tensor:
        return kernel.solve(phi, self.damping, self.damping_scale)
