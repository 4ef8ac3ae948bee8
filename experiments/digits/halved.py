"""Averages over pairs that were trained on random halves of the images.

A linear datamodel's weight of an image is the mean, over random halves of the others, of what it changes. So the place
to ask for a derivative is a model trained on such a half, and the answer a mean over many of them (docs/method.md). An
image that a model has seen has a small gradient there, and one that it has not a large one: the scores of the two are
scaled apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.common.judging import SIZES
from experiments.digits.study import Study
from msif.reporting.tables import Table


def scaled_apart(scores: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Scores (K, Q, N), each in standard deviations over the images that its model has seen (K, N), or has not."""
    result = np.empty_like(scores)
    for own, mask, scaled in zip(scores, seen, result, strict=True):
        for part in (mask, ~mask):
            scaled[:, part] = in_deviations(own[:, part])
    return result


def in_deviations(scores: np.ndarray) -> np.ndarray:
    """In standard deviations over documents, the last axis."""
    return scores / scores.std(-1, keepdims=True)


def halved_table(study: Study) -> Table:
    """The score of averages over more and more pairs, each trained on a half."""
    judge, count = study.judge, study.settings.halved
    sizes = [size for size in SIZES[1:] if size <= count]
    rows: list[list[Any]] = []
    for name, scores in study.halved.items():
        method = next(method for method in study.methods if method.name == name)
        apart, whole = scaled_apart(scores, study.seen), study.scored[name]
        both = None
        if len(whole) == count:
            both = judge.score(in_deviations(apart.mean(0)) + in_deviations(in_deviations(whole).mean(0)))
        alone = [judge.together(apart, size) for size in sizes]
        interval = f"{judge.interval(apart.mean(0)):.3f}"
        rows.append([method.family, method.damping, method.alpha, *alone, interval, judge.together(scores), both])
    columns = ["method", "λ_pt", "α", *(f"{size} halves" for size in sizes)]
    rest = ["all, 95 %", "all, not scaled", "with as many on all images"]
    title = f"Pairs trained on halves; noise ceiling {judge.ceiling:.3f}"
    return Table([*columns, *rest], rows, title, dict.fromkeys([*columns[3:], *rest[1:]], ".3f"))
