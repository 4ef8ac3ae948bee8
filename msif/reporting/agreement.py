"""How far two rankings of one query agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from msif.reporting.runs import Scored

FIRST = 10
FEWEST = 3  # documents in common that a correlation needs to say anything


def ranks_of(scored: Scored) -> dict[str, int]:
    """Id -> rank, from 1."""
    return {id: rank for rank, id in enumerate(scored.ids, 1)}


def agreement(a: Scored, b: Scored) -> dict[str, Any]:
    """
    Returns:
        spearman: over the documents that both scored; None where there are too few, or all scores are equal.
        overlap: of the first ten of each, how many are the same, and ``of`` how many.
        common: how many documents both scored.
    """
    from msif.evaluation.correlation import spearman  # takes seconds, and most pages need none

    first = min(FIRST, len(a.ids), len(b.ids))
    overlap = len(set(a.ids[:first]) & set(b.ids[:first]))
    found: dict[str, Any] = {"overlap": overlap, "of": first, "common": 0, "spearman": None}
    of_b: Mapping[str, float] = dict(zip(b.ids, b.scores.tolist(), strict=True))
    pairs = [(score, of_b[id]) for id, score in zip(a.ids, a.scores.tolist(), strict=True) if id in of_b]
    found["common"] = len(pairs)
    if len(pairs) >= FEWEST:
        left, right = np.array(pairs).T
        if np.isfinite(left).all() and np.isfinite(right).all():
            value = float(spearman(left, right))
            found["spearman"] = round(value, 4) if value == value else None
    return found
