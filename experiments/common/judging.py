"""How well scores foretell the retrainings: the linear datamodelling score, of single members and of ensembles.

Letters: K members, Q queries, N documents, M halves, S seeds, O orders of the same seed's batches.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from msif.draws import generator
from msif.evaluation.datamodelling import linear_datamodelling_score, noise_ceiling
from msif.evaluation.intervals import Interval

RESAMPLING_STREAM, RESAMPLES = 13, 1000
SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Of the averages that tables show."""
ROUNDING = 1e-6
"""Products of variances of ranks below it are those of a constant."""


class Judge:
    """The halves and what was measured on them.

    Args:
        masks: bool (M, N), the documents of each half.
        losses: (M, S, O, Q), of S seeds with O orders on each, or (M, S, Q) of one.
    """

    def __init__(self, masks: np.ndarray, losses: np.ndarray) -> None:
        self.masks, self.all = masks, losses if losses.ndim == 4 else losses[:, :, None]
        self.losses = self.all.mean(2)
        self.measured = self.losses.mean(1)
        # for intervals, both halves and queries are drawn again; each score's draws are the same ones
        draw = generator(0, RESAMPLING_STREAM)
        halves, queries = len(masks), self.losses.shape[2]
        self._halves, self._queries = _weights(draw, halves), _weights(draw, queries)
        self.ceiling = float(noise_ceiling(self.losses).mean())

    def of_queries(self, places: Sequence[int]) -> Judge:
        """The same of some queries alone."""
        return Judge(self.masks, self.all[..., list(places)])

    @property
    def own_ceiling(self) -> float | None:
        """What a perfect predictor of a seed's loss, expected over orders, would reach; None for one order."""
        if self.all.shape[2] < 2:
            return None
        return float(np.mean([noise_ceiling(self.all[:, seed]) for seed in range(self.all.shape[1])]))

    def score(self, scores: np.ndarray) -> float:
        """The mean over queries, of scores (Q, N)."""
        return float(linear_datamodelling_score(scores, self.masks, self.measured).mean())

    def own(self, scores: np.ndarray) -> Interval:
        """Of scores (S, Q, N), each judged by the retrainings of its own seed, or (1, Q, N) by those of every seed: the
        mean over seeds, with 95 % of drawing halves and queries again."""
        return _interval(self._own(scores))

    def own_difference(self, scores: np.ndarray, others: np.ndarray) -> Interval:
        """The same of the first's score less the second's, on the same draws."""
        return _interval(self._own(scores) - self._own(others))

    def single(self, scores: np.ndarray) -> float:
        """The mean over members, each alone, of scores (K, Q, N)."""
        return float(np.mean([self.score(one) for one in scores]))

    def alone(self, scores: np.ndarray) -> Interval:
        """``single``, with 95 % of drawing halves and queries again."""
        return _interval(self._alone(scores))

    def alone_difference(self, scores: np.ndarray, others: np.ndarray) -> Interval:
        """The same of the first's score less the second's, on the same draws."""
        return _interval(self._alone(scores) - self._alone(others))

    def together(self, scores: np.ndarray, size: int | None = None) -> float:
        """The mean over disjoint groups of ``size`` members (all by default), whose scores are averaged."""
        size = size or len(scores)
        groups = [scores[start : start + size] for start in range(0, len(scores) - size + 1, size)]
        return float(np.mean([self.score(group.mean(0)) for group in groups]))

    def interval(self, scores: np.ndarray) -> Interval:
        """95 % of the means of drawing halves and queries again, of scores (Q, N); ranks are kept."""
        return _interval(self._drawn(scores, self.measured))

    def difference(self, scores: np.ndarray, others: np.ndarray) -> Interval:
        """The same of the first's score less the second's, on the same draws."""
        return _interval(self._drawn(scores, self.measured) - self._drawn(others, self.measured))

    def _alone(self, scores: np.ndarray) -> np.ndarray:
        return np.mean([self._drawn(one, self.measured) for one in scores], axis=0)

    def _own(self, scores: np.ndarray) -> np.ndarray:
        seeds = self.losses.shape[1]
        each = np.broadcast_to(scores, (seeds, *scores.shape[1:]))
        return np.mean([self._drawn(each[seed], self.losses[:, seed]) for seed in range(seeds)], axis=0)

    def _drawn(self, scores: np.ndarray, losses: np.ndarray) -> np.ndarray:
        """The score of all halves and queries, and that of each resampling, (1 + R,); losses are (M, Q)."""
        foretold = rankdata(-(self.masks.astype(np.float64) @ scores.T.astype(np.float64)), axis=0)
        measured = rankdata(losses, axis=0)
        W = self._halves
        means = W @ foretold, W @ measured
        products = W @ (foretold * measured) - means[0] * means[1]
        variances = (W @ foretold**2 - means[0] ** 2) * (W @ measured**2 - means[1] ** 2)
        # where all halves are foretold alike nothing is foretold: the products are zero, too
        return (self._queries * products / np.sqrt(np.maximum(variances, ROUNDING))).sum(1)


def random_halves(draw: np.random.Generator, halves: int, documents: int) -> np.ndarray:
    """Which documents each half keeps, ⌊N/2⌋ of them, bool (M, N)."""
    masks = np.zeros((halves, documents), dtype=bool)
    for mask in masks:
        mask[draw.permutation(documents)[: documents // 2]] = True
    return masks


def random_splits(draw: np.random.Generator, halves: int, documents: int) -> np.ndarray:
    """Random halves, bool (M, N), every two of which share out all documents."""
    first = random_halves(draw, (halves + 1) // 2, documents)
    return np.stack([first, ~first], axis=1).reshape(-1, documents)[:halves]


def _weights(draw: np.random.Generator, size: int) -> np.ndarray:
    """Shares of each of ``size``: all alike, then as drawn with replacement, (1 + R, size)."""
    drawn = draw.multinomial(size, np.full(size, 1 / size), RESAMPLES)
    return np.concatenate([np.ones((1, size)), drawn]) / size


def _interval(draws: np.ndarray) -> Interval:
    """The first is of everything, the others of resamplings."""
    low, high = np.quantile(draws[1:], [0.025, 0.975])
    return Interval(float(draws[0]), float(low), float(high))
