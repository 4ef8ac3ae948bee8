"""Do halves that are foretold find sources better? python -m experiments.nearby.sources, after `make demo`.

The demo's pair is asked many questions about the half of the facts that fine-tuning never contained, at the models
themselves and with --halves. The passages that state each fact are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.common.running import experiment_parser
from experiments.common.steps import Steps, console_for_commands
from experiments.demo.demo import ask, environment_of, explain, factor_folders
from experiments.demo.ranks import first_source, read_rankings, read_rows
from experiments.demo.report import answered
from msif.cli.parsing import Parser, run
from msif.errors import MsifError
from msif.evaluation.intervals import bootstrap
from msif.reporting.tables import Table, write_results

FAMILIES = {
    "multi-stage": ["--method", "multi-stage"],
    "multi-stage, `--normalize unit`": ["--normalize", "unit"],
    "multi-stage, `--alpha 0`": ["--alpha", "0"],
}
HALVES = {
    "multi-stage": ("1", "2", "4", "4:0.1", "4:0:1", "4:0.3:1"),
    "multi-stage, `--normalize unit`": ("4", "4:0:1"),
}
"""Of each family; 4 of the others."""
METHODS = {
    f"{number}-{halves.replace(':', '-')}": (title, ([*flags, "--halves", halves] if halves else flags), halves)
    for number, (title, flags) in enumerate(FAMILIES.items())
    for halves in ("", *HALVES.get(title, ("4",)))
}
"""Folder -> title, flags and halves."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse(arguments)
    demo, output = Path(options.demo), Path(options.output)
    if not (demo / "finetuned").is_dir():
        raise MsifError(f"there is no demo in {demo}: run make demo first, or give its folder as --demo.")
    output.mkdir(parents=True, exist_ok=True)
    asked = output / "questions.jsonl"
    ask(demo / "world", asked, options.questions)
    # ranks alone are read: to explain many documents would take longer than to score them
    commands = {name: (title, [*flags, "--top-k", "1"]) for name, (title, flags, _) in METHODS.items()}
    steps, factors = (
        Steps(console_for_commands(), environment_of(options.threads)),
        factor_folders(demo, options.factors),
    )
    explain(steps, commands, demo, factors, asked, output / "influence", options.candidates)
    table = source_table(demo / "world", asked, output / "influence", steps.seconds)
    write_results(Path(options.results or output / "report"), "sources", table, {"questions": options.questions})
    print(table.markdown())


def source_table(world: Path, asked: Path, results: Path, seconds: Sequence[float]) -> Table:
    """Of the questions that the model answers right; differences are paired, from the same method without halves."""
    questions = [one for one in answered(world, asked, read_rows(results / "0-" / "top.jsonl")) if one.right]
    reciprocal: dict[str, np.ndarray] = {}
    rows = []
    for (name, (title, _, halves)), taken in zip(METHODS.items(), seconds, strict=True):
        rankings = read_rankings(results / name / "scores.parquet")
        ranks = [first_source(rankings[one.id], one.sources) for one in questions]
        found = np.array([0.0 if rank is None else 1 / rank for rank in ranks])
        before = reciprocal.setdefault(title, found)
        gain = f"{bootstrap(found - before):+.3f}" if halves else None
        rows.append([title, halves or None, float((found == 1).mean()), f"{bootstrap(found):.3f}", gain, taken])
    columns = ("method", "`--halves`", "a source ranks first", "MRR", "more than without halves", "seconds")
    title = f"{len(questions)} of {len(read_rows(asked))} questions, those that the model answers right"
    return Table(columns, rows, f"{title}; 95 % bootstrap intervals", {columns[2]: ".0%", columns[5]: ".0f"})


def _parser() -> Parser:
    parser = experiment_parser("nearby.sources", __doc__, output="results/nearby-sources")
    parser.add_argument("--demo", default="results/demo", help="what make demo left (default: %(default)s)")
    parser.add_argument("--factors", default="factors", help="folder of its factors (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=10, help="of each relation, at most (default: %(default)s)")
    parser.add_argument("--candidates", type=int, default=200, help="passages of a question (default: %(default)s)")
    return parser


if __name__ == "__main__":
    run(main)
