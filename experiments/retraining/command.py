"""What the command lines of these studies share."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path

from experiments.common.running import add_data_flag, experiment_parser
from experiments.facts.facts import FactData
from experiments.facts.halves import report_table
from experiments.retraining.plots import plot_all
from experiments.retraining.report import (
    bag_table,
    ceiling_table,
    ensemble_table,
    lds_table,
    proponent_table,
    query_table,
    removal_table,
)
from experiments.retraining.settings import Sizes
from experiments.retraining.study import Study
from msif.cli.parsing import Parser
from msif.errors import MsifError
from msif.reporting.tables import Table, write_results

NUMBERS = {
    "queries": "answers whose documents are removed",
    "seeds": "model pairs that are explained, and trained again",
    "solved": "of these, how many the solvers are asked",
    "removal_seeds": "pairs that each query's removals are made for, in turn",
    "orders": "trainings of each pair on each half, with batches of their own",
    "halves": "random halves that each is trained on again",
    "bags": "other halves that each is trained on, for the mean of their scores",
}


def study_parser(name: str, description: str | None) -> Parser:
    parser = experiment_parser(name, description)
    add_data_flag(parser)
    parser.add_argument("--jobs", type=int, default=2, help="processes, with a thread each (default: %(default)s)")
    parser.add_argument("--full", action="store_true", help="the larger configuration, for a GPU")
    parser.add_argument("--removed", type=int, nargs="+", metavar="K", help="numbers of documents that are removed")
    for field, text in NUMBERS.items():
        parser.add_argument(f"--{field.replace('_', '-')}", type=int, metavar="N", help=text)
    return parser


def chosen_sizes(options: argparse.Namespace, sizes: Sizes) -> Sizes:
    """These sizes with what the command line says.

    Raises:
        MsifError: a number with which nothing can be measured.
    """
    if options.jobs < 1:
        raise MsifError(f"--jobs is {options.jobs}: give 1 or more.")
    given = {f.name: getattr(options, f.name) for f in fields(Sizes) if getattr(options, f.name, None) is not None}
    if "removed" in given:
        given["removed"] = tuple(sorted(set(given["removed"])))
    return replace(sizes, **given)


def report(study: Study, folder: Path, configuration: dict) -> None:
    """queries, lds, ensembles, proponents, ceiling, removal and bags as tables, with plots."""
    tables = {
        "queries": query_table(study),
        "lds": lds_table(study),
        "ensembles": ensemble_table(study),
        "proponents": proponent_table(study),
        "ceiling": ceiling_table(study),
        "removal": removal_table(study.changes),
    }
    if study.sizes.bags:
        tables["bags"] = bag_table(study)
    for name, table in tables.items():
        write(folder, name, table, configuration)
    plot_all(folder, study)


def write_data_report(folder: Path, data: FactData, configuration: dict) -> None:
    """What was counted on the way from the files to this data."""
    write(folder, "data", report_table(data), {**configuration, "named": data.named})


def write(folder: Path, name: str, table: Table, configuration: dict) -> None:
    write_results(folder, name, table, configuration)
    print(table.markdown())
