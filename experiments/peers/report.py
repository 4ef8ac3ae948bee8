"""The table of all methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common.judging import Judge
from experiments.peers.methods import NEARBY
from experiments.peers.rows import OWN, Row
from experiments.peers.toolkits import TOOLKITS, Toolkit
from experiments.retraining.reach import reach_table
from msif.reporting.tables import Table

COLUMNS = (
    "toolkit",
    "method",
    "setting",
    "each model by its own",
    "msif at defaults, less this",
    "msif with `--halves 4`, less this",
    "proponents alone",
    "mean scores, mean losses",
    "seconds a model",
)


def score_table(judge: Judge, rows: Sequence[Row], absent: Sequence[Toolkit]) -> Table:
    """The linear datamodelling score of every row, best first; then what failed, and toolkits that did not take part.

    Args:
        rows: the library's come first, and of these its defaults.
        absent: toolkits that were given no environment.
    """
    judged = [row for row in rows if row.scores is not None]
    references = [rows[0], *(row for row in judged if row.toolkit == OWN and row.setting == NEARBY)]
    lines = sorted((_line(judge, row, references) for row in judged), key=lambda line: -line[0])
    failed = [_without(row.toolkit, row.method, row.setting, f"failed: {row.error}") for row in rows if row.error]
    left = [_without(one.name, "–", "–", f"not run: {one.flag} was not given") for one in absent]
    halves, seeds = len(judge.masks), judge.losses.shape[1]
    return Table(
        COLUMNS,
        [*(line for _, line in lines), *failed, *left],
        f"Linear datamodelling score of statements, single stage: {halves} halves, {seeds} models, "
        f"{judge.measured.shape[1]} queries, {judge.masks.shape[1]} documents; 95 % intervals draw halves and queries "
        f"again; noise ceiling of mean scores {judge.ceiling:.2f}",
        {**dict.fromkeys(COLUMNS[6:8], ".3f"), COLUMNS[8]: ".1f"},
    )


def _line(judge: Judge, row: Row, references: Sequence[Row]) -> tuple[float, list[Any]]:
    """With what each of the references has more; there may be one or both."""
    assert row.scores is not None
    own = judge.own(row.scores)
    ahead: list[str | None] = [None, None]
    for place, other in enumerate(references):
        if other is not row and other.scores is not None:
            ahead[place] = f"{judge.own_difference(other.scores, row.scores):+.3f}"
    proponents = judge.own(np.maximum(row.scores, 0)).mean
    together = judge.score(row.scores.mean(0))
    return own.mean, [row.toolkit, row.method, row.setting, f"{own:.3f}", *ahead, proponents, together, row.seconds]


def _without(*cells: str) -> list[Any]:
    """A line without figures."""
    return [*cells, *[None] * (len(COLUMNS) - len(cells))]


def ceiling_table(judge: Judge, rows: Sequence[Row]) -> Table:
    """What the library's defaults, and what asks otherwise with the same curvature, could reach."""
    usual = rows[0].setting
    own = [row for row in rows if row.toolkit == OWN and row.setting.startswith(usual)]
    scores = {f"{row.method}, {row.setting}": row.scores for row in own if row.scores is not None}
    title = f"What can be reached: {len(judge.masks)} halves, {judge.losses.shape[1]} models"
    return reach_table(judge, scores, COLUMNS[3], title)


def absent_toolkits(rows: Sequence[Row]) -> list[Toolkit]:
    """Of which there is no row."""
    present = {row.toolkit for row in rows} - {OWN}
    return [toolkit for toolkit in TOOLKITS if toolkit.name not in present]
