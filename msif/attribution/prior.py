"""A prior from search: what words say of a document beside its influence."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from msif.attribution.results import Ranking
from msif.errors import MsifError


@dataclass(frozen=True)
class Prior:
    """How much BM25+ counts, in standard deviations of either over a query's candidates."""

    weight: float

    def beside(self, influences: np.ndarray, lexical: np.ndarray) -> tuple[float, np.ndarray]:
        """1/σ(influence), and W · BM25/σ(BM25), of k candidates: score = scale · influence + added.

        BM25 is not centred: what shares no word with the query keeps its influence. A constant side adds nothing to
        the order and is not divided.
        """
        # in float64: squares of small or large influences are not of float32
        spread, wide = (float(np.std(values, dtype=np.float64)) or 1.0 for values in (influences, lexical))
        return 1 / spread, self.weight * lexical / wide


def parse_prior(text: str) -> Prior:
    """
    Args:
        text: "bm25:W", with W above 0.

    Raises:
        MsifError: it is something else.
    """
    kind, _, number = text.partition(":")
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if kind != "bm25" or not 0 < weight < math.inf:
        raise MsifError(f"the prior is '{text}': write bm25:W with a weight W above 0, such as bm25:0.5.")
    return Prior(weight)


def with_prior(ranking: Ranking, lexical: np.ndarray, prior: Prior) -> Ranking:
    """A query's candidates with the prior (``Prior.beside``), ranked anew.

    Args:
        lexical: BM25+ of the ranking's rows, (k,).
    """
    scale, added = prior.beside(ranking.scores, lexical)
    scores = scale * ranking.scores.astype(np.float64) + added
    order = np.lexsort((ranking.rows, -scores))
    return replace(ranking, rows=ranking.rows[order], scores=scores[order], prior=added[order], scale=scale)
