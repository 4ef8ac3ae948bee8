"""TrackStar on a small language model: python -m experiments.trackstar.

A model that was pre-trained on sentences which state facts is asked for facts by cloze sentences, and every method for
the sentences that its answers come from. They are judged by the sources that they find (MRR, recall), and by what one
more training step on their proponents adds to the answer's probability (tail-patch). The model is that of
`python -m experiments.fact_tracing.pair`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from experiments.common.running import add_data_flag, experiment_parser, quiet
from experiments.trackstar.multi_stage import index_table
from experiments.trackstar.plots import draw
from experiments.trackstar.report import class_table, method_table, right_table, top_table
from experiments.trackstar.scoring import Run, Scores
from experiments.trackstar.settings import STEPS, TRACKSTAR, Sizes, ablations
from experiments.trackstar.training import SIZES, trained
from experiments.trackstar.world import WORDINGS, World
from msif.cli.parsing import Parser, positive_int, run
from msif.reporting.tables import Table, write_results

REFERENCE = "BM25+"
SHOWN = ("BM25+", "gradient dot product", "1: unit norm", TRACKSTAR.name)
BINS = ((2, 2), (3, 4), (5, 8))


def parser() -> Parser:
    p = experiment_parser("trackstar", __doc__)
    add_data_flag(p)
    sizes = Sizes()
    p.add_argument(
        "--pair", default="results/fact_tracing", help="of experiments.fact_tracing.pair (default: %(default)s)"
    )
    p.add_argument("--facts", type=positive_int, default=sizes.facts, help="that are asked (default: %(default)s)")
    p.add_argument(
        "--projection", type=positive_int, default=sizes.projection, help="of a block (default: %(default)s)"
    )
    p.add_argument("--blocks", type=positive_int, default=sizes.blocks, help="groups of layers (default: %(default)s)")
    rate = "of a step on one sentence (default: %(default)s)"
    p.add_argument("--learning-rate", type=float, default=sizes.learning_rate, help=rate)
    p.add_argument("--no-models", action="store_true", help="leave out other sizes and lengths of training")
    p.add_argument("--full", action="store_true", help="for a GPU: 400 facts, 64 × 64 of 8 blocks")
    return p


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse(arguments)
    quiet(options.threads)
    sizes = Sizes(
        options.facts, blocks=options.blocks, projection=options.projection, learning_rate=options.learning_rate
    )
    if options.full:
        sizes = replace(sizes, facts=400, blocks=8, projection=64)
    world = World(Path(options.pair), Path(options.data))
    own = Run(world, world.chosen(sizes.facts, options.seed), sizes, Path(options.output) / "pair")
    results = Path(options.results or Path(options.output) / "report")
    tables = list(_main_tables(own))
    tables += [_ablations(own), _wordings(own), _wrong_answers(own)]
    tables.append(index_table(Path(options.output) / "multi-stage", Path(options.pair), sizes.facts, sizes.blocks))
    if not options.no_models:
        tables.append(_models(own, options))
    configuration = {
        **asdict(sizes),
        "seed": options.seed,
        "sentences": len(world.texts),
        "facts known": len(world.known),
    }
    write_results(results, "trackstar", tables, configuration)
    draw(results)
    print("\n".join(table.markdown() for table in tables))


def _main_tables(own: Run) -> Iterator[Table]:
    queries = own.queries()
    scores: dict[str, Scores] = {name: own.by_texts(name, queries) for name in ("BM25+", "sentence embeddings")}
    scores |= {"gold sources": own.gold()}
    named = ("TRAK", "single-stage EK-FAC", "single-stage EK-FAC, unit norm")
    scores |= {name: own.by_scorer(name, queries) for name in named}
    scores |= {one.name: own.by_configuration(one, queries) for one in STEPS}
    rng = np.random.default_rng(0)
    scores["random order"] = rng.random(scores["BM25+"].shape, dtype=np.float32)
    patched = own.patched(queries, scores)
    yield method_table(own, scores, patched, "Methods", REFERENCE)
    yield top_table(own, patched)
    yield right_table(own, scores, patched)
    yield class_table(own, {name: scores[name] for name in SHOWN}, BINS)


def _ablations(own: Run) -> Table:
    queries = own.queries()
    varied = list(ablations())
    scores = {TRACKSTAR.name: own.by_configuration(TRACKSTAR, queries)}
    scores |= {f"{what}: {one.name}": own.by_configuration(one, queries) for what, one in varied}
    return method_table(own, scores, own.patched(queries, scores), "Ablations of TrackStar", TRACKSTAR.name)


def _wordings(own: Run) -> Table:
    rows = []
    for wording in WORDINGS:
        queries = own.queries(wording)
        scores = {"BM25+": own.by_texts("BM25+", queries), TRACKSTAR.name: own.by_configuration(TRACKSTAR, queries)}
        table = method_table(own, scores, own.patched(queries, scores), "", REFERENCE)
        rows += [(wording, *row) for row in sorted(table.rows, key=lambda row: row[0])]
    return Table(("wording", *table.columns), rows, "Wordings of the question", table.formats)


def _wrong_answers(own: Run) -> Table:
    """What the model says instead, attributed: do its proponents hold that answer?"""
    wrong = [known for known in own.facts if not known.right]
    only = replace(own, facts=wrong)
    said = [known.said for known in wrong]
    rows = []
    for target, names in (("the right answer", None), ("the model's answer", said)):
        queries = only.queries(targets=names)
        answers = said if names else [known.fact.answers[0] for known in wrong]
        scores = {"BM25+": only.by_texts("BM25+", queries), TRACKSTAR.name: only.by_configuration(TRACKSTAR, queries)}
        patched = only.patched(queries, scores)
        for name, values in scores.items():
            held = [
                np.mean([answer in own.world.texts[row] for row in np.argsort(-found, kind="stable")[:10]])
                for found, answer in zip(values, answers, strict=True)
            ]
            rows.append(
                (target, name, float(np.mean(held)), float(100 * np.mean([c[:10].mean() for c in patched[name]])))
            )
    columns = ("target", "method", "proponents that hold it", "tail-patch, %")
    title = f"{len(wrong)} facts that the model gets wrong"
    return Table(columns, rows, title, {columns[2]: ".2f", columns[3]: "+.2f"})


def _models(own: Run, options: argparse.Namespace) -> Table:
    """Other sizes, and shorter trainings: does influence come closer to attribution as a model gets better?"""
    rows = []
    for name, size, epochs in SIZES:
        folder = trained(own.world, size, epochs, Path(options.output) / "models", options.seed)
        world = replace(own.world, model=folder)
        other = replace(own, world=world, facts=own.facts, folder=Path(options.output) / folder.name)
        rows.append(_model_row(name, epochs, other))
    rows.append(_model_row("the pair's: 4 layers of 192", 30, own))
    columns = (
        "model",
        "epochs",
        "facts right",
        "MRR",
        "recall@10",
        "tail-patch, %",
        "of BM25+",
        "proponents in common",
    )
    formats = {"facts right": ".2f", "MRR": ".3f", "recall@10": ".3f", "tail-patch, %": "+.2f", "of BM25+": "+.2f"}
    return Table(columns, rows, "TrackStar by size and length of training", {**formats, "proponents in common": ".2f"})


def _model_row(name: str, epochs: int, other: Run) -> tuple:
    queries = other.queries()
    scores = {"BM25+": other.by_texts("BM25+", queries), TRACKSTAR.name: other.by_configuration(TRACKSTAR, queries)}
    table = method_table(other, scores, other.patched(queries, scores), "", REFERENCE)
    found = {row[0]: row for row in table.rows}
    tops = [[set(np.argsort(-row, kind="stable")[:10]) for row in own] for own in scores.values()]
    common = np.mean([len(one & two) / 10 for one, two in zip(*tops, strict=True)])
    right = np.mean([known.right for known in other.world.known])
    own = found[TRACKSTAR.name]
    return name, epochs, float(right), own[1], own[2], own[3], found["BM25+"][3], float(common)


if __name__ == "__main__":
    run(main)
