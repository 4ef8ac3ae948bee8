"""Two-stage attribution of digits, judged by retraining: python -m experiments.digits.

Trains a small network on ten classes of scikit-learn's digits, replaces its head, fine-tunes all of it on odd and even,
and asks every method which pre-training images made a query's loss what it is. Thousands of retrainings say who is
right. What an earlier run has made is used again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.common.running import quiet
from experiments.digits.command import digits_parser, settings_of
from experiments.digits.settings import Settings
from msif.cli.parsing import Parser, run

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
    flags = digits_parser("digits", __doc__)
    for name, text in SIZES.items():
        value = getattr(Settings(), name)
        flags.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=f"{text} (default: {value})")
    return flags


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse(arguments)
    given = {name: getattr(options, name) for name in SIZES if getattr(options, name) is not None}
    settings = settings_of(options, **given)
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
