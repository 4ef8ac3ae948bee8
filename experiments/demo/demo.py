"""The sources of a small model's answers: `make demo`, or `python -m experiments.demo.demo`.

Trains a pair of language models on a fictional world, fits factors for both, and asks which pre-training passages made
the fine-tuned model answer questions that fine-tuning never contained. Each step is a command that is printed before
it runs, so that it can be repeated by hand; what an earlier run has trained and fitted is used again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from experiments.common.steps import Steps, console_for_commands
from experiments.demo.ranks import read_rows
from experiments.demo.report import report
from msif.atomic import write_json_lines

METHODS = {
    "multi-stage": ("multi-stage influence", ["--method", "multi-stage"]),
    "multi-stage-unit": ("multi-stage, `--normalize unit`", ["--method", "multi-stage", "--normalize", "unit"]),
    "multi-stage-halves": ("multi-stage, `--halves 4`", ["--method", "multi-stage", "--halves", "4"]),
    "multi-stage-alpha-0": ("multi-stage, `--alpha 0`", ["--method", "multi-stage", "--alpha", "0"]),
    "multi-stage-auto": ("multi-stage, `--damping auto`", ["--method", "multi-stage", "--damping", "auto"]),
    "gdp": ("gradient dot product", ["--method", "gdp"]),
    "cosine": ("gradient cosine", ["--method", "cosine"]),
}
SHOWN = 5  # proponents printed a question


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    output = Path(options.output)
    factors, environment = factor_folders(output, options.factors), environment_of(options.threads)
    console = console_for_commands()
    os.environ.update(environment)
    console.print("All commands run with " + " ".join(f"{name}={value}" for name, value in environment.items()))
    steps = Steps(console, environment)
    train_and_fit(steps, output, factors, options.overwrite)
    asked, results = output / "questions.jsonl", output / "influence"
    ask(output / "world", asked, options.questions)
    explain(steps, METHODS, output, factors, asked, results, options.candidates)
    report(console, output / "world", asked, results, {name: title for name, (title, _) in METHODS.items()})
    parts = " + ".join(f"{seconds:.0f}" for seconds in steps.seconds)
    console.print(f"\nThe {len(steps.seconds)} commands took {parts} = {sum(steps.seconds):.0f} s.")
    console.print(f"Scores, texts and the tables of each command are in {results}.")
    return 0


def factor_folders(output: Path, factors: str) -> dict[str, Path]:
    """Of both stages."""
    return {stage: Path(factors) / f"{output.name}-{stage}" for stage in ("pretrained", "finetuned")}


def environment_of(threads: int) -> dict[str, str]:
    """So small a model gains nothing from threads; everything is here, so nothing need be looked for on a network."""
    return {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def train_and_fit(steps: Steps, output: Path, factors: dict[str, Path], overwrite: bool) -> None:
    """The world, the two models, and the factors of each."""
    train = ["-m", "experiments.demo.train", "--output", str(output)] + ["--overwrite"] * overwrite
    steps.run("A world, a model pre-trained on it, and one fine-tuned on questions about half of its facts", train)
    for folder in factors.values():
        if overwrite and (folder / "manifest.json").is_file():
            shutil.rmtree(folder)
    world = output / "world"
    data = {
        "pretrained": [str(world / "corpus.jsonl"), "--text-field", "text"],
        "finetuned": [str(world / "finetune.jsonl"), "--prompt-field", "prompt", "--completion-field", "completion"],
    }
    for stage, name in (("pretrained", "pre-trained"), ("finetuned", "fine-tuned")):
        command = ["-m", "msif.fit_factors", "--model", str(output / stage), "--data", *data[stage]]
        steps.run(f"Factors of the {name} model", [*command, "--output", str(factors[stage])])


def ask(world: Path, path: Path, each: int) -> None:
    """Write the first questions of each relation of the half that is only asked, without their answers."""
    relation_of = {fact["id"]: fact["relation"] for fact in read_rows(world / "facts.jsonl")}
    taken: dict[str, list[dict]] = {}
    for query in read_rows(world / "queries.jsonl"):
        chosen = taken.setdefault(relation_of[query["fact"]], [])
        if len(chosen) < each:
            chosen.append({"id": query["id"], "prompt": query["prompt"]})
    write_json_lines(path, [query for chosen in taken.values() for query in chosen])


def explain(
    steps: Steps,
    methods: Mapping[str, tuple[str, list[str]]],
    output: Path,
    factors: dict[str, Path],
    asked: Path,
    results: Path,
    candidates: int,
) -> None:
    """The scores of every method, each in a folder of its own, made anew.

    Args:
        methods: folder -> title and flags.
    """
    command = ["-m", "msif.influence"]
    for stage in ("pretrained", "finetuned"):
        command += [f"--{stage}", str(output / stage), f"--{stage}-factors", str(factors[stage])]
    command += ["--corpus", str(output / "world" / "corpus.jsonl"), "--queries", str(asked)]
    command += ["--candidates", f"knn:{candidates}", "--top-k", str(SHOWN)]
    results.mkdir(exist_ok=True)
    for name, (title, flags) in methods.items():
        if (results / name / "config.yaml").is_file():
            shutil.rmtree(results / name)
        here = ["--output", str(results / name)]
        steps.run(title[0].upper() + title[1:], [*command, *flags, *here], results / f"{name}.txt")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.demo.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="results/demo", help="models, data and results (default: %(default)s)")
    parser.add_argument("--factors", default="factors", help="folder of the factors (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=4, help="questions of each relation (default: %(default)s)")
    parser.add_argument(
        "--candidates", type=int, default=200, help="passages preselected a question (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="make models and factors anew if settings changed")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
