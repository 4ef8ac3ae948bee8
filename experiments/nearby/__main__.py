"""Can halves be foretold in place of trained? python -m experiments.nearby.

The pairs of experiments/counterfactual are asked the statements of experiments/peers (one stage) and the questions of
experiments/counterfactual (two stages): at the models themselves, and at models that one step moves towards trainings
on random halves. The trainings on other halves judge both, and what an earlier run has made is used again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.common.search import search_by_words
from experiments.nearby.methods import REMOVED, one_stage, two_stages, with_halves
from experiments.nearby.plots import draw
from experiments.peers.both import Both, parser_of_both
from experiments.retraining.command import write
from experiments.retraining.families import family_table
from experiments.retraining.removal import Changes, measure_removals, proponents_first
from experiments.retraining.report import removal_table
from experiments.retraining.settings import Sizes
from experiments.retraining.study import ASKED_AGAIN, REFERENCE, Study, asked_again
from msif.cli.parsing import Parser, run

WORDS = "BM25+"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse(arguments)
    both = Both(options, one_stage, two_stages)
    gain, title = "more than the models themselves", "with halves that are foretold"
    write(both.results, "nearby", family_table(both.parts, ("halves", "step"), gain, title), both.configuration)
    draw(both.results)
    if options.no_removals:
        return
    changes = _removals(both.asked, both.sizes)
    write(both.results, "removal", removal_table(changes), both.configuration)
    write(both.results, "removal-words", removal_table(changes, WORDS), both.configuration)


def _removals(study: Study, sizes: Sizes) -> Mapping[tuple[str, int], Changes]:
    """By the models themselves, by halves that are foretold, and by words."""
    chosen = {name: study.scores[name] for name in REMOVED}
    chosen[WORDS] = search_by_words(study.asked.texts, study.world.texts)[None]
    again = with_halves(REFERENCE)
    orders = proponents_first(chosen, sizes) | {again + ASKED_AGAIN: asked_again(study, again)}
    return measure_removals(study.retrainings, orders, sizes)


def _parser() -> Parser:
    parser = parser_of_both("nearby", __doc__)
    parser.add_argument("--removed", type=int, nargs="+", metavar="K", help="numbers of documents that are removed")
    parser.add_argument("--no-removals", action="store_true", help="datamodelling scores alone")
    return parser


if __name__ == "__main__":
    run(main)
