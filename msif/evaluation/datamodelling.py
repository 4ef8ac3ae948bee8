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


def noise_ceiling(one: ArrayLike, other: ArrayLike) -> np.ndarray:
    """What a perfect predictor of the expected loss would reach, query by query.

    Two independent sets of retrainings on the same subsets, each averaged over its own seeds, are correlated to r;
    their union's mean has reliability 2r / (1 + r) (Spearman 1910; Brown 1910), and the expected loss correlates with
    it by the square root of that.

    Args:
        one, other: (M, Q), losses averaged over each set's seeds.

    Returns:
        (Q,), 0 where r is negative.
    """
    r = np.maximum(spearman(np.asarray(one).T, np.asarray(other).T), 0.0)
    return np.sqrt(2 * r / (1 + r))
