"""TRAK and LoGra on the pair, with their kernel or curvature from all of the attribution set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from tqdm import tqdm

from experiments.fact_tracing.candidates import Ranking
from experiments.fact_tracing.models import Models
from msif.attribution import logra, trak
from msif.attribution.features import GradientProjector
from msif.attribution.stages import build_scorer


def trak_scores(models: Models, ranking: Ranking, seed: int) -> dict[str, np.ndarray]:
    """TRAK with one checkpoint and Q applied token by token (``msif.attribution.trak``), (Q, N)."""
    projection = replace(trak.DEFAULT_PROJECTION, seed=seed)
    scorer = build_scorer("trak", models.stage("pretrained"), models.stage("finetuned"), projection=projection)
    scores = scorer.score(models.queries(ranking.asked), models.sentences(ranking.rows))
    return {"score/all": scores.values}


def logra_scores(models: Models, ranking: Ranking, seed: int) -> dict[str, np.ndarray]:
    """LoGra (``msif.attribution.logra``), (Q, N), and √(φᵀ (K + λI)⁻¹ φ) of each candidate, (1, N).

    Over that norm it is the cosine in the metric of the curvature: TrackStar's score (Chang et al. 2024, arXiv
    2410.17413) without Adam's moments and without the mixture of two curvatures.
    """
    projection = replace(logra.DEFAULT_PROJECTION, seed=seed)
    scorer = build_scorer("logra", models.stage("pretrained"), models.stage("finetuned"), projection=projection)
    assert isinstance(scorer, logra.LoGraScorer)
    vectors = scorer.query_vectors(models.queries(ranking.asked))
    side, features, rows = scorer.candidate_side, [], []
    with GradientProjector(side, scorer.projection, [side.objective.loss_gradient]) as project:
        for batch in tqdm(models.sentences(ranking.rows), desc="projecting", unit="batch", disable=None):
            features.append(project(batch)[0])
            rows.append(batch.indices)
    phi = torch.cat(features)[torch.cat(rows).argsort()].to(vectors.dtype)
    assert scorer.kernel is not None
    solved = scorer.kernel.solve(phi, scorer.damping, scorer.damping_scale)
    norms = (phi * solved.T).sum(1).sqrt()
    return {"score/all": (phi @ vectors).T.cpu().numpy(), "norm/all": norms[None].cpu().numpy()}
