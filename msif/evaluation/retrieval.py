"""How well a ranking finds documents that are known to be right, such as the sources of a fact.

Ties count against the method: documents of one score all have the worst rank among them, so that a score which says
nothing earns nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from msif.errors import MsifError


def ranks(scores: ArrayLike) -> np.ndarray:
    """Rank of each of n scores, int64 (n,); 1 is the largest.

    Raises:
        MsifError: NaN or infinity.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).all():
        raise MsifError("scores with NaN or infinity have no ranks: look at the method that gave them.")
    return rankdata(-values, method="max").astype(np.int64)


def reciprocal_rank(scores: ArrayLike, relevant: ArrayLike) -> float:
    """1 / the rank of the first relevant document; its mean over queries is the MRR.

    Args:
        scores: (n,).
        relevant: bool (n,), which documents are right.

    Raises:
        MsifError: none is relevant.
    """
    return 1.0 / float(_relevant_ranks(scores, relevant).min())


def hit_at(scores: ArrayLike, relevant: ArrayLike, k: int) -> float:
    """1 if a relevant document is among the first k, else 0. Arguments as for ``reciprocal_rank``."""
    return float(_relevant_ranks(scores, relevant).min() <= k)


def recall_at(scores: ArrayLike, relevant: ArrayLike, k: int) -> float:
    """The share of the relevant documents among the first k. Arguments as for ``reciprocal_rank``."""
    return float((_relevant_ranks(scores, relevant) <= k).mean())


def _relevant_ranks(scores: ArrayLike, relevant: ArrayLike) -> np.ndarray:
    found = ranks(scores)[np.asarray(relevant, dtype=bool)]
    if not len(found):
        raise MsifError("none of the candidates is relevant: put the known sources among them.")
    return found
