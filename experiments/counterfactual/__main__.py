"""Does removing what a method points at change the answer? python -m experiments.counterfactual.

Pre-trains a small GPT-NeoX on sentences of Wikipedia that state facts, fine-tunes it on questions for half of the
facts, and asks every method which sentences made it answer questions for the other half. Then both stages are trained
again without these sentences, without as many others, and on random halves. What an earlier run has made is used again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from experiments.common.running import quiet
from experiments.common.training import ModelSize, Schedule
from experiments.counterfactual.setting import RECIPE, FactSizes, lama_setting
from experiments.retraining.command import chosen_sizes, report, study_parser, write_data_report
from experiments.retraining.settings import Recipe, Sizes
from experiments.retraining.study import Study
from msif.cli.parsing import run
from msif.errors import MsifError

FULL_FACTS = FactSizes(facts=60, sentences=6, asked=60)
FULL_RECIPE = replace(
    RECIPE,
    vocabulary=4000,
    size=ModelSize(layers=2, hidden=256, heads=4, positions=128),
    pretraining=Schedule(epochs=20, learning_rate=2e-3, batch_size=32),
)
FULL = Sizes(queries=30, removed=(5, 10, 30, 100), seeds=5, halves=100)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = study_parser("counterfactual", __doc__)
    parser.add_argument("--hidden", type=int, metavar="N", help="width of the models, a multiple of their heads")
    options = parser.parse(arguments)
    quiet(options.threads)
    sizes = chosen_sizes(options, replace(FULL if options.full else Sizes(), seed=options.seed))
    facts, recipe = (FULL_FACTS, FULL_RECIPE) if options.full else (FactSizes(), RECIPE)
    recipe = _of_width(recipe, options.hidden)
    setting = lama_setting(options.data, facts, recipe, sizes.seed, options.device)
    output = Path(options.output)
    study = Study(setting.world, setting.choose, sizes, output, options.jobs, options.overwrite)
    configuration = {
        "sizes": asdict(sizes),
        "facts": asdict(facts),
        "recipe": asdict(recipe),
        "documents": len(setting.world.texts),
    }
    results = Path(options.results or output / "report")
    write_data_report(results, setting.data, configuration)
    report(study, results, configuration)


def _of_width(recipe: Recipe, hidden: int | None) -> Recipe:
    """
    Raises:
        MsifError: the width cannot be shared by the heads.
    """
    if hidden is None:
        return recipe
    if hidden < 1 or hidden % (2 * recipe.size.heads):  # rotations take the two halves of a head
        raise MsifError(f"--hidden is {hidden}: give a multiple of {2 * recipe.size.heads}.")
    return replace(recipe, size=replace(recipe.size, hidden=hidden))


if __name__ == "__main__":
    run(main)
