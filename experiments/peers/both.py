"""Statements of one stage and questions of two, on the same models: the scores of some methods of each."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from experiments.common.methods import Method
from experiments.common.running import add_data_flag, experiment_parser, quiet
from experiments.counterfactual.setting import RECIPE, FactSizes, lama_setting
from experiments.peers.study import PeerStudy, parts
from experiments.retraining.command import NUMBERS, chosen_sizes
from experiments.retraining.families import Part, Variant
from experiments.retraining.settings import Sizes
from experiments.retraining.study import Study, scores_of_all
from msif.cli.parsing import Parser

Variants = Callable[[], Sequence[Variant]]


@dataclass(frozen=True)
class Both:
    """The retrainings of experiments/counterfactual, for methods of either question.

    Attributes:
        one, two: what is asked of the pre-trained models, and of pairs.
    """

    options: argparse.Namespace
    one: Variants
    two: Variants

    @cached_property
    def sizes(self) -> Sizes:
        return chosen_sizes(self.options, replace(Sizes(orders=1, removed=(5, 20)), seed=self.options.seed))

    @cached_property
    def told(self) -> PeerStudy:
        options = self.options
        quiet(options.threads)
        setting = lama_setting(options.data, FactSizes(), RECIPE, self.sizes.seed, options.device)
        return PeerStudy(setting, self.sizes, Path(options.output), processes=options.jobs, overwrite=options.overwrite)

    @cached_property
    def asked(self) -> Study:
        return replace(self.told.study, listed=partial(_listed, self.two))

    @property
    def parts(self) -> list[Part]:
        told, asked = self.told, self.asked
        of_told = scores_of_all(replace(asked, listed=partial(_listed, self.one)), told.asked, parts(asked, told.asked))
        return [
            ("statements, one stage", told.judge, self.one(), of_told),
            ("questions, two stages", asked.judge, self.two(), asked.scores),
        ]

    @property
    def results(self) -> Path:
        return Path(self.options.results or Path(self.options.output) / "report")

    @property
    def configuration(self) -> dict[str, Any]:
        return {"sizes": asdict(self.sizes), "facts": asdict(FactSizes()), "recipe": asdict(RECIPE)}


def _listed(variants: Variants, one_objective: bool) -> list[Method]:
    """As ``Study`` lists methods."""
    return [variant.method for variant in variants()]


def parser_of_both(name: str, text: str | None) -> Parser:
    """Its flags."""
    parser = experiment_parser(name, text)
    add_data_flag(parser)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once, a thread each (default: %(default)s)")
    for size in ("seeds", "halves"):
        parser.add_argument(f"--{size}", type=int, metavar="N", help=NUMBERS[size])
    return parser
