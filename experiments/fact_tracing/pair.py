"""The model pair of fact tracing: `python -m experiments.fact_tracing.pair`.

Pre-trains a small GPT-NeoX on sentences of Wikipedia that state facts, fine-tunes it on questions for half of the facts
of each relation, and asks for the other half, whose answers it can only have learnt in pre-training. OUTPUT then holds
`data/`, `pretrained/`, `finetuned/` (folders of `transformers`, with `trainer_state.json` and `optimizer.pt`) and
`accuracy.json`; what an earlier run with the same settings has made is kept. With `--pretrained` and `--finetuned`,
names on a hub or folders, nothing is trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from experiments.common.running import add_data_flag, experiment_parser, quiet
from experiments.fact_tracing.accuracy import accuracy_tables
from experiments.fact_tracing.making import Recipe, Selection, make, prepare
from experiments.facts.lama import load_lama
from experiments.facts.trex import load_trex
from msif.cli.parsing import Parser, positive_int, run
from msif.errors import MsifError
from msif.reporting.tables import write_results


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse(arguments)
    quiet(options.threads)
    if (options.pretrained is None) != (options.finetuned is None):
        raise MsifError("a pair needs both of its models: give --pretrained and --finetuned, or neither to train.")
    hub = (options.pretrained, options.finetuned) if options.pretrained else None
    output, templates = Path(options.output), Path(options.templates or options.data)
    selection = Selection(
        tuple(options.relations) if options.relations else None,
        options.facts or None,
        options.sentences or None,
        options.max_words,
        options.max_lead,
        options.min_sentences,
        options.min_answer,
        options.max_answer,
    )
    data = load_lama(options.data, options.relations) if options.format == "lama" else load_trex(options.data)
    material = prepare(data, selection, templates, options.seed)
    report = make(material, _recipe(options), hub, output, options.seed, options.device, options.overwrite)
    tables = accuracy_tables(report)
    configuration = {"selection": asdict(selection), **report["settings"]}
    write_results(Path(options.results or output / "report"), "pair", tables, configuration)
    print((output / "data" / "tables.md").read_text(encoding="utf-8"))
    print("\n".join(table.markdown() for table in tables))


def _recipe(options: argparse.Namespace) -> Recipe:
    standard = Recipe()
    return Recipe(
        options.vocabulary,
        {"layers": options.layers, "hidden": options.hidden, "heads": options.heads},
        {**standard.pretraining, "epochs": options.pretraining_epochs},
        {**standard.finetuning, "epochs": options.finetuning_epochs},
    )


def _from_zero(text: str) -> int:
    return 0 if text == "0" else positive_int(text)


def parser() -> Parser:
    parser = experiment_parser("fact_tracing.pair", __doc__.splitlines()[0], output="results/fact_tracing")
    add_data_flag(parser)
    recipe, selection = Recipe(), Selection()
    parser.add_argument("--format", choices=("lama", "trex"), default="lama", help="of --data (default: %(default)s)")
    parser.add_argument("--templates", help="folder of lama_questions.jsonl and lama_relations.jsonl (default: DATA)")
    parser.add_argument("--relations", nargs="+", metavar="P", help="such as P19 P20 (default: all)")
    limits = {"facts": (selection.facts or 0, "of a relation"), "sentences": (selection.sentences, "drawn for a fact")}
    for name, (default, text) in limits.items():
        parser.add_argument(
            f"--{name}", type=_from_zero, default=default, help=f"{text}, 0 for all (default: %(default)s)"
        )
    lead = "words before the subject of a sentence (default: %(default)s)"
    parser.add_argument("--max-lead", type=_from_zero, default=selection.max_lead, help=lead)
    numbers = {
        "max-words": (selection.max_words, "of a sentence"),
        "min-sentences": (selection.min_sentences, "plain ones, for a fact to be taken"),
        "min-answer": (selection.min_answer, "facts that share an object, for it to be asked for"),
        "max-answer": (selection.max_answer, "facts of a relation that share an object, others are left out"),
        "vocabulary": (recipe.vocabulary, "tokens at most"),
        "layers": (recipe.model["layers"], "of the model"),
        "hidden": (recipe.model["hidden"], "size of the model"),
        "heads": (recipe.model["heads"], "of a layer"),
        "pretraining-epochs": (recipe.pretraining["epochs"], "passes over the sentences"),
        "finetuning-epochs": (recipe.finetuning["epochs"], "passes over the questions"),
    }
    for name, (default, text) in numbers.items():
        parser.add_argument(f"--{name}", type=positive_int, default=default, help=f"{text} (default: %(default)s)")
    parser.add_argument("--pretrained", help="hub name or folder, in place of training: bigscience/bloom-560m, ...")
    parser.add_argument("--finetuned", help="what was fine-tuned from it: bigscience/bloomz-560m, ...")
    return parser


if __name__ == "__main__":
    run(main)
