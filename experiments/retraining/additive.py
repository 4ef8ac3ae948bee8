"""How well any additive score could foretell losses on halves: one that retraining itself has taught."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata, spearmanr

FOLDS = 10
RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0)
"""Noise by signal of what is added to the scores; the best on average over queries is taken."""
LEAST = 0.3
"""How much a document of score zero may change, by the mean magnitude of a query's scores."""


def taught_additive(masks: np.ndarray, losses: np.ndarray, scores: np.ndarray) -> float:
    """Spearman's correlation, mean over queries, of losses with what the scores foretell once retrainings correct them.

    A query's scores are scaled, and each document's is corrected in proportion to its size, by a ridge regression on
    the losses of nine tenths of the halves; the others are foretold. It is a lower bound of what an additive score can
    reach, for more halves would teach it more.

    Args:
        masks: bool (M, N), the documents of each half.
        losses: (M, Q).
        scores: (Q, N), positive for a proponent.
    """
    return max(
        float(np.mean([_foretold(masks, loss, own, ridge) for loss, own in zip(losses.T, scores, strict=True)]))
        for ridge in RIDGES
    )


def _foretold(masks: np.ndarray, losses: np.ndarray, scores: np.ndarray, ridge: float) -> float:
    """Of one query."""
    kept = masks - masks.mean(0)
    size = np.abs(scores) + LEAST * np.abs(scores).mean()
    weighed = kept * size
    kernel = weighed @ weighed.T / np.square(weighed).sum(1).mean()
    measured, foretold = rankdata(losses), -(kept @ scores)
    found = np.empty(len(losses))
    for fold in range(FOLDS):
        out = np.arange(len(losses)) % FOLDS == fold
        slope, start = np.polyfit(foretold[~out], measured[~out], 1)
        rest = measured - start - slope * foretold
        taught = np.linalg.solve(kernel[np.ix_(~out, ~out)] + ridge * np.eye((~out).sum()), rest[~out])
        found[out] = start + slope * foretold[out] + kernel[np.ix_(out, ~out)] @ taught
    return float(spearmanr(found, measured)[0])
