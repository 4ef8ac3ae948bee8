"""Tables and plots of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from experiments.common.judging import SIZES
from experiments.common.methods import Method
from experiments.digits.counterfactual import RANDOM
from experiments.digits.halved import halved_table, scaled_apart
from experiments.digits.methods import HELD_OUT, SOURCE
from experiments.digits.study import Study
from msif.evaluation.intervals import bootstrap
from msif.reporting.tables import Table, write_results

FORMATS = {"1 model": ".3f", "averaged": ".3f", "of the ceiling": ".0%"}

RETRAINING = "retraining itself, of other seeds"
EKFAC, EXACT = "multi-stage EK-FAC", "multi-stage exact"
WITH_HEADS = f"{EXACT}, heads counted"
SEGMENTS, SINGLE = ", checkpoints in segments", "single-stage EK-FAC, parity implied by ten classes"


def write_descent(folder: Path, study: Study, changes: Mapping[tuple[str, int], np.ndarray]) -> None:
    """lds.md, sweep.md, differences.md, ensembles.md, halves.md and counterfactual.md, each with its JSON."""
    configuration = asdict(study.settings)
    for name, table in {
        "lds": lds_table(study),
        "differences": difference_table(study),
        "ensembles": ensemble_table(study),
        "halves": halved_table(study),
        "sweep": sweep_table(study),
        "counterfactual": counterfactual_table(changes),
    }.items():
        write_results(folder, name, table, configuration)


def write_adam(folder: Path, study: Study) -> None:
    """adam.md, adam-sweep.md, each with its JSON."""
    write_results(folder, "adam", _table(study, _adam_rows(study)), asdict(study.settings))
    write_results(folder, "adam-sweep", sweep_table(study), asdict(study.settings))


def removal_scores(study: Study) -> tuple[dict[str, np.ndarray], str]:
    """(title -> averaged scores (Q, N) for the counterfactual, the title whose opponents are removed too)."""
    chosen = {
        "gradient dot product": study.find("gradient dot product"),
        "gradient cosine": study.find("gradient cosine"),
        "single-stage EK-FAC": study.find(SINGLE, "1/ηK"),
        "TRAK": study.best("TRAK"),
        EKFAC: study.find(EKFAC, "1/ηK", "1/ηK"),
        EXACT: study.find(EXACT, "1/ηK", "1/ηK"),
    }
    return {title: study.scored[method.name].mean(0) for title, method in chosen.items()}, EKFAC


def lds_table(study: Study) -> Table:
    """The rows that the page speaks of: what needs no tuning, and the best of each sweep."""
    rows = [(method, "") for method in study.methods if method.family not in (EKFAC, EXACT, "TRAK", "LoGra")]
    rows += [(study.best(family), "best of its sweep") for family in ("TRAK", "LoGra")]
    for family in (EKFAC, EXACT):
        wanted = (("0.1 mean", "0"), ("0.1 mean", "1/ηK"), ("1 mean", "1/ηK"), ("1/ηK", "no hop"), ("1/ηK", "1/ηK"))
        for pair in (*wanted, (SOURCE, SOURCE)):
            rows.append((study.find(family, *pair), ""))
        rows.append((study.best(family), "best of its sweep"))
    return _table(study, rows)


def _adam_rows(study: Study) -> list[tuple[Method, str]]:
    rows = [(method, "") for method in study.methods if method.family != EKFAC]
    for pair in (("0.1 mean", "0"), ("1 mean", "0"), ("1/ηK", "1/ηK")):
        rows.append((study.find(EKFAC, *pair), ""))
    return [*rows, (study.best(EKFAC), "best of its sweep")]


def _table(study: Study, rows: Sequence[tuple[Method, str]]) -> Table:
    """The worst first; intervals are of the averaged scores."""
    judge, scored = study.judge, study.scored
    found: list[list[Any]] = []
    for method, note in rows:
        scores = scored[method.name]
        together = judge.together(scores)
        interval = judge.interval(scores.mean(0))
        spread = f"{interval.low:.2f} to {interval.high:.2f}"
        title = f"{method.family} ({note})" if note else method.family
        share = together / judge.ceiling
        found.append([title, method.damping, method.alpha, judge.single(scores), together, len(scores), spread, share])
    columns = ["method", "λ_pt", "α", "1 model", "averaged", "models", "95 % of averaged", "of the ceiling"]
    found.sort(key=lambda row: row[4])
    title = f"Linear datamodelling score; noise ceiling {judge.ceiling:.3f}"
    return Table(columns, found, title, FORMATS)


def sweep_table(study: Study) -> Table:
    """Every method at every damping, in the order in which they were asked for."""
    judge, found = study.judge, [(m, study.scored[m.name]) for m in study.methods]
    rows = [[m.family, m.damping, m.alpha, judge.single(s), judge.together(s), len(s)] for m, s in found]
    columns = ["method", "λ_pt", "α", "1 model", "averaged", "models"]
    return Table(columns, rows, f"All methods and dampings; noise ceiling {judge.ceiling:.3f}", FORMATS)


def difference_table(study: Study) -> Table:
    """What one thing changed is worth, on the same draws of halves and queries."""
    mean = lambda *key: study.scored[study.find(*key).name].mean(0)  # noqa: E731
    natural, best = mean(EKFAC, "1/ηK", "1/ηK"), study.scored[study.best(EKFAC).name].mean(0)
    undamped, exact = mean(EKFAC, "0.1 mean", "0"), mean(EXACT, SOURCE, SOURCE)
    pairs = [
        ("EK-FAC instead of no curvature", natural, mean("gradient dot product")),
        ("the fine-tuning hop", natural, mean(EKFAC, "1/ηK", "no hop")),
        ("1/ηK instead of 0.1 mean, α = 0", natural, undamped),
        ("α = 1/ηK beside λ = 0.1 mean", mean(EKFAC, "0.1 mean", "1/ηK"), undamped),
        ("SOURCE filters instead of inverses", mean(EKFAC, SOURCE, SOURCE), natural),
        ("checkpoints in segments", mean(EKFAC + SEGMENTS, SOURCE, SOURCE), mean(EKFAC, SOURCE, SOURCE)),
        ("exact curvature instead of EK-FAC", mean(EXACT, "1/ηK", "1/ηK"), natural),
        ("exact curvature of held-out images", mean(EXACT + HELD_OUT, SOURCE, SOURCE), exact),
        ("proponents alone, exact curvature", np.maximum(exact, 0), exact),
        ("the best damping of EK-FAC's sweep", best, natural),
    ]
    rows = [[title, f"{study.judge.difference(a, b):+.3f}"] for title, a, b in pairs]
    return Table(["change", "gain in averaged scores, 95 %"], rows, "What each thing is worth")


def ensemble_table(study: Study) -> Table:
    """The score of averages over more and more members, a mean over disjoint groups of them."""
    methods = [
        study.find("gradient dot product"),
        study.best("TRAK"),
        study.find(EKFAC, "1/ηK", "1/ηK"),
        study.find(EKFAC + SEGMENTS, SOURCE, SOURCE),
        study.best(EXACT),
        study.find(WITH_HEADS, SOURCE, SOURCE),
    ]
    sizes = [size for size in SIZES if size <= study.settings.members]
    rows = [
        [method.family, method.damping, method.alpha]
        + [study.judge.together(study.scored[method.name], size) for size in sizes]
        for method in methods
    ]
    whole = study.find(WITH_HEADS, SOURCE, SOURCE)
    if study.settings.halved:
        apart = scaled_apart(study.halved[whole.name], study.seen)
        on_halves = [study.judge.together(apart, size) if size <= len(apart) else None for size in sizes]
        rows.append([f"{WITH_HEADS}, trained on halves", whole.damping, whole.alpha, *on_halves])
    rows.append([RETRAINING, "", "", *(told_by_retraining(study.judge.losses, size) for size in sizes)])
    columns = ["method", "λ_pt", "α", *(f"{size} model{'s' * (size > 1)}" for size in sizes)]
    return Table(columns, rows, "Averages over models", dict.fromkeys(columns[3:], ".3f"))


def told_by_retraining(losses: np.ndarray, size: int) -> float | None:
    """Spearman's correlation over halves of the mean loss of so many seeds with that of half of all seeds, which are
    others; the mean over queries and disjoint groups. None where there are too few.

    Args:
        losses: (M, S, Q).
    """
    judges = losses.shape[1] // 2
    groups = range(judges, losses.shape[1] - size + 1, size)
    if not groups or not judges:
        return None
    truth, told = losses[:, :judges].mean(1).T, [losses[:, start : start + size].mean(1).T for start in groups]
    return float(np.mean([spearmanr(*pair).statistic for group in told for pair in zip(group, truth, strict=True)]))


def counterfactual_table(changes: Mapping[tuple[str, int], np.ndarray]) -> Table:
    """Mean changes over queries, and what each method adds to random removal on the same queries."""
    rows = []
    for (title, k), values in changes.items():
        beyond = None if title == RANDOM else f"{bootstrap(values - changes[RANDOM, k]):+.3f}"
        raised = float(np.mean(values > 0))
        rows.append([title, k, f"{bootstrap(values):+.3f}", beyond, raised])
    rows.sort(key=lambda row: (row[1], float(row[2].split()[0])))
    columns = [
        "removed: top images by",
        "k",
        "change of the query's loss, 95 %",
        "beyond random, 95 %",
        "queries raised",
    ]
    return Table(columns, rows, "Both stages trained again without a query's top images", {"queries raised": ".0%"})
