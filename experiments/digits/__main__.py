"""Two-stage attribution of digits, judged by retraining: python -m experiments.digits.

Trains a small network on ten classes of scikit-learn's digits, replaces its head, fine-tunes all of it on odd and even,
and asks every method which pre-training images made a query's loss what it is. Thousands of retrainings say who is
right. What an earlier run has made is used again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments.common.running import experiment_parser, quiet
from experiments.digits.settings import SMALL, Settings
from msif.cli.parsing import Parser, run
from msif.errors import MsifError

SIZES = {
    "halves": "random halves that are trained on",
    "seeds": "trainings on each half",
    "queries": "images that are asked about",
    "members": "model pairs whose scores are averaged",
    "halved": "model pairs trained on halves of the images, whose scores are averaged",
    "unrolled": "members whose training is differentiated exactly",
    "counterfactual_queries": "queries whose top images are removed",
}


def parser() -> Parser:
    flags = experiment_parser("digits", __doc__)
    flags.add_argument("--small", action="store_true", help="a check in seconds: few images, retrainings and members")
    flags.add_argument("--processes", type=int, default=1, help="parts of the work at once (default: %(default)s)")
    for name, text in SIZES.items():
        value = getattr(Settings(), name)
        flags.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=f"{text} (default: {value})")
    return flags


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse(arguments)
    if options.device != "cpu":
        raise MsifError("these networks are too small to gain from a GPU: leave --device at cpu.")
    given = {name: getattr(options, name) for name in SIZES if getattr(options, name) is not None}
    if any(value < 1 for value in (*given.values(), options.processes)):
        raise MsifError("every number must be 1 or more: give larger numbers.")
    settings = replace(SMALL if options.small else Settings(), seed=options.seed, **given)
    quiet(options.threads)
    from experiments.digits.counterfactual import changes, removals
    from experiments.digits.methods import adam_methods, all_methods
    from experiments.digits.plots import draw
    from experiments.digits.report import removal_scores, write_adam, write_descent
    from experiments.digits.study import Study

    output = Path(options.output)
    results = Path(options.results or output / "report")
    common = options.overwrite, options.processes
    study = Study(settings, output / "descent", all_methods, *common)
    study.add_unrolled()
    orders = removals(settings, *removal_scores(study))
    changed = changes(settings, study.parts, study.cache, orders, options.processes)
    write_descent(results, study, changed)
    draw(results)
    write_adam(results, Study(settings.with_adam(), output / "adam", adam_methods, *common))
    print((results / "lds.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run(main)
