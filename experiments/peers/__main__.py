"""Do other toolkits foretell retraining as well? python -m experiments.peers.

The pre-trained models of experiments/counterfactual are asked for the objects of sentences that they have not seen. The
library and other toolkits score all documents for these statements, and the trainings on random halves of the documents
judge them. A toolkit runs in an environment of its own, whose interpreter a flag names; without it, it is left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from experiments.common.running import add_data_flag, experiment_parser, quiet
from experiments.counterfactual.setting import RECIPE, FactSizes, lama_setting
from experiments.peers.environments import Environment
from experiments.peers.plots import draw
from experiments.peers.report import absent_toolkits, ceiling_table, score_table
from experiments.peers.study import PeerStudy
from experiments.peers.toolkits import TOOLKITS
from experiments.retraining.command import NUMBERS, chosen_sizes, write
from experiments.retraining.settings import Sizes
from msif.cli.parsing import Parser, run
from msif.errors import MsifError


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse(arguments)
    quiet(options.threads)
    if options.models is not None and options.models < 2:
        raise MsifError(f"--models is {options.models}: give 2 or more.")
    sizes, facts = chosen_sizes(options, replace(Sizes(orders=1), seed=options.seed)), FactSizes()
    setting = lama_setting(options.data, facts, RECIPE, sizes.seed, options.device)
    environments = _environments(options)
    output = Path(options.output)
    study = PeerStudy(setting, sizes, output, environments, options.models, options.jobs, options.overwrite)
    rows = study.rows
    table = score_table(study.judge, rows, absent_toolkits(rows))
    versions = {one.toolkit.package: one.toolkit.version for one in environments}
    configuration = {
        "sizes": asdict(sizes),
        "models": options.models,
        "facts": asdict(facts),
        "recipe": asdict(RECIPE),
        "toolkits": versions,
    }
    results = Path(options.results or output / "report")
    write(results, "peers", table, configuration)
    write(results, "ceiling", ceiling_table(study.judge, rows), configuration)
    draw(results)


def _parser() -> Parser:
    parser = experiment_parser("peers", __doc__)
    add_data_flag(parser)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once, a thread each (default: %(default)s)")
    for name in ("seeds", "halves", "bags"):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=NUMBERS[name])
    parser.add_argument("--orders", type=int, metavar="N", help="trainings of each on a half (default: 1)")
    parser.add_argument(
        "--models", type=int, metavar="N", help="explain the first of the pairs, 2 or more (default: all)"
    )
    for toolkit in TOOLKITS:
        text = f"interpreter of an environment with {toolkit.package} {toolkit.version}"
        parser.add_argument(toolkit.flag, metavar="PATH", help=text)
    return parser


def _environments(options: argparse.Namespace) -> list[Environment]:
    """Of the toolkits whose interpreter is given."""
    given = [(toolkit, getattr(options, f"{toolkit.adapter}_python")) for toolkit in TOOLKITS]
    return [Environment(toolkit, str(Path(python).absolute())) for toolkit, python in given if python]


if __name__ == "__main__":
    run(main)
