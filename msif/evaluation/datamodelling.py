"""Agreement of scores with retraining on subsets: the linear datamodelling score.

Park et al. 2023 (arXiv 2303.14186).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from msif.errors import MsifError
from msif.evaluation.correlation import spearman


def linear_datamodelling_score(scores: ArrayLike, masks: ArrayLike, losses: ArrayLike) -> np.ndarray:
    """Spearman between the losses after retraining on subsets and those that the scores foretell, query by query.

    A subset's foretold loss is minus the sum of its documents' scores, as a proponent makes the answer likelier.

    Args:
        scores: (Q, N), positive for a proponent.
        masks: bool (M, N), the documents that each of M retrainings kept.
        losses: (M, Q), each query's loss after each retraining.

    Returns:
        (Q,), NaN where a query's losses or scores are constant.

    Raises:
        MsifError: shapes that do not fit, fewer than two retrainings, NaN or infinity.
    """
    scores, losses = np.asarray(scores, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    kept = np.asarray(masks, dtype=np.float64)
    if scores.ndim != 2 or kept.shape != (len(losses), scores.shape[1]) or losses.shape != (len(kept), len(scores)):
        raise MsifError(
            f"scores {scores.shape}, masks {kept.shape} and losses {losses.shape} do not fit: they are (queries, "
            "documents), (retrainings, documents) and (retrainings, queries)."
        )
    return spearman(-(kept @ scores.T).T, losses.T)


def noise_ceiling(losses: ArrayLike) -> np.ndarray:
    """What a perfect predictor of the expected loss would reach against the mean over S retrainings, query by query.

    Means over two halves of the seeds are correlated to r; where S is odd, one seed after the other is left out and
    r is averaged. With k = S / ⌊S/2⌋ the mean over all seeds has reliability k r / (1 + (k − 1) r) (Spearman 1910;
    Brown 1910), and the expected loss correlates with it by the square root of that.

    Args:
        losses: (M, S, Q), on M subsets, from S seeds.

    Returns:
        (Q,), 0 where r is negative.

    Raises:
        MsifError: fewer than two seeds.
    """
    losses = np.asarray(losses, dtype=np.float64)
    seeds = losses.shape[1]
    if seeds < 2:
        raise MsifError("a noise ceiling needs retrainings from two seeds or more.")
    even = [np.delete(losses, out, 1) for out in range(seeds)] if seeds % 2 else [losses]
    r = np.mean([spearman(one[:, ::2].mean(1).T, one[:, 1::2].mean(1).T) for one in even], axis=0)
    r, k = np.maximum(r, 0.0), seeds / (seeds // 2)
    return np.sqrt(k * r / (1 + (k - 1) * r))
