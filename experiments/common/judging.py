"""How well scores foretell the retrainings: the linear datamodelling score, of single members and of ensembles.

Letters: K members, Q queries, N documents, M halves.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from msif.draws import generator
from msif.evaluation.datamodelling import linear_datamodelling_score, noise_ceiling
from msif.evaluation.intervals import Interval

RESAMPLING_STREAM, RESAMPLES = 13, 1000


class Judge:
    """The halves and what was measured on them.

    Args:
        masks: bool (M, N), the documents of each half.
        losses: (M, S, Q), of S seeds on each.
    """

    def __init__(self, masks: np.ndarray, losses: np.ndarray) -> None:
        self.masks, self.measured = masks, losses.mean(1)
        # for intervals, both halves and queries are drawn again; each score's draws are the same ones
        draw = generator(0, RESAMPLING_STREAM)
        halves, queries = len(masks), losses.shape[2]
        self._halves = draw.multinomial(halves, np.full(halves, 1 / halves), RESAMPLES) / halves
        self._queries = draw.multinomial(queries, np.full(queries, 1 / queries), RESAMPLES) / queries
        self.ceiling = float(noise_ceiling(losses[:, ::2].mean(1), losses[:, 1::2].mean(1)).mean())

    def score(self, scores: np.ndarray) -> float:
        """The mean over queries, of scores (Q, N)."""
        return float(linear_datamodelling_score(scores, self.masks, self.measured).mean())

    def single(self, scores: np.ndarray) -> float:
        """The mean over members, each alone, of scores (K, Q, N)."""
        return float(np.mean([self.score(one) for one in scores]))

    def together(self, scores: np.ndarray, size: int | None = None) -> float:
        """The mean over disjoint groups of ``size`` members (all by default), whose scores are averaged."""
        size = size or len(scores)
        groups = [scores[start : start + size] for start in range(0, len(scores) - size + 1, size)]
        return float(np.mean([self.score(group.mean(0)) for group in groups]))

    def interval(self, scores: np.ndarray) -> Interval:
        """95 % of the means of drawing halves and queries again, of scores (Q, N); ranks are kept."""
        draws = self._drawn(scores)
        low, high = np.quantile(draws, [0.025, 0.975])
        return Interval(self.score(scores), float(low), float(high))

    def difference(self, scores: np.ndarray, others: np.ndarray) -> Interval:
        """The same of the first's score less the second's, on the same draws."""
        low, high = np.quantile(self._drawn(scores) - self._drawn(others), [0.025, 0.975])
        return Interval(self.score(scores) - self.score(others), float(low), float(high))

    def _drawn(self, scores: np.ndarray) -> np.ndarray:
        """The score of each resampling, (R,)."""
        foretold = rankdata(-(self.masks.astype(np.float64) @ scores.T.astype(np.float64)), axis=0)
        measured = rankdata(self.measured, axis=0)
        W = self._halves
        means = W @ foretold, W @ measured
        products = W @ (foretold * measured) - means[0] * means[1]
        variances = (W @ foretold**2 - means[0] ** 2) * (W @ measured**2 - means[1] ** 2)
        return (self._queries * products / np.sqrt(variances)).sum(1)
