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
    return max(_foretold(masks, losses, scores, ridge) for ridge in RIDGES)


def taught_scores(masks: np.ndarray, losses: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(Q, N): the scores, corrected by all halves in this way. They order documents better than any method that sees no
    retraining, if an additive score can."""
    ridge = max(RIDGES, key=lambda ridge: _foretold(masks, losses, scores, ridge))
    return np.stack([_taught(masks, loss, own, ridge) for loss, own in zip(losses.T, scores, strict=True)])


def _foretold(masks: np.ndarray, losses: np.ndarray, scores: np.ndarray, ridge: float) -> float:
    """Spearman's correlation of halves with what the others teach of them, mean over queries."""
    fold = np.arange(len(masks)) % FOLDS
    found = []
    for loss, own in zip(losses.T, scores, strict=True):
        foretold = np.empty(len(masks))
        for out in (fold == number for number in range(FOLDS)):
            taught = _taught(masks[~out], loss[~out], own, ridge)
            foretold[out] = -((masks[out] - masks[~out].mean(0)) @ taught)  # all folds have one mean
        found.append(spearmanr(foretold, loss)[0])
    return float(np.mean(found))


def _taught(masks: np.ndarray, losses: np.ndarray, scores: np.ndarray, ridge: float) -> np.ndarray:
    """One query's scores (N,), in ranks of a loss: their best multiple, and a correction for what is left."""
    kept, measured = masks - masks.mean(0), rankdata(losses)
    slope, start = np.polyfit(-(kept @ scores), measured, 1)
    size = np.abs(scores) + LEAST * np.abs(scores).mean()
    weighed = kept * size
    scale = np.square(weighed).sum(1).mean()
    rest = measured - start + slope * (kept @ scores)
    correction = weighed.T @ np.linalg.solve(weighed @ weighed.T / scale + ridge * np.eye(len(masks)), rest) / scale
    return slope * scores - size * correction
