"""Is the hop through an adapter worth taking? python -m experiments.adapters.

The counterfactual's pre-training and questions, with LoRA in the place of a fine-tuning of all weights. Both stages are
trained again on random halves of the pre-training sentences, and scores through the adapter are judged beside those
that take the merged model for one that was fine-tuned whole. What an earlier run has made is used again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from experiments.adapters.head import AdapterHead
from experiments.adapters.methods import adapter_methods
from experiments.common.running import quiet
from experiments.common.training import Schedule
from experiments.counterfactual.setting import RECIPE, FactSizes, lama_setting
from experiments.retraining.command import chosen_sizes, study_parser, write
from experiments.retraining.plots import plot_datamodelling
from experiments.retraining.report import lds_table
from experiments.retraining.settings import Sizes
from experiments.retraining.study import Study
from msif.cli.parsing import run

ADAPTER_RECIPE = replace(RECIPE, finetuning=Schedule(epochs=48, learning_rate=1e-2, batch_size=16))
SIZES = Sizes(seeds=3, halves=60)


def main(arguments: Sequence[str] | None = None) -> None:
    options = study_parser("adapters", __doc__).parse(arguments)
    quiet(options.threads)
    sizes, facts, head = chosen_sizes(options, replace(SIZES, seed=options.seed)), FactSizes(), AdapterHead()
    setting = lama_setting(options.data, facts, ADAPTER_RECIPE, sizes.seed, options.device)
    world, output = replace(setting.world, head=head), Path(options.output)
    study = Study(world, setting.choose, sizes, output, options.jobs, options.overwrite, adapter_methods)
    configuration = {"sizes": asdict(sizes), "facts": asdict(facts), "recipe": asdict(ADAPTER_RECIPE)}
    configuration |= {"adapter": asdict(head), "documents": len(world.texts)}
    results = Path(options.results or output / "report")
    write(results, "lds", lds_table(study), configuration)
    plot_datamodelling(results, study)


if __name__ == "__main__":
    run(main)
