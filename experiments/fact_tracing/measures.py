"""From scores to measures: reciprocal rank, hit and recall at ten of every fact, in every reading of a method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.common.cache import Arrays
from experiments.common.methods import Method
from experiments.fact_tracing.candidates import Ranking
from experiments.fact_tracing.running import facts_of, summed
from msif.evaluation.intervals import Interval, bootstrap
from msif.evaluation.retrieval import hit_at, recall_at, reciprocal_rank

MEASURES = ("MRR", "hit@10", "recall@10")
TOP = 10
RESAMPLES = 2000


@dataclass(frozen=True)
class Measured:
    """One reading of a method.

    Attributes:
        modules: "all", "mlp" or "attention".
        unit: whether scores are over the candidate's gradient norm.
        facts: int64 (n,), which facts were asked.
        values: (n, 3), the measures of each.
        seconds: that the method took, all its readings together.
        residual: the relative one that its solver ended with, at worst; None where it has none.
    """

    method: Method
    modules: str
    unit: bool
    facts: np.ndarray
    values: np.ndarray
    seconds: float
    residual: float | None = None

    @property
    def mrr(self) -> float:
        return float(self.values[:, 0].mean())

    def of(self, facts: np.ndarray) -> np.ndarray:
        """Values of those of the facts that were asked."""
        return self.values[np.isin(self.facts, facts)]


def intervals(values: np.ndarray) -> list[Interval | None]:
    """Mean and 95 % bootstrap interval of each column; None where there is no row."""
    if not len(values):
        return [None] * values.shape[1]
    return [bootstrap(column, resamples=RESAMPLES) for column in values.T]


def measure(method: Method, arrays: Arrays, ranking: Ranking) -> list[Measured]:
    """All readings of a method's scores."""
    facts = facts_of(method, ranking)
    residual = float(arrays["residual"]) if "residual" in arrays else None
    return [
        Measured(
            method,
            modules,
            unit,
            np.array(facts),
            measures(ranking, facts, flat),
            float(arrays["seconds"]),
            residual,
        )
        for modules, unit, flat in readings(arrays)
    ]


def readings(arrays: Arrays) -> Iterator[tuple[str, bool, np.ndarray]]:
    """(modules, unit, scores): the sum over all kinds of modules, and each kind alone where that is a method too."""
    kinds = sorted(key.removeprefix("score/") for key in arrays if key.startswith("score/"))
    choices = {"all": kinds}
    if len(kinds) > 1:
        # beside the unembedding, the layers' maps have the scores that they have without it
        alone = ["unembedding"] if "unembedding" in kinds else kinds
        choices.update({kind: [kind] for kind in alone})
    for modules, chosen in choices.items():
        scores, norms = summed(arrays, chosen)
        yield modules, False, scores
        if norms is not None:
            yield modules, True, scores / np.maximum(norms, np.finfo(np.float64).tiny)


def measures(ranking: Ranking, facts: Sequence[int], flat: np.ndarray) -> np.ndarray:
    """(n, 3) from the scores of each fact's candidates, one fact after the other."""
    rows = []
    for fact, scores in zip(facts, ranking.parts(flat, facts), strict=True):
        relevant = ranking.relevant(fact)
        rows.append(
            (reciprocal_rank(scores, relevant), hit_at(scores, relevant, TOP), recall_at(scores, relevant, TOP))
        )
    return np.array(rows)
