"""The table of both questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common.judging import Judge
from experiments.nearby.methods import Near
from msif.reporting.tables import Table

COLUMNS = (
    "asked",
    "method",
    "halves",
    "step",
    "each model by its own",
    "more than the models themselves",
    "proponents alone",
    "mean scores, mean losses",
)
Part = tuple[str, Judge, Sequence[Near], Mapping[str, np.ndarray]]
"""What is asked, what judges, and the scores (S, Q, N) of each method by its name."""


def near_table(parts: Sequence[Part]) -> Table:
    """In the order of the methods, each against its family's first."""
    lines = [_line(*part, near) for part in parts for near in part[2]]
    first = parts[0][1]
    return Table(
        COLUMNS,
        lines,
        f"Linear datamodelling score with halves that are foretold: {len(first.masks)} halves that judge, "
        f"{first.losses.shape[1]} models, {first.masks.shape[1]} documents, "
        + " and ".join(f"{judge.measured.shape[1]} {asked}" for asked, judge, *_ in parts)
        + "; 95 % intervals draw halves and queries again",
        dict.fromkeys(COLUMNS[6:], ".3f"),
    )


def _line(asked: str, judge: Judge, nears: Sequence[Near], scores: Mapping[str, np.ndarray], near: Near) -> list[Any]:
    own = scores[near.method.name]
    itself = next(one for one in nears if one.family == near.family)
    gain = None if near is itself else f"{judge.own_difference(own, scores[itself.method.name]):+.3f}"
    halves = near.halves
    count = halves and halves.count
    step = halves and f"{halves.step:g}" + ", by loss" * halves.of_loss
    proponents, together = judge.own(np.maximum(own, 0)).mean, judge.score(own.mean(0))
    return [asked, near.family, count, step, f"{judge.own(own):.3f}", gain, proponents, together]
