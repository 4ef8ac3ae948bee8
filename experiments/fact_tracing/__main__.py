"""Does influence find the sentences that state a fact? `python -m experiments.fact_tracing`.

Takes the pair that `experiments.fact_tracing.pair` has trained: a model pre-trained on sentences that state facts, and
one fine-tuned on questions about half of them. For facts of the other half every method ranks sentences, and is judged
by where the sentences that state the fact come.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.common.running import experiment_parser, quiet
from experiments.fact_tracing.options import CGOptions, FitOptions, Options, Sizes
from msif.cli.parsing import Parser, configuration, positive_int, run, set_up_logging, write_configuration

if TYPE_CHECKING:
    from msif.reporting.tables import Table


def parser() -> Parser:
    p = experiment_parser("fact_tracing", __doc__)
    p.add_argument("--pair", default="results/fact_tracing", help="folder of the pair (default: %(default)s)")
    p.add_argument("--methods", nargs="+", metavar="M", help="only these (default: all but single-stage-finetuned)")
    sizes, standard = Sizes(), Options()
    ranked = p.add_argument_group("what is asked and ranked")
    ranked.add_argument(
        "--protocol", choices=["rerank", "full"], default="rerank", help="candidate sets (default), or all sentences"
    )
    for flag, default, text in (
        ("--trials", sizes.trials, "trials, no fact in two of them"),
        ("--facts", sizes.facts, "facts of a trial; the published protocol has 200"),
        ("--bm25", sizes.bm25, "candidates by BM25+"),
        ("--same-target", sizes.same_target, "random candidates that hold the answer"),
        ("--random", sizes.random, "random candidates that a trial's facts share"),
    ):
        ranked.add_argument(flag, type=positive_int, default=default, help=f"{text} (default: %(default)s)")
    methods = p.add_argument_group("methods")
    methods.add_argument(
        "--dampings", nargs="+", default=list(standard.dampings), help="numbers, 0.1mean, auto (default: %(default)s)"
    )
    methods.add_argument(
        "--other-dampings",
        nargs="+",
        default=list(standard.other_dampings),
        help="of alpha, measurements, whole heads, unembedding and no hop (default: %(default)s)",
    )
    methods.add_argument(
        "--cg-dampings", nargs="+", default=list(standard.cg.dampings), help="of the solver (default: %(default)s)"
    )
    for flag, default, text in (
        ("--cg-facts", sizes.few, "facts of each trial that the solver is run for"),
        ("--cg-iterations", standard.cg.iterations, "products of the solver"),
        ("--cg-examples", standard.cg.examples, "sequences of each stage that the solver's curvature is of"),
        ("--label-samples", standard.fit.label_samples, "label draws a sequence in fitting"),
    ):
        methods.add_argument(flag, type=positive_int, default=default, help=f"{text} (default: %(default)s)")
    methods.add_argument(
        "--max-fit-examples", type=positive_int, metavar="N", help="sequences of each stage to fit on (default: all)"
    )
    methods.add_argument(
        "--embedding-model", metavar="M", help="sentence-transformers model (default all-MiniLM-L6-v2)"
    )
    p.add_argument("--batch-tokens", type=positive_int, default=8192, help="of a batch (default: %(default)s)")
    p.add_argument("--memory", type=float, default=3.0, metavar="GB", help="for query vectors (default: %(default)s)")
    return p


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse(arguments)
    set_up_logging(quiet=False)
    quiet(options.threads)
    for table in trace(options):
        print(table.markdown())


def options_of(values: argparse.Namespace) -> Options:
    """The part of the command line that methods read."""
    return Options(
        tuple(values.dampings),
        tuple(values.other_dampings),
        CGOptions(tuple(values.cg_dampings), values.cg_iterations, values.cg_examples),
        FitOptions(values.max_fit_examples, values.label_samples, values.seed),
        values.embedding_model,
        values.seed,
    )


def trace(options: argparse.Namespace) -> list[Table]:
    """The whole benchmark; what an earlier run has scored is used again."""
    from experiments.common.search import search_by_words
    from experiments.fact_tracing.candidates import rank_among
    from experiments.fact_tracing.measures import measure
    from experiments.fact_tracing.methods import DEFAULT_METHODS, methods_named, possible
    from experiments.fact_tracing.models import Models
    from experiments.fact_tracing.report import write_report
    from experiments.fact_tracing.running import compute, score_cache
    from experiments.facts.reading import read_pair

    output = Path(options.output)
    chosen = options_of(options)
    pair = read_pair(options.pair)
    methods, left_out = possible(methods_named(options.methods or DEFAULT_METHODS, chosen), pair)
    sizes = Sizes(options.trials, options.facts, options.bm25, options.same_target, options.random, options.cg_facts)
    ranking = rank_among(pair, options.protocol, sizes, options.seed, search_by_words)
    models = Models(pair, output / "factors", chosen.fit, options.device, options.batch_tokens, options.overwrite)
    cache = score_cache(output / "scores", models, ranking, options.overwrite)
    done = compute(methods, models, ranking, cache, options.memory)
    measured = [reading for method in methods for reading in measure(method, done[method.key], ranking)]
    results = Path(options.results) if options.results else output / "report"
    write_configuration(results / "config.yaml", options)
    described = {**configuration(options), "methods left out, for their training is not known": left_out}
    return write_report(results, measured, pair, ranking, described)


if __name__ == "__main__":
    run(main)
