"""LoGra's scores with the norms that they can be taken over, from one pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from msif.attribution.features import GradientProjector
from msif.attribution.logra import LoGraScorer


def logra_scores(scorer: LoGraScorer, queries: Iterable[Any], candidates: Iterable[Any]) -> dict[str, np.ndarray]:
    """(Q, N), and √(φᵀ (K + λI)⁻¹ φ) of each candidate, (1, N).

    Over that norm it is the cosine in the metric of the curvature: TrackStar's score (Chang et al. 2024, arXiv
    2410.17413) without Adam's moments and without the mixture of two curvatures.
    """
    vectors = scorer.query_vectors(queries)
    side, features, rows = scorer.candidate_side, [], []
    with GradientProjector(side, scorer.projection, [side.objective.loss_gradient]) as project:
        for batch in tqdm(candidates, desc="projecting", unit="batch", disable=None):
            features.append(project(batch)[0])
            rows.append(batch.indices)
    phi = torch.cat(features)[torch.cat(rows).argsort()].to(vectors.dtype)
    assert scorer.kernel is not None
    solved = scorer.kernel.solve(phi, scorer.damping, scorer.damping_scale)
    norms = (phi * solved.T).sum(1).sqrt()
    return {"score/all": (phi @ vectors).T.cpu().numpy(), "norm/all": norms[None].cpu().numpy()}
