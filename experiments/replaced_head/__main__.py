"""Which documents made a classifier say that? python -m experiments.replaced_head.

Pre-trains a small GPT-NeoX on sentences, replaces its head, fine-tunes all parameters as a classifier, and asks every
method which pre-training sentences made it classify as it does. Judged by labels, and by training both stages again
(``experiments.retraining``). What an earlier run has made is used again.

Of two tasks: `subject` tells what a name is the name of, which a few sentences of pre-training say of each; `relation`
tells which relation a sentence states, which no single sentence decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from experiments.common.running import quiet
from experiments.common.training import ModelSize, Schedule
from experiments.facts.lama import load_lama
from experiments.replaced_head import relations, subjects
from experiments.replaced_head.relations import RelationTask
from experiments.replaced_head.report import accuracy_table, label_table
from experiments.replaced_head.setting import label_setting
from experiments.replaced_head.subjects import SubjectTask
from experiments.retraining.command import chosen_sizes, report, study_parser, write, write_data_report
from experiments.retraining.settings import Sizes
from experiments.retraining.study import Study
from msif.cli.parsing import run

TASKS = {"subject": SubjectTask(), "relation": RelationTask()}
FULL_TASKS = {
    "subject": SubjectTask(most=100, sentences=8, words=40),
    "relation": RelationTask(pretraining=200, finetuning=40, held_out=40),
}
RECIPES = {"subject": subjects.RECIPE, "relation": relations.RECIPE}
FULL_SIZE = ModelSize(layers=2, hidden=256, heads=4, positions=128)
FULL_PRETRAINING = Schedule(epochs=10, learning_rate=2e-3, batch_size=32)
USUAL = Sizes(queries=8)
FULL = Sizes(queries=32, removed=(10, 30, 100, 300), seeds=5, halves=100)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study_parser("replaced_head", __doc__)
    parser.add_argument("--task", choices=list(TASKS), default="subject", help="what is classified (default: subject)")
    options = parser.parse(arguments)
    quiet(options.threads)
    sizes = chosen_sizes(options, replace(FULL if options.full else USUAL, seed=options.seed))
    task, recipe = (FULL_TASKS if options.full else TASKS)[options.task], RECIPES[options.task]
    if options.full:
        recipe = replace(recipe, vocabulary=4000, size=FULL_SIZE, pretraining=FULL_PRETRAINING)
    parts = task.parts(load_lama(options.data, task.relations), sizes.seed)
    setting = label_setting(parts, recipe, options.device)
    output = Path(options.output) / options.task
    study = Study(setting.world, setting.choose, sizes, output, options.jobs, options.overwrite)
    configuration = {
        "task": {options.task: asdict(task)},
        "sizes": asdict(sizes),
        "recipe": asdict(recipe),
        "documents": len(setting.world.texts),
    }
    results = Path(options.results) / options.task if options.results else output / "report"
    write_data_report(results, parts.data, configuration)
    write(results, "accuracy", accuracy_table(setting, study), configuration)
    write(results, "labels", label_table(setting, study), configuration)
    report(study, results, configuration)


if __name__ == "__main__":
    run(main)
