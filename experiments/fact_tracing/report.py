"""Tables and plots of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.fact_tracing.candidates import Ranking
from experiments.fact_tracing.measures import MEASURES, Measured, intervals
from experiments.fact_tracing.methods import MULTI_STAGE, WITH_UNEMBEDDING
from experiments.fact_tracing.plots import NAME, draw
from experiments.facts.reading import Pair
from msif.reporting.tables import Table, write_results

FORMATS = dict.fromkeys(MEASURES, ".3f")
REFERENCES = (MULTI_STAGE, WITH_UNEMBEDDING)
"""What others are compared with, fact by fact."""


def write_report(
    folder: Path, measured: Sequence[Measured], pair: Pair, ranking: Ranking, configuration: Mapping[str, Any]
) -> list[Table]:
    """Writes the tables and plots; returns the tables."""
    chosen = best(measured)
    tables = [
        counts(pair, ranking),
        summary(chosen),
        trials(chosen, ranking),
        *(differences(chosen, ranking, name) for name in REFERENCES if any(m.method.family == name for m in chosen)),
        answered(chosen, ranking),
        sweep(measured),
        modules(measured, chosen),
        *solver(measured),
    ]
    described = {**configuration, "named": {**pair.named, **ranking.named}}
    write_results(folder, NAME, tables, described)
    write_results(folder, f"{NAME}_all", everything(measured, ranking), described)
    draw(folder)
    return tables


def most_facts(measured: Iterable[Measured]) -> int:
    """How many facts the methods that are asked about all of them are asked about."""
    return max(len(m.facts) for m in measured)


def whole(measured: Iterable[Measured], ranking_facts: int | None = None) -> list[Measured]:
    """Readings over all modules; with a number, only those of methods that were asked about so many facts."""
    return [m for m in measured if m.modules == "all" and ranking_facts in (None, len(m.facts))]


def families(measured: Iterable[Measured]) -> list[tuple[str, bool]]:
    """(family, unit) in their order."""
    return list(dict.fromkeys((m.method.family, m.unit) for m in measured))


def best(measured: Sequence[Measured]) -> list[Measured]:
    """Of each family, plain and over unit norm, the damping with the highest MRR over all facts."""
    candidates = whole(measured, most_facts(measured))
    groups = [[m for m in candidates if (m.method.family, m.unit) == key] for key in families(candidates)]
    return [max(group, key=lambda m: m.mrr) for group in groups]


def named(m: Measured) -> list[Any]:
    """The first three columns of most tables."""
    return [m.method.family, m.method.damping or None, "unit" if m.unit else "no"]


NAMED = ["method", "λ", "norm"]


def counts(pair: Pair, ranking: Ranking) -> Table:
    facts = {
        "trials": len(np.unique(ranking.trial)),
        "facts traced": len(ranking.asked),
        "sentences ranked": len(ranking.rows),
    }
    numbers = {**pair.counts, **facts, **ranking.counts}
    rows = [[what, f"{number:g}"] for what, number in numbers.items()]
    return Table(["of the data and the candidates", "number"], rows, "What is asked and ranked")


def summary(chosen: Sequence[Measured]) -> Table:
    rows = [[*named(m), *intervals(m.values), m.seconds] for m in sorted(chosen, key=lambda m: -m.mrr)]
    title = "Every method at its best damping, all trials together, with 95 % bootstrap intervals"
    return Table([*NAMED, *MEASURES, "seconds"], rows, title, {**FORMATS, "seconds": ".0f"})


def trials(chosen: Sequence[Measured], ranking: Ranking) -> Table:
    numbers = np.unique(ranking.trial)
    columns = [f"{measure}, trial {t + 1}" for t in numbers for measure in MEASURES[:2]]
    rows = []
    for m in sorted(chosen, key=lambda m: -m.mrr):
        each = [intervals(m.of(np.flatnonzero(ranking.trial == t))[:, :2]) for t in numbers]
        rows.append([*named(m), *(value for pair in each for value in pair)])
    return Table([*NAMED, *columns], rows, "Trial by trial, at the same dampings", dict.fromkeys(columns, ".3f"))


def differences(chosen: Sequence[Measured], ranking: Ranking, family: str) -> Table:
    """This method minus the others, fact by fact: the interval of a paired difference."""
    numbers = np.unique(ranking.trial)
    columns = ["all trials", *(f"trial {t + 1}" for t in numbers)]
    rows = []
    for unit in (False, True):
        ours = [m for m in chosen if m.method.family == family and m.unit == unit]
        for m in chosen if ours else ():
            if m is ours[0] or (
                m.unit != unit and m.method.family in {x.method.family for x in chosen if x.unit == unit}
            ):
                continue
            gap = ours[0].values - m.values
            parts = [gap, *(gap[ranking.trial == t] for t in numbers)]
            rows.append(["unit" if unit else "no", *named(m), *(intervals(part[:, :1])[0] for part in parts)])
    title = f"MRR of {family} minus that of others, paired by fact; an interval above 0 is a gain"
    return Table(["its norm", *NAMED, *columns], rows, title, dict.fromkeys(columns, "+.3f"))


def answered(chosen: Sequence[Measured], ranking: Ranking) -> Table:
    known = np.array([fact.answered for fact in ranking.asked])
    groups = {"answered": np.flatnonzero(known), "not answered": np.flatnonzero(~known)}
    columns = [f"{measure}, {name}" for name in groups for measure in MEASURES]
    rows = []
    for m in sorted(chosen, key=lambda m: -m.mrr):
        parts = [intervals(m.of(facts)) for facts in groups.values()]
        rows.append([*named(m), *(value for part in parts for value in part)])
    sizes = ", ".join(f"{len(facts)} {name}" for name, facts in groups.items())
    title = f"Facts that the fine-tuned model answers, and those that it does not ({sizes})"
    return Table([*NAMED, *columns], rows, title, dict.fromkeys(columns, ".3f"))


def sweep(measured: Sequence[Measured]) -> Table:
    shown = whole(measured, most_facts(measured))
    swept = {f for f, u in families(shown) if sum((m.method.family, m.unit) == (f, u) for m in shown) > 1}
    rows = [[*named(m), *intervals(m.values)] for m in shown if m.method.family in swept]
    return Table([*NAMED, *MEASURES], rows, "Damping", FORMATS)


def modules(measured: Sequence[Measured], chosen: Sequence[Measured]) -> Table:
    """MLP maps alone, attention maps alone and the unembedding alone, at the damping that is best for all of them."""
    rows = []
    for best_one in chosen:
        same = [m for m in measured if m.method.name == best_one.method.name and m.unit == best_one.unit]
        if len(same) > 1:
            rows += [[*named(m), m.modules, *intervals(m.values)] for m in same]
    title = "All maps, MLP only, attention only"
    return Table([*NAMED, "maps", *MEASURES], rows, title, FORMATS)


def solver(measured: Sequence[Measured]) -> list[Table]:
    """Methods that were asked about fewer facts, beside the others on the same facts."""
    tables = []
    for few in [m for m in whole(measured) if len(m.facts) < most_facts(measured) and not m.unit]:
        rivals = [
            m
            for m in whole(measured)
            if m.method.name == few.method.name
            or (m.method.damping in (few.method.damping, "", "τ") and set(few.facts) <= set(m.facts))
        ]
        rows = [[*named(m), *intervals(m.of(few.facts))] for m in rivals]
        title = f"{few.method.family} at λ = {few.method.damping}, beside others on the same {len(few.facts)} facts"
        if few.residual is not None:
            title += f"; the solver ended at a relative residual of {few.residual:.2g} at worst"
        tables.append(Table([*NAMED, *MEASURES], rows, title, FORMATS))
    return tables


def everything(measured: Sequence[Measured], ranking: Ranking) -> Table:
    """Every reading of every method, all trials together and one by one."""
    numbers = np.unique(ranking.trial)
    each = [f"MRR, trial {t + 1}" for t in numbers]
    rows = []
    for m in measured:
        alone = [float(m.of(np.flatnonzero(ranking.trial == t))[:, 0].mean()) for t in numbers]
        rows.append([*named(m), m.modules, len(m.facts), *m.values.mean(0).tolist(), *alone])
    columns = [*NAMED, "maps", "facts", *MEASURES, *each]
    return Table(columns, rows, "Every reading of every method", {**FORMATS, **dict.fromkeys(each, ".3f")})
