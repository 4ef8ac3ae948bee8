"""Trainings in segments, each seen through a checkpoint: SOURCE (Bae et al. 2024, arXiv 2405.12186)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from msif.attribution.composite import CompositeScorer
from msif.attribution.gradients import Side, query_gradients
from msif.attribution.scorers import InfluenceScorer
from msif.attribution.self_influence import product
from msif.curvature.preconditioners import Preconditioner


class SegmentedScorer(CompositeScorer):
    """I(z → q) = Σ_l ∇m(q; θ)ᵀ S_K ⋯ S_{l+1} R_l ∇L(z; θ_l), over the segments l of the first stage's training.

    R_l is what segment l accumulates from a gradient and S_l what it keeps of a displacement; after the first stage's
    L segments come those of fine-tuning, up to K (Bae et al. 2024, section 3.2; docs/method.md).

    Args:
        query_side: the last model.
        candidate_sides: the model of each segment of the first stage, L of them, in the order of training.
        accumulated: R_1 to R_L.
        kept: S_2 to S_K.
        options: of ``InfluenceScorer``.
    """

    def __init__(
        self,
        query_side: Side,
        candidate_sides: Sequence[Side],
        accumulated: Sequence[Preconditioner],
        kept: Sequence[Preconditioner],
        **options: Any,
    ) -> None:
        super().__init__(
            [
                InfluenceScorer(query_side, side, [own, *kept[number:]], **options)
                for number, (side, own) in enumerate(zip(candidate_sides, accumulated, strict=True))
            ]
        )

    def self_influence(self, documents: Iterable[Any]) -> Tensor:
        """Σ_l ∇L(d; θ_L)ᵀ S_L ⋯ S_{l+1} R_l ∇L(d; θ_l) over the L segments of the first stage, see ``SelfScorer``."""
        batches, count = list(documents), len(self.parts)
        last = query_gradients(self.candidate_side, batches)
        found = []
        for number, part in enumerate(self.parts):
            own = query_gradients(part.candidate_side, batches) if number < count - 1 else last
            found.append(product(own, last, part.preconditioners[: count - number]))
        return torch.stack(found).sum(0)
