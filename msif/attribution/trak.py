"""TRAK: attribution by a kernel of randomly projected margin gradients (Park et al. 2023, arXiv 2303.14186).

    score(z → q) = φ_m(q)ᵀ (ΦᵀΦ + λI)⁻¹ φ_L(z)

with φ_m and φ_L the projected gradients (``projection``) of the margin and of the loss, and the rows of Φ the φ_m of
the training sequences. Margins enter with a minus, as all measurements, on both sides; so a positive score names a
proponent, as in the paper. The paper's last step, soft thresholding, is left out: it is for sparse scores.

**Q.** For one prediction with probability p of its label, ∇L = −(1−p) ∇m exactly, and the paper's score multiplies
φ_m(z) by Q = 1−p. A sequence has many predictions:

- "token" weights each one's, φ_L(z) = −Σ_t (1−p_t) φ_{m_t}(z), which *is* the projected gradient of the loss, and is
  computed as such, with no 1−p anywhere. Where sequences are fewer than features, φ_L(z) leaves the row space of Φ, and
  that part of it is multiplied by 1/λ: λ matters there.
- "example" weights the whole sequence's, Q(z) φ_m(z) with Q(z) the mean of 1−p_t over its predictions. (The sum, which
  published code for language models uses, counts length twice, for m is already a sum.)

**Ensembles.** With M checkpoints, each projected with a seed of its own, scores are, as in the paper,

    (1/M Σ_i φ_i(q)ᵀ (Φ_iᵀΦ_i + λI)⁻¹ φ_i(z)) · (1/M Σ_i Q_i(z))

where "token" has its weights inside φ_L, model by model, and no second factor. One checkpoint is the case M = 1.

Cost for each checkpoint: one forward and one backward pass over queries, over the data of Φ and over candidates; D² N
multiply-adds for N rows of Φ and D³/3 for the solve.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from msif.attribution.features import GradientProjector, measurement_cotangent
from msif.attribution.gradients import Side
from msif.attribution.partial import PartialScores
from msif.attribution.projected import ProjectedScorer
from msif.attribution.projection import Projection, add_gram, solve_damped
from msif.attribution.scorers import Scores
from msif.curvature.filters import DampedInverse
from msif.errors import MsifError
from msif.models.capture import Cotangent
from msif.models.objectives import Categorical, Measurement, Objective
from msif.progress import progress

# as in the published comparison; two-sided features are summed into these many
DEFAULT_PROJECTION = Projection(p_out=64, p_in=64, dimension=4096)


@dataclass(frozen=True)
class TRAKOptions:
    """How a checkpoint scores.

    λ is added to ΦᵀΦ, a sum over sequences: a λ of the mean loss (``EKFAC``, ``CG``) is N times larger here, N the
    number of supervised tokens. The paper has λ = 0, which needs more sequences than features.

    Attributes:
        output: the output function m, by name or as a callable; see ``query_gradients``.
        weighting: where Q is applied.
        damping, damping_scale: λ, absolute, or relative to the mean eigenvalue of ΦᵀΦ where no damping is given.

    Raises:
        MsifError: an unknown choice, or a weighting by example of an output other than the margin.
    """

    output: str | Measurement = "margin"
    weighting: Literal["token", "example"] = "token"
    damping: float | None = None
    damping_scale: float = 0.1

    def __post_init__(self) -> None:
        if self.weighting not in ("token", "example"):
            raise MsifError(f"TRAK's weighting is '{self.weighting}': choose 'token' or 'example'.")
        if self.weighting == "example" and self.output != "margin":
            raise MsifError("one Q for each example is defined for the margin only: choose the weighting 'token'.")
        DampedInverse(self.damping, self.damping_scale)  # checks both


class TRAKCheckpoint(ProjectedScorer[Tensor]):
    """Scores by TRAK with one checkpoint; positive for a proponent.

    Args:
        query_side, candidate_side: as for ``InfluenceScorer``; Φ is the candidate side's.
        projection: default: 64 × 64 a module, 4096 in all.
        kernel_data: batches of the sequences of Φ; None takes the candidates. Their kernel is formed once.

    Raises:
        MsifError: the two sides share no block, or one Q for each example of an objective without probabilities.
    """

    def __init__(
        self,
        query_side: Side,
        candidate_side: Side,
        projection: Projection | None = None,
        options: TRAKOptions | None = None,
        kernel_data: Iterable[Any] | None = None,
    ) -> None:
        options = options or TRAKOptions()
        shift = options.damping, options.damping_scale
        super().__init__(
            query_side, candidate_side, projection or DEFAULT_PROJECTION, options.output, *shift, kernel_data
        )
        self.weighting = options.weighting
        if self.weighting == "example":
            with_classes(candidate_side.objective)

    def score_vectors(self, vectors: Tensor, candidates: Iterable[Any], partial: PartialScores | None = None) -> Scores:
        products, doubts = self.score_parts(vectors, candidates, partial)
        return products if doubts is None else Scores(products.values * doubts, products.candidates)

    def score_parts(
        self, vectors: Tensor, candidates: Iterable[Any], partial: PartialScores | None = None
    ) -> tuple[Scores, np.ndarray | None]:
        """φ(z)ᵀ v, and Q(z), (N,), where it is one number a sequence."""
        scores = super().score_vectors(vectors, candidates, partial)
        if self.weighting == "token":
            return scores, None
        return Scores(scores.values[:-1], scores.candidates), scores.values[-1]

    def _kernel_of(self, data: Iterable[Any]) -> Tensor:
        """ΦᵀΦ, float64, (D, D)."""
        total = None
        with GradientProjector(self.candidate_side, self.projection, [self._index_cotangent()]) as project:
            for batch in progress(data, desc="kernel", unit="batch"):
                features = project(batch)[0]
                if total is None:
                    total = features.new_zeros(features.shape[1], features.shape[1], dtype=torch.float64)
                add_gram(total, features)
        if total is None:
            raise MsifError("there is no sequence to take TRAK's kernel from: give candidates, or kernel data.")
        return total

    def _solved(self, kernel: Tensor, phi: Tensor) -> Tensor:
        return solve_damped(kernel, phi.T, self.damping, self.damping_scale, "TRAK's kernel")

    def _index_cotangent(self) -> Cotangent:
        return measurement_cotangent(self.candidate_side.objective, self.measurement)

    def _cotangent(self) -> Cotangent:
        return super()._cotangent() if self.weighting == "token" else self._index_cotangent()

    def _loss_cotangent(self) -> Cotangent:
        """Weighted by example, that of Q(d) m(d), which is the loss but for its sign."""
        if self.weighting == "token":
            return super()._loss_cotangent()
        return document_cotangent(self.candidate_side.objective, "margin", self.weighting)

    def _scores(self, project: GradientProjector, batch: Any, vectors: Tensor) -> Tensor:
        """φ(z)ᵀ v, (B, Q); weighted by example, Q(z) is one more column."""
        products = super()._scores(project, batch, vectors)
        if self.weighting == "token":
            return products
        doubt = mean_doubt(self.candidate_side.objective, project.outputs, batch.to(products.device))
        return torch.cat([products, doubt.to(products.dtype).unsqueeze(1)], dim=1)


class TRAKScorer:
    """Scores by TRAK, with one checkpoint or several.

    Args:
        members: the checkpoints, each one ``Side``, or (query side, candidate side). Any collection that can be gone
            over again; one that loads its models as it goes needs the memory of one.
        projection: member i uses its seed + i. Default: 64 × 64 a module, 4096 in all.
        kernel_data: batches of the sequences of Φ; None takes the candidates. Their kernels are formed once.
        options: those of ``TRAKOptions``.

    Raises:
        MsifError: what ``TRAKOptions`` refuses, or collections that can be gone over only once.
    """

    def __init__(
        self,
        members: Iterable[Side | tuple[Side, Side]],
        projection: Projection | None = None,
        *,
        kernel_data: Iterable[Any] | None = None,
        **options: Any,
    ) -> None:
        if iter(members) is members or (kernel_data is not None and iter(kernel_data) is kernel_data):
            raise MsifError("TRAK goes over its checkpoints and kernel data several times: give lists, not iterators.")
        self.members = members
        self.projection = projection or DEFAULT_PROJECTION
        self.options = TRAKOptions(**options)
        self.kernel_data = kernel_data
        self._kernels: dict[int, Tensor] = {}

    def score(self, queries: Iterable[Any], candidates: Iterable[Any]) -> Scores:
        """
        Raises:
            MsifError: nothing to score or to score by, or a kernel that is singular.
        """
        if iter(queries) is queries or iter(candidates) is candidates:
            raise MsifError("TRAK goes over queries and candidates for each checkpoint: give lists, not iterators.")
        data = candidates if self.kernel_data is None else self.kernel_data
        products, doubts = [], []
        for number, member in enumerate(self.members):
            sides = member if isinstance(member, tuple) else (member, member)
            projection = replace(self.projection, seed=(self.projection.seed + number) % 2**64)
            checkpoint = TRAKCheckpoint(*sides, projection, self.options, data)
            checkpoint.kernel = self._kernels.get(number)
            vectors = checkpoint.query_vectors(queries)
            if self.kernel_data is not None and checkpoint.kernel is not None:
                self._kernels[number] = checkpoint.kernel
            product, doubt = checkpoint.score_parts(vectors, candidates)
            products.append(product)
            doubts.append(doubt)
        if not products:
            raise MsifError("TRAK needs at least one checkpoint.")
        values = np.mean([product.values for product in products], axis=0)
        known = [doubt for doubt in doubts if doubt is not None]
        return Scores(values * np.mean(known, axis=0) if known else values, products[0].candidates)


def document_cotangent(objective: Objective, measurement: str, weighting: str) -> Cotangent:
    """Σ_t Q_t ∇m_t of a document, by its outputs: Q_t = ∂L/∂m_t = 1−p_t of margin and logit, and 1 of the loss.

    With the margin that is the gradient of the loss exactly. "example" takes the mean of Q for all tokens of a document
    (the published TRAK for language models, whose scores fail); "none" takes 1.

    Raises:
        MsifError: the objective does not know the measurement, or has no probability of a label.
    """
    gradient = measurement_cotangent(objective, measurement)
    if measurement == "loss" or (measurement == "margin" and weighting == "token"):
        return objective.loss_gradient
    if weighting == "none":
        return gradient
    with_classes(objective)

    def weighted(outputs: Tensor, batch: Any) -> Tensor:
        if weighting == "token":
            Q = doubts(objective, outputs, batch)
        else:
            mean = mean_doubt(objective, outputs, batch)
            Q = mean.view(-1, *[1] * (outputs.ndim - 2)).expand(outputs.shape[:-1])
        return gradient(outputs, batch) * Q.unsqueeze(-1).to(outputs.dtype)

    return weighted


def mean_doubt(objective: Objective, outputs: Tensor, batch: Any) -> Tensor:
    """Mean of 1−p over each sequence's supervised predictions, (B,): TRAK's Q, one for each example.

    Raises:
        MsifError: the objective has no classes.
    """
    doubt = doubts(objective, outputs, batch)
    return doubt.reshape(len(batch), -1).sum(1) / objective.supervised_counts(batch).clamp(min=1)


def doubts(objective: Objective, outputs: Tensor, batch: Any) -> Tensor:
    """1−p of every supervised prediction, 0 of others, outputs.shape[:-1].

    1−p = 1/(1 + exp(margin)), which keeps its digits where p is close to 1.

    Raises:
        MsifError: the objective has no classes.
    """
    objective = with_classes(objective)
    logits = outputs.to(torch.float64 if outputs.dtype == torch.float64 else torch.float32)
    targets, mask = objective.targets(batch).unsqueeze(-1), objective.predicting(batch)
    others = logits.scatter(-1, targets, float("-inf")).logsumexp(-1)
    return torch.sigmoid(others - logits.gather(-1, targets).squeeze(-1)).masked_fill(~mask, 0.0)


def with_classes(objective: Objective) -> Categorical:
    """The objective, whose labels have probabilities.

    Raises:
        MsifError: they have none.
    """
    if not isinstance(objective, Categorical):
        raise MsifError(f"{type(objective).__name__} has no probability of a label: choose the weighting 'token'.")
    return objective
