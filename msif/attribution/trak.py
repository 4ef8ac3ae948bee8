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

Cost for each checkpoint: one forward and one backward pass over queries, one forward and two backward over candidates
(one, for "example" or with kernel data), D² N multiply-adds for N rows of Φ and D³/3 for the solve; N × D features are
kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from msif.attribution.gradients import Side
from msif.attribution.projection import (
    GradientProjector,
    Projection,
    add_gram,
    measurement_cotangent,
    query_features,
    solve_damped,
)
from msif.attribution.scorers import Scores
from msif.curvature.filters import DampedInverse
from msif.errors import MsifError
from msif.models.objectives import Categorical, Measurement, Objective
from msif.models.select import match_modules

# as in the published comparison; two-sided features are summed into these many
DEFAULT_PROJECTION = Projection(p_out=64, p_in=64, dimension=4096)


class TRAKScorer:
    """Scores by TRAK, with one checkpoint or several.

    λ is added to ΦᵀΦ, a sum over sequences: a λ of the mean loss (``EKFAC``, ``CG``) is N times larger here, N the
    number of supervised tokens. The paper has λ = 0, which needs more sequences than features.

    Args:
        members: the checkpoints, each one ``Side``, or (query side, candidate side). Any collection that can be gone
            over again; one that loads its models as it goes needs the memory of one.
        projection: member i uses its seed + i. Default: 64 × 64 a module, 4096 in all.
        output: the output function m, by name or as a callable; see ``query_gradients``.
        weighting: where Q is applied.
        damping, damping_scale: λ, absolute, or relative to the mean eigenvalue of ΦᵀΦ where no damping is given.
        kernel_data: batches of the sequences of Φ; None takes the candidates. Their kernel is formed once.

    Raises:
        MsifError: an unknown choice, or a weighting by example of an output other than the margin.
    """

    def __init__(
        self,
        members: Iterable[Side | tuple[Side, Side]],
        projection: Projection | None = None,
        *,
        output: str | Measurement = "margin",
        weighting: Literal["token", "example"] = "token",
        damping: float | None = None,
        damping_scale: float = 0.1,
        kernel_data: Iterable[Any] | None = None,
    ) -> None:
        if weighting not in ("token", "example"):
            raise MsifError(f"TRAK's weighting is '{weighting}': choose 'token' or 'example'.")
        if weighting == "example" and output != "margin":
            raise MsifError("one Q for each example is defined for the margin only: choose the weighting 'token'.")
        if iter(members) is members or (kernel_data is not None and iter(kernel_data) is kernel_data):
            raise MsifError("TRAK goes over its checkpoints and kernel data several times: give lists, not iterators.")
        DampedInverse(damping, damping_scale)  # checks both
        self.members = members
        self.projection = projection or DEFAULT_PROJECTION
        self.output, self.weighting = output, weighting
        self.damping, self.damping_scale = damping, damping_scale
        self.kernel_data = kernel_data
        self._kernels: dict[int, Tensor] = {}

    def score(self, queries: Iterable[Any], candidates: Iterable[Any]) -> Scores:
        """
        Raises:
            MsifError: nothing to score or to score by, or a kernel that is singular.
        """
        if iter(queries) is queries or iter(candidates) is candidates:
            raise MsifError("TRAK goes over queries and candidates for each checkpoint: give lists, not iterators.")
        products, doubts, rows = [], [], torch.empty(0)
        for number, member in enumerate(self.members):
            query_side, candidate_side = member if isinstance(member, tuple) else (member, member)
            shared, _ = match_modules(list(query_side.tracked), list(candidate_side.tracked))
            projection = replace(self.projection, seed=(self.projection.seed + number) % 2**64)
            member_scorer = _Member(self, number, projection, candidate_side.restricted(shared))
            phi_q = query_features(query_side.restricted(shared), queries, projection, self.output)
            product, doubt, rows = member_scorer.score(phi_q, candidates)
            products.append(product)
            doubts.append(doubt)
        if not products:
            raise MsifError("TRAK needs at least one checkpoint.")
        values = torch.stack(products).mean(0)
        if self.weighting == "example":
            values = values * torch.stack(doubts).mean(0)
        order = rows.argsort(stable=True)
        return Scores(values[:, order].numpy(), rows[order].numpy().astype(np.int64))


