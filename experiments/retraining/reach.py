"""What sums of scores could reach: their noise ceiling, and what retraining itself would teach them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from experiments.common.judging import Judge
from experiments.retraining.additive import taught_additive
from msif.reporting.tables import Table

TAUGHT = "the same, corrected by retrainings on nine tenths of the halves"


def reach_table(judge: Judge, scores: Mapping[str, np.ndarray], each: str, title: str) -> Table:
    """
    Args:
        scores: what they are by -> (S, Q, N) of S models.
        each: the column of each model judged by its own retrainings.
    """
    rows: list[list[object]] = []
    for name, own in scores.items():
        mean = own.mean(0)
        by_model = [taught_additive(judge.masks, judge.losses[:, seed], one) for seed, one in enumerate(own)]
        rows.append([name, judge.own(own).mean, judge.score(mean)])
        rows.append([TAUGHT, float(np.mean(by_model)), taught_additive(judge.masks, judge.measured, mean)])
    rows.append(["the expected loss itself: noise ceiling", judge.own_ceiling, judge.ceiling])
    columns = ["foretold by", each, "mean scores, mean losses"]
    return Table(columns, rows, title, dict.fromkeys(columns[1:], ".3f"))
