"""Tables of a study."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import shorten
from typing import Any

import numpy as np

from experiments.common.judging import SIZES
from experiments.common.methods import Method
from experiments.retraining.methods import DEFAULT_DAMPING, GDP, MULTI_STAGE, UNIT
from experiments.retraining.reach import reach_table
from experiments.retraining.removal import Changes
from experiments.retraining.study import MEAN_OF_HALVES, REFERENCE, Study
from msif.evaluation.intervals import Interval, bootstrap
from msif.reporting.tables import Table

ENSEMBLES = (
    REFERENCE,
    *(f"{name}, λ = {DEFAULT_DAMPING}" for name in (UNIT, f"{MULTI_STAGE}, prior bm25:0.5", f"{UNIT}, prior bm25:0.5")),
    GDP,
    "gradient cosine",
)
"""Methods of which pairs are averaged."""


def removal_table(changes: Mapping[tuple[str, int], Changes], against: str = REFERENCE) -> Table:
    """A row for each method and k: means over queries, and paired differences from one method."""
    rows: list[list[Any]] = []
    for (title, k), change in changes.items():
        losses, reference = change.losses, changes[against, k].losses
        ahead = None if title == against else _signed(bootstrap((reference - losses).mean(0)))
        rows.append(
            [
                title,
                k,
                _signed(bootstrap(losses.mean(0))),
                float((losses.mean(0) > 0).mean()),
                float(change.probabilities.mean()),
                ahead,
            ]
        )
    rows.sort(key=lambda row: (row[1], -changes[row[0], row[1]].losses.mean()))
    pairs, queries = changes[against, rows[0][1]].losses.shape
    return Table(
        [
            "removed: the top of",
            "documents",
            "Δ loss",
            "queries whose loss rises",
            "Δ probability",
            f"Δ loss by {against}, less this",
        ],
        rows,
        f"Change of a query's loss, in nats, when its documents are left out of pre-training; {queries} queries, "
        f"{pairs} of the pairs for each, in turn; 95 % bootstrap intervals over queries",
        {"queries whose loss rises": ".0%", "Δ probability": "+.3f"},
    )


def _signed(interval: Interval) -> str:
    return f"{interval:+.2f}"


def lds_table(study: Study) -> Table:
    """Every method at every damping, best first; intervals draw halves and queries again."""
    judge, first, sizes = study.judge, study.judge_of_solved, study.sizes
    rows: list[tuple[float, list[Any]]] = []
    for method in study.methods:
        scores = study.scores[method.name]
        few = first.own(scores[:, : sizes.solved]).mean
        on_all: list[Any] = [None] * 5
        if not method.dear:
            together = judge.score(scores.mean(0))
            ahead = None if method.name == REFERENCE else _signed(judge.own_difference(study.scores[REFERENCE], scores))
            mean = judge.own(scores.mean(0, keepdims=True)).mean if len(scores) > 1 else None
            on_all = [f"{judge.own(scores):.3f}", ahead, mean, together, together / judge.ceiling]
        key = few if method.dear else judge.own(scores).mean
        rows.append((key, [method.family, method.damping or None, *on_all, few]))
    columns = [
        "method",
        "λ",
        "each pair by its own",
        f"{REFERENCE}, less this",
        "by the pairs' mean scores",
        "mean scores, mean losses",
        "of the ceiling",
        "solvers' queries, by own",
    ]
    return Table(
        columns,
        [row for _, row in sorted(rows, key=lambda row: -row[0])],
        f"Linear datamodelling score: {sizes.halves} halves, {sizes.seeds} pairs, {len(study.asked)} queries, "
        f"{sizes.solved} of them the solvers'; noise ceiling of mean scores {judge.ceiling:.2f}",
        {columns[4]: ".3f", columns[5]: ".3f", columns[6]: ".0%", columns[7]: ".3f"},
    )


def ensemble_table(study: Study) -> Table:
    """What pairs of other seeds add: each pair's own retrainings, foretold by its scores and those of the next ones."""
    judge, pairs = study.judge, study.sizes.seeds
    rows = []
    for name in ENSEMBLES:
        scores = study.scores.get(name)
        if scores is None:
            continue
        means = [np.stack([_next(scores, pair, size) for pair in range(pairs)]) for size in range(1, pairs + 1)]
        gain = judge.own_difference(means[-1], means[0])
        rows.append([name, *(f"{judge.own(mean):.3f}" for mean in means), _signed(gain)])
    sizes = [f"{size} pairs" if size > 1 else "the pair alone" for size in range(1, pairs + 1)]
    return Table(
        ["mean of the scores of", *sizes, "all, less the pair alone"],
        rows,
        f"Linear datamodelling score of each pair by its own retrainings: {study.sizes.halves} halves, {pairs} pairs, "
        f"{len(study.asked)} queries; 95 % of drawing halves and queries again",
    )