class _Member:
    """One checkpoint's part of a score."""

    def __init__(self, scorer: TRAKScorer, number: int, projection: Projection, side: Side) -> None:
        self.scorer, self.number, self.projection, self.side = scorer, number, projection, side
        self.output = measurement_cotangent(side.objective, scorer.output)

    def score(self, phi_q: Tensor, candidates: Iterable[Any]) -> tuple[Tensor, Tensor, Tensor]:
        """φ(q)ᵀ (ΦᵀΦ + λI)⁻¹ φ(z) (Q, N), mean 1−p of the candidates (N,), and their row numbers (N,); on the CPU."""
        by_token, loss = self.scorer.weighting == "token", self.side.objective.loss_gradient
        total = self._kernel_of_data()
        kernel_here = total is None
        cotangents = [self.output] if kernel_here or not by_token else []
        cotangents += [loss] if by_token else []
        parts, doubts, rows = [], [], []
        with GradientProjector(self.side, self.projection, cotangents) as project:
            for batch in candidates:
                features = project(batch)
                if kernel_here:
                    total = self._added(total, features[0])
                if not by_token:
                    on_device = batch.to(features.device)
                    doubts.append(mean_doubt(self.side.objective, project.outputs, on_device).cpu())
                parts.append(features[-1].cpu())
                rows.append(batch.indices.cpu())
        if total is None or not parts:
            raise MsifError("there is no candidate to score.")
        options = self.scorer.damping, self.scorer.damping_scale, "TRAK's kernel"
        solved = solve_damped(total, phi_q.T.to(total.device), *options).cpu()
        product = torch.cat([(part.to(solved.dtype) @ solved).T for part in parts], dim=1)
        return product, torch.cat(doubts).to(solved.dtype) if doubts else torch.empty(0), torch.cat(rows)

    def _kernel_of_data(self) -> Tensor | None:
        """ΦᵀΦ of the kernel data, float64, (D, D); None where it is to be the candidates'."""
        if self.scorer.kernel_data is None:
            return None
        kernels = self.scorer._kernels
        if self.number not in kernels:
            total = None
            with GradientProjector(self.side, self.projection, [self.output]) as project:
                for batch in self.scorer.kernel_data:
                    total = self._added(total, project(batch)[0])
            if total is None:
                raise MsifError("there is no kernel data: TRAK needs training sequences.")
            kernels[self.number] = total
        return kernels[self.number]

    def _added(self, total: Tensor | None, features: Tensor) -> Tensor:
        if total is None:
            total = features.new_zeros(features.shape[1], features.shape[1], dtype=torch.float64)
        add_gram(total, features)
        return total


def mean_doubt(objective: Objective, outputs: Tensor, batch: Any) -> Tensor:
    """Mean of 1−p over each sequence's supervised predictions, (B,): TRAK's Q, one for each example.

    1−p = 1/(1 + exp(margin)), which keeps its digits where p is close to 1.

    Raises:
        MsifError: the objective has no classes.
    """
    if not isinstance(objective, Categorical):
        raise MsifError(f"{type(objective).__name__} has no probability of a label: choose the weighting 'token'.")
    logits = outputs.to(torch.float64 if outputs.dtype == torch.float64 else torch.float32)
    targets, mask = objective.targets(batch).unsqueeze(-1), objective.predicting(batch)
    others = logits.scatter(-1, targets, float("-inf")).logsumexp(-1)
    doubt = torch.sigmoid(others - logits.gather(-1, targets).squeeze(-1)).masked_fill(~mask, 0.0)
    return doubt.reshape(len(batch), -1).sum(1) / mask.reshape(len(batch), -1).sum(1).clamp(min=1)
