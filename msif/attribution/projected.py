"""What TRAK and LoGra share: an inverse in the space of projected gradients, applied to the queries.

    score(z → q) = φ_L(z)ᵀ (K + λI)⁻¹ φ_m(q)

φ_m and φ_L are the projected gradients (``projection``) of a query's measurement and of a candidate's loss; K, D × D,
is of the projected gradients of a set of training sequences, the *index data*. v = (K + λI)⁻¹ φ_m(q) is made once, in
float64; a candidate then costs one pass and D multiply-adds a query, and no features are kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from torch import Tensor

from msif.attribution.cost import Cost, projection_work
from msif.attribution.features import GradientProjector, features_of, query_features
from msif.attribution.gradients import Side
from msif.attribution.partial import PartialScores
from msif.attribution.projection import Projection
from msif.attribution.scorers import Scores, score_batches
from msif.curvature.filters import DampedInverse
from msif.curvature.inputs import device_and_dtype
from msif.curvature.work import Work
from msif.errors import MsifError
from msif.models.capture import Cotangent
from msif.models.objectives import Measurement
from msif.models.select import match_modules

Kernel = TypeVar("Kernel")


class ProjectedScorer(ABC, Generic[Kernel]):
    """The common part of scorers by projected gradients.

    Args:
        query_side, candidate_side: as for ``InfluenceScorer``; K is of the candidate side's gradients.
        measurement: see ``query_gradients``.
        damping, damping_scale: λ, absolute, or relative to K's mean eigenvalue where no damping is given.
        index_data: batches of the sequences of K, which is formed once; None takes the candidates that are scored.

    Raises:
        MsifError: a negative λ, or the two sides share no block.
    """

    def __init__(
        self,
        query_side: Side,
        candidate_side: Side,
        projection: Projection,
        measurement: str | Measurement,
        damping: float | None,
        damping_scale: float,
        index_data: Iterable[Any] | None,
    ) -> None:
        DampedInverse(damping, damping_scale)  # checks both
        shared, self.left_out = match_modules(list(query_side.tracked), list(candidate_side.tracked))
        self.query_side = query_side.restricted(shared)
        self.candidate_side = candidate_side.restricted(shared)
        self.projection, self.measurement = projection, measurement
        self.damping, self.damping_scale = damping, damping_scale
        self.index_data = index_data
        self.kernel: Kernel | None = None

    @abstractmethod
    def _kernel_of(self, data: Iterable[Any]) -> Kernel:
        """K of the index data, from one pass."""

    @abstractmethod
    def _solved(self, kernel: Kernel, phi: Tensor) -> Tensor:
        """(K + λI)⁻¹ φ, float64, (D, Q), from φ (Q, D)."""

    def query_vectors(self, queries: Iterable[Any]) -> Tensor:
        """(K + λI)⁻¹ φ_m(q), (D, Q), from one pass over queries and, the first time, one over the index data.

        Raises:
            MsifError: no query, no index data, or a K that is singular.
        """
        return self._vectors(queries, self._index_data())

    def cost(self) -> Cost:
        side = self.candidate_side
        width = self.projection.width(side.tracked)
        features = projection_work(side.tracked, self.projection)
        if self.projection.dimension:
            kernel = [width]
        else:
            kernel = [columns.stop - columns.start for columns in self.projection.columns(side.tracked).values()]
        return Cost(
            vector=2 * width,  # in float64
            making=6 * width,
            candidates=self._cotangent(),
            batch=lambda B, T, queries: features(B, T) + Work(double=B * width * queries),
            query=Work(double=sum(size**2 for size in kernel)),
            index=self._index_cotangent(),
            index_batch=lambda B, T: features(B, T) + Work(double=B * sum(size**2 for size in kernel)),
            solve=Work(double=sum(size**3 / 3 for size in kernel)),
        )

    def score_vectors(self, vectors: Tensor, candidates: Iterable[Any], partial: PartialScores | None = None) -> Scores:
        """φ_L(z)ᵀ v for vectors that ``query_vectors`` made, by one pass over candidates."""
        with GradientProjector(self.candidate_side, self.projection, [self._cotangent()]) as project:
            return score_batches(candidates, lambda batch: self._scores(project, batch, vectors), partial)

    solves = False

    def self_influence(self, documents: Iterable[Any]) -> Tensor:
        """φ_L(d)ᵀ (K + λI)⁻¹ φ_L(d), see ``SelfScorer``.

        Raises:
            MsifError: no index data are given.
        """
        phi = features_of(self.candidate_side, documents, self.projection, self._loss_cotangent())
        solved = self._solved(self._kernel(), phi)
        return (phi.to(solved.device, solved.dtype) * solved.T).sum(1)

    def score(self, queries: Iterable[Any], candidates: Iterable[Any]) -> Scores:
        """
        Raises:
            MsifError: nothing to score or to score by, or a K that is singular.
        """
        if self.index_data is not None:
            return self.score_vectors(self.query_vectors(queries), candidates)
        if iter(candidates) is candidates:
            raise MsifError("candidates that are index data too are gone over twice: give a list, not an iterator.")
        return self.score_vectors(self._vectors(queries, candidates), candidates)

    @abstractmethod
    def _index_cotangent(self) -> Cotangent:
        """What the index data's gradients are of."""

    def _cotangent(self) -> Cotangent:
        """What candidates' gradients are of."""
        return self.candidate_side.objective.loss_gradient

    def _loss_cotangent(self) -> Cotangent:
        """What φ_L is of, where a document is its own query."""
        return self._cotangent()

    def _scores(self, project: GradientProjector, batch: Any, vectors: Tensor) -> Tensor:
        """(B, Q)."""
        return project(batch)[0].to(vectors.dtype) @ vectors

    def _kernel(self) -> Kernel:
        """K of the index data, formed once."""
        if self.kernel is None:
            self.kernel = self._kernel_of(self._index_data())
        return self.kernel

    def _index_data(self) -> Iterable[Any]:
        if self.index_data is None:
            raise MsifError("queries are taken in before candidates only where the index data are given: give them.")
        return self.index_data

    def _vectors(self, queries: Iterable[Any], data: Iterable[Any]) -> Tensor:
        phi = query_features(self.query_side, queries, self.projection, self.measurement)
        kernel = self._kernel() if data is self.index_data else self._kernel_of(data)
        device, _ = device_and_dtype(self.candidate_side.model)
        return self._solved(kernel, phi.to(device)).to(device)
