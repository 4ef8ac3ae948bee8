"""Can halves be foretold in place of trained? python -m experiments.nearby.

The pairs of experiments/counterfactual are asked the statements of experiments/peers (one stage) and the questions of
experiments/counterfactual (two stages): at the models themselves, and at models that one step moves towards trainings
on random halves. The trainings on other halves judge both, and what an earlier run has made is used again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from experiments.common.running import add_data_flag, experiment_parser, quiet
from experiments.common.search import search_by_words
from experiments.counterfactual.setting import RECIPE, FactSizes, lama_setting
from experiments.nearby.methods import REMOVED, methods_of_one, methods_of_two, one_stage, two_stages, with_halves
from experiments.nearby.plots import draw
from experiments.nearby.report import near_table
from experiments.peers.study import PeerStudy, parts
from experiments.retraining.command import NUMBERS, chosen_sizes, write
from experiments.retraining.removal import Changes, measure_removals, proponents_first
from experiments.retraining.report import removal_table
from experiments.retraining.settings import Sizes
from experiments.retraining.study import ASKED_AGAIN, REFERENCE, Study, asked_again, scores_of_all
from msif.cli.parsing import Parser, run

WORDS = "BM25+"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse(arguments)
    quiet(options.threads)
    sizes, facts = chosen_sizes(options, replace(Sizes(orders=1, removed=(5, 20)), seed=options.seed)), FactSizes()
    setting = lama_setting(options.data, facts, RECIPE, sizes.seed, options.device)
    output = Path(options.output)
    told = PeerStudy(setting, sizes, output, processes=options.jobs, overwrite=options.overwrite)
    asked = replace(told.study, listed=methods_of_two)
    of_told = scores_of_all(replace(asked, listed=methods_of_one), told.asked, parts(asked, told.asked))
    table = near_table(
        [
            ("statements, one stage", told.judge, one_stage(), of_told),
            ("questions, two stages", asked.judge, two_stages(), asked.scores),
        ]
    )
    configuration = {"sizes": asdict(sizes), "facts": asdict(facts), "recipe": asdict(RECIPE)}
    results = Path(options.results or output / "report")
    write(results, "nearby", table, configuration)
    draw(results)
    if options.no_removals:
        return
    changes = _removals(asked, sizes)
    write(results, "removal", removal_table(changes), configuration)
    write(results, "removal-words", removal_table(changes, WORDS), configuration)


def _removals(study: Study, sizes: Sizes) -> Mapping[tuple[str, int], Changes]:
    """By the models themselves, by halves that are foretold, and by words."""
    chosen = {name: study.scores[name] for name in REMOVED}
    chosen[WORDS] = search_by_words(study.asked.texts, study.world.texts)[None]
    again = with_halves(REFERENCE)
    orders = proponents_first(chosen, sizes) | {again + ASKED_AGAIN: asked_again(study, again)}
    return measure_removals(study.retrainings, orders, sizes)


def _parser() -> Parser:
    parser = experiment_parser("nearby", __doc__)
    add_data_flag(parser)
    parser.add_argument("--removed", type=int, nargs="+", metavar="K", help="numbers of documents that are removed")
    parser.add_argument("--no-removals", action="store_true", help="datamodelling scores alone")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once, a thread each (default: %(default)s)")
    for name in ("seeds", "halves"):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=NUMBERS[name])
    return parser


if __name__ == "__main__":
    run(main)
