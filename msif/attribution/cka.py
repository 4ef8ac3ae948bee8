"""Linear CKA of gradients, a similarity without curvature (Kornblith et al. 2019, arXiv 1905.00414).

For a block's gradients X = ∇m(q) and Y = ∇L(z), both (r, d), with columns centred over the r rows,

    CKA(X, Y) = ‖YᵀX‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F) = ⟨XXᵀ, YYᵀ⟩ / (‖XXᵀ‖_F ‖YYᵀ‖_F)

and the score is its mean over blocks: every projection and every head. CKA compares two matrices with paired rows. Two
sequences pair no tokens, but their gradients pair the output units of each block, so these are the rows. It is in
[0, 1], and does not change when either gradient is scaled, or its input space rotated. In particular it is *unsigned*:
an opponent with gradient −Y scores as the proponent with Y. It ranks resemblance.

The code published with the multi-stage influence function (Bao et al. 2025, arXiv 2505.05017), whence the comparison
"GDP / CKA", gives each whole gradient to CKA as a matrix of *one* row, not centred, which is the squared cosine of the
two; ``rows="whole"`` is that.

Cost: one forward and one backward pass a document; for each block a gradient, d r² multiply-adds for its Gram matrix,
and Q r² for Q queries, whose Gram matrices are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from msif.attribution.cost import Cost, cka_work
from msif.attribution.gradients import Side, query_gradients
from msif.attribution.partial import PartialScores
from msif.attribution.scorers import InfluenceScorer, Scores, score_batches
from msif.curvature.inputs import device_and_dtype
from msif.curvature.vectors import Vectors
from msif.errors import MsifError
from msif.models.blocks import TrackedModule
from msif.models.capture import Consumer, FiniteGuard
from msif.models.check import CheckedCapture
from msif.models.objectives import Measurement, Objective
from msif.models.outer import CHUNK_ELEMENTS, Outer, portions, sequence_gradients
from msif.models.select import match_modules


class CKAScorer:
    """Mean linear CKA of a query's and a candidate's gradients over their blocks; in [0, 1], without a sign.

    A block whose centred gradient is zero on either side counts as 0; blocks of a single row have no CKA and are left
    out.

    Args:
        query_side, candidate_side, measurement: as for ``InfluenceScorer``.
        rows: "units" for the definition above; "whole" for the published code's, the squared cosine.

    Raises:
        MsifError: an unknown choice, the two sides share no block, or only blocks of one row.
    """

    def __init__(
        self,
        query_side: Side,
        candidate_side: Side,
        *,
        measurement: str | Measurement = "loss",
        rows: Literal["units", "whole"] = "units",
    ) -> None:
        if rows not in ("units", "whole"):
            raise MsifError(f"the rows of CKA are '{rows}': choose 'units' or 'whole'.")
        shared, self.left_out = match_modules(list(query_side.tracked), list(candidate_side.tracked))
        if rows == "units":
            why = {module.name: _unfit(module) for module in candidate_side.tracked}
            self.left_out |= {name: why[name] for name in shared if why[name]}
            shared = [name for name in shared if not why[name]]
            if not shared:
                raise MsifError("every shared block has one row, where CKA is not defined: track larger --modules.")
        self.query_side = query_side.restricted(shared)
        self.candidate_side = candidate_side.restricted(shared)
        self.measurement = measurement
        self._cosine: InfluenceScorer | None = None
        if rows == "whole":
            self._cosine = InfluenceScorer(
                self.query_side, self.candidate_side, measurement=measurement, normalize="both"
            )

    def query_vectors(self, queries: Iterable[Any]) -> Any:
        """Module name -> unit Gram matrices of the queries' blocks, (Q, nb·r·r); for whole rows unit gradients.

        Raises:
            MsifError: no query, or NaN or infinity in a gradient.
        """
        if self._cosine is not None:
            return self._cosine.query_vectors(queries)
        device, dtype = device_and_dtype(self.candidate_side.model)
        vectors = query_gradients(self.query_side, queries, self.measurement)
        grams: Vectors = {}
        for module in self.candidate_side.tracked:
            grams[module.name] = unit_grams(vectors.pop(module.name).to(device, dtype), len(module.blocks))
        return grams

    def cost(self) -> Cost:
        if self._cosine is not None:
            return self._cosine.cost()
        side = self.candidate_side
        return Cost(
            vector=sum(module.d_out * module.block_rows for module in side.tracked),
            making=2 * sum(module.d_out * module.shape[1] for module in side.tracked),
            candidates=side.objective.loss_gradient,
            batch=lambda B, T, queries: cka_work(side.tracked, B, T, queries),
            query=cka_work(side.tracked, 1, 0, 0),
        )

    def score_vectors(self, vectors: Any, candidates: Iterable[Any], partial: PartialScores | None = None) -> Scores:
        """Similarity to vectors that ``query_vectors`` made, by one pass over candidates."""
        if self._cosine is not None:
            scores = self._cosine.score_vectors(vectors, candidates, partial)
            return Scores(scores.values**2, scores.candidates)
        side = self.candidate_side
        device, _ = device_and_dtype(side.model)
        consumer = _CKAPass(vectors, side.tracked)

        def score(batch: Any) -> Tensor:
            capture.run(side.objective, batch.to(device), [side.objective.loss_gradient])
            return consumer.scores

        with CheckedCapture(side.model, side.tracked, consumer) as capture:
            return score_batches(candidates, score, partial)

    def score(self, queries: Iterable[Any], candidates: Iterable[Any]) -> Scores:
        """
        Raises:
            MsifError: no query or no candidate, or NaN or infinity in a gradient.
        """
        return self.score_vectors(self.query_vectors(queries), candidates)


def _unfit(module: TrackedModule) -> str:
    """Why its blocks have no CKA, or nothing; a Gram matrix over the vocabulary would not fit."""
    if module.row_basis == "identity" and module.block_rows > 1:
        return "its rows are tokens"
    return "its blocks have one row" if module.block_rows == 1 else ""


def unit_grams(gradients: Tensor, blocks: int) -> Tensor:
    """XXᵀ / ‖XXᵀ‖_F of each block's centred gradient, (n, blocks·r·r), from (n, d_out, d); zero where X is.

    ⟨·, ·⟩ of two such rows is the sum of their blocks' CKA.
    """
    X = gradients.unflatten(1, (blocks, -1))
    largest = X.abs().amax((2, 3), keepdim=True)
    # to largest entry 1 first: fourth powers of small gradients would underflow
    X = X / torch.where(largest > 0, largest, torch.ones_like(largest))
    X = X - X.mean(2, keepdim=True)
    # equal rows centre to rounding error, which is not a direction
    noise = 4 * X.shape[2] * torch.finfo(X.dtype).eps
    X = torch.where(X.abs().amax((2, 3), keepdim=True) > noise, X, torch.zeros_like(X))
    gram = X @ X.transpose(2, 3)
    norm = gram.square().sum((2, 3), keepdim=True).sqrt()
    return (gram / torch.where(norm > 0, norm, torch.ones_like(norm))).flatten(1)


class _CKAPass(Consumer):
    """After a run, ``scores`` is (B, Q)."""

    def __init__(self, grams: Vectors, tracked: Iterable[TrackedModule]) -> None:
        self.grams = grams
        self.blocks = sum(len(module.blocks) for module in tracked)
        self.scores = torch.empty(0)
        self._guard = FiniteGuard("the gradient")

    def begin(self, batch: Any, objective: Objective) -> None:
        some = next(iter(self.grams.values()))
        self.scores = some.new_zeros(len(batch), len(some))

    def backward(self, module: TrackedModule, uses: Sequence[Outer]) -> None:
        grams = self.grams[module.name]
        each = module.d_out * max(module.shape[1], module.block_rows)
        for part in portions(len(self.scores), each, self.scores.device, CHUNK_ELEMENTS):
            gradients = sequence_gradients([use.of(part).to(grams.dtype) for use in uses], module.d_out)
            self._guard.watch(module.name, gradients.sum())
            self.scores[part] += unit_grams(gradients, len(module.blocks)) @ grams.T

    def end(self, batch: Any) -> None:
        self.scores /= self.blocks
        self._guard.check(batch)
