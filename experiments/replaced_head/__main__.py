"""Which documents made a classifier say that? python -m experiments.replaced_head.

Pre-trains a small GPT-NeoX on sentences, replaces its head, fine-tunes all parameters to tell which relation a sentence
states, and asks every method which pre-training sentences made it classify others as it does. Judged by labels, and by
training both stages again (``experiments.counterfactual``). What an earlier run has made is used again.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace
from pathlib import Path

from experiments.common.running import quiet, status_of
from experiments.common.training import ModelSize, Schedule
from experiments.counterfactual.command import chosen_sizes, report, study_parser, write
from experiments.counterfactual.settings import Sizes
from experiments.counterfactual.study import Study
from experiments.fact_tracing.lama import load_lama
from experiments.replaced_head.report import accuracy_table, label_table
from experiments.replaced_head.setting import RECIPE, LabelSizes, label_setting

FULL_LABELS = LabelSizes(pretraining=200, finetuning=40, held_out=40, asked=80)
FULL_RECIPE = replace(
    RECIPE,
    vocabulary=4000,
    size=ModelSize(layers=2, hidden=256, heads=4, positions=128),
    pretraining=Schedule(epochs=10, learning_rate=2e-3, batch_size=32),
)
FULL = Sizes(queries=32, removed=(10, 30, 100, 300), seeds=5, halves=100)


def run(options: argparse.Namespace) -> None:
    quiet(options.threads)
    sizes = chosen_sizes(options, replace(FULL if options.full else Sizes(), seed=options.seed))
    labels, recipe = (FULL_LABELS, FULL_RECIPE) if options.full else (LabelSizes(), RECIPE)
    setting = label_setting(load_lama(options.data, labels.relations), labels, recipe, sizes.seed, options.device)
    output = Path(options.output)
    study = Study(setting.world, setting.choose, sizes, output, options.jobs, options.overwrite)
    configuration = {
        "sizes": asdict(sizes),
        "labels": asdict(labels),
        "recipe": asdict(recipe),
        "documents": len(setting.world.texts),
    }
    results = Path(options.results or output / "report")
    write(results, "accuracy", accuracy_table(setting, study), configuration)
    write(results, "labels", label_table(setting, study), configuration)
    report(study, results, configuration)


def main(arguments: list[str] | None = None) -> int:
    return status_of(run, study_parser("replaced_head", __doc__), arguments)


if __name__ == "__main__":
    sys.exit(main())
