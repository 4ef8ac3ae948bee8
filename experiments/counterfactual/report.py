"""Tables of a study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.counterfactual.methods import MULTI_STAGE, Method
from experiments.counterfactual.removal import RANDOM, Changes
from experiments.counterfactual.study import REFERENCE, Study
from msif.evaluation.intervals import bootstrap
from msif.reporting.tables import Table


def removal_table(changes: Mapping[tuple[str, int], Changes]) -> Table:
    """A row for each method and k: means over seeds and queries, with the spread of both."""
    rows: list[list[Any]] = []
    for (title, k), change in changes.items():
        losses, reference = change.losses, changes[REFERENCE, k].losses
        by_seed = losses.mean(1)
        ahead = None if title == REFERENCE else f"{bootstrap((reference - losses).mean(0)):+.2f}"
        rows.append(
            [
                title,
                k,
                f"{bootstrap(losses.mean(0)):+.2f}",
                f"{by_seed.min():+.2f} to {by_seed.max():+.2f}",
                float((losses.mean(0) > 0).mean()),
                float(change.probabilities.mean()),
                ahead,
            ]
        )
    rows.sort(key=lambda row: (row[1], -changes[row[0], row[1]].losses.mean()))
    seeds, queries = changes[RANDOM, rows[0][1]].losses.shape
    return Table(
        [
            "removed: the top of",
            "documents",
            "Δ loss",
            "over seeds",
            "queries whose loss rises",
            "Δ probability",
            f"Δ loss by {REFERENCE}, less this",
        ],
        rows,
        f"Change of a query's loss when its documents are left out of pre-training; {queries} queries, {seeds} seeds; "
        "95 % bootstrap intervals over queries",
        {"queries whose loss rises": ".0%", "Δ probability": "+.3f"},
    )


def lds_table(study: Study) -> Table:
    """Every method at every damping, best first; intervals draw halves and queries again."""
    judge, first, sizes = study.judge, study.judge_of_removals, study.sizes
    rows: list[list[Any]] = []
    for method in study.methods:
        scores = study.scores[method.name]
        together = scores.mean(0)
        on_all: list[Any] = [None] * 4
        if not method.dear:
            interval = judge.interval(together)
            spread = f"{interval.low:.2f} to {interval.high:.2f}"
            on_all = [judge.single(scores), interval.mean, spread, interval.mean / judge.ceiling]
        rows.append(
            [method.family, method.damping or None, len(scores), *on_all, first.score(together[: sizes.queries])]
        )
    rows.sort(key=lambda row: -row[-1] if row[4] is None else -row[4])
    columns = [
        "method",
        "λ",
        "models",
        "1 model",
        "averaged",
        "95 % of averaged",
        "of the ceiling",
        "removals' queries",
    ]
    return Table(
        columns,
        rows,
        f"Linear datamodelling score: {sizes.halves} halves, {sizes.half_seeds} seeds, {len(study.asked)} queries, "
        f"{sizes.queries} of them of removals; noise ceiling {judge.ceiling:.2f}, and {first.ceiling:.2f}",
        {"1 model": ".3f", "averaged": ".3f", "of the ceiling": ".0%", "removals' queries": ".3f"},
    )


def query_table(study: Study) -> Table:
    """The queries of removals, and how likely models trained on all documents find their answers."""
    asked, likely = study.asked, np.exp(-study.baseline)
    rows = [
        [asked.titles[q], asked.texts[q].replace("\n", " "), asked.answers[q], likely[:, q].mean(), likely[:, q].min()]
        for q in range(study.sizes.queries)
    ]
    return Table(
        ["query", "text", "explained", "mean probability", "least"],
        rows,
        f"Queries of removals, and their answers' probability over {len(likely)} seeds",
        {"mean probability": ".2f", "least": ".2f"},
    )


def single_best(study: Study) -> list[tuple[Method, str]]:
    """The methods of removals, and the best of the swept ones, best first, with a note on the latter."""
    judged = [m for m in study.methods if not m.dear]
    score = {m.name: study.judge.score(study.scores[m.name].mean(0)) for m in judged}
    rows = [(m, "") for m in judged if m.removed or m.family == "random"]
    swept = [m for m in judged if not m.removed and m.family == MULTI_STAGE]
    rows.append((max(swept, key=lambda m: score[m.name]), " (best of the sweep)"))
    return sorted(rows, key=lambda row: -score[row[0].name])