def bag_table(study: Study) -> Table:
    """What pairs trained on other halves of the documents foretell, from the first weights of the pair itself."""
    judge, bags = study.judge, study.sizes.bags
    sizes = [size for size in SIZES if size <= bags]
    rows = []
    for name, scores in study.bags.items():
        alone = study.scores[name]
        every = scores.mean(0)
        means = [scores[:size].mean(0) for size in sizes]
        beside = (scores.sum(0) + alone) / (bags + 1)
        together = every.mean(0, keepdims=True)
        found = [f"{judge.own(one):.3f}" for one in (alone, *means, beside, together)]
        rows.append([name, *found, _signed(judge.own_difference(every, alone)), judge.score(every.mean(0))])
    named = [f"{size} halves" if size > 1 else "one half" for size in sizes]
    last = [f"{named[-1]} and the pair", "halves of all pairs", f"{named[-1]}, less the pair alone"]
    last.append("mean scores, mean losses")
    return Table(
        ["mean of the scores of", "the pair alone", *named, *last],
        rows,
        "Linear datamodelling score of each pair by its own retrainings, foretold by pairs from the same first weights "
        f"that were trained on other halves: {study.sizes.halves} halves, {study.sizes.seeds} pairs, "
        f"{len(study.asked)} queries; noise ceiling of mean scores {judge.ceiling:.2f}",
        {last[-1]: ".3f"},
    )


def proponent_table(study: Study) -> Table:
    """What opponents, documents with negative scores, say of retraining: sums with them and without."""
    judge, main = study.judge, [method for method in study.methods if method.main and not method.dear]
    scored = {method.name: study.scores[method.name] for method in main if method.search is None}
    scored |= {name + MEAN_OF_HALVES: scores.mean(0) for name, scores in study.bags.items()}
    rows: list[tuple[float, list[Any]]] = []
    for name, scores in scored.items():
        proponents = np.maximum(scores, 0)
        alone = judge.own(proponents)
        gain = _signed(judge.own_difference(proponents, scores))
        means = [judge.score(one.mean(0)) for one in (scores, proponents)]
        rows.append((alone.mean, [name, f"{judge.own(scores):.3f}", f"{alone:.3f}", gain, *means]))
    columns = ["method", "all documents", "proponents alone", "proponents alone, less all"]
    last = ["mean scores, mean losses", "proponents alone, mean losses"]
    return Table(
        [*columns, *last],
        [row for _, row in sorted(rows, key=lambda row: -row[0])],
        "Linear datamodelling score of each pair by its own retrainings, by sums over all documents that are kept and "
        f"over those with positive scores: {study.sizes.halves} halves, {study.sizes.seeds} pairs, "
        f"{len(study.asked)} queries",
        dict.fromkeys(last, ".3f"),
    )


def _next(scores: np.ndarray, pair: int, size: int) -> np.ndarray:
    """The mean over a pair and those after it, in a ring, (Q, N)."""
    return scores[[(pair + place) % len(scores) for place in range(size)]].mean(0)


def ceiling_table(study: Study) -> Table:
    """What the truth's noise allows, and what retraining itself could teach an additive score."""
    sizes = study.sizes
    title = (
        f"What can be reached: {sizes.halves} halves, {sizes.seeds} pairs, {sizes.orders} trainings of each pair on "
        "each half"
    )
    return reach_table(study.judge, {REFERENCE: study.scores[REFERENCE]}, "each pair by its own", title)


SHOWN = 64
"""Characters of a query: sentences of a corpus are not repeated whole in results."""


def query_table(study: Study) -> Table:
    """The queries of removals, and how likely the pairs find their answers."""
    asked, likely = study.asked, np.exp(-study.baseline)
    rows = [
        [asked.titles[q], shorten(asked.texts[q], SHOWN), asked.answers[q], likely[:, q].mean(), likely[:, q].min()]
        for q in range(study.sizes.queries)
    ]
    return Table(
        ["query", "text", "explained", "mean probability", "least"],
        rows,
        f"Queries of removals, and their answers' probability over {len(likely)} pairs",
        {"mean probability": ".2f", "least": ".2f"},
    )


def single_best(study: Study) -> list[tuple[Method, str]]:
    """The main methods, and the best of the swept ones, best first, with a note on the latter."""
    judged = [m for m in study.methods if not m.dear]
    score = {m.name: study.judge.own(study.scores[m.name]).mean for m in judged}
    rows = [(m, "") for m in judged if m.main or m.family == "random"]
    swept = [m for m in judged if not m.main and m.family == MULTI_STAGE]
    rows.append((max(swept, key=lambda m: score[m.name]), " (best of the sweep)"))
    return sorted(rows, key=lambda row: -score[row[0].name])
