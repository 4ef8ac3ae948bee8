"""One answer explained: python -m experiments.case_study.

The fine-tuned model of a pair answers a prompt; sentence embeddings choose documents of the pre-training corpus, and
multi-stage influence ranks them, with the words and the layers that carry each score, on a page for a browser. Each
step is a command that is printed before it runs, so that it can be repeated by hand, with any other pair of models.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from experiments.case_study.question import choose
from experiments.case_study.report import write
from experiments.common.running import experiment_parser
from experiments.common.steps import Steps, console_for_commands
from experiments.facts.reading import Pair, read_pair
from msif.cli.parsing import Parser, configuration, positive_int, run

STAGES = {"pretrained": "pre-trained", "finetuned": "fine-tuned"}


def parser() -> Parser:
    flags = experiment_parser("case_study", __doc__)
    flags.add_argument(
        "--pair",
        default="results/fact_tracing",
        metavar="DIR",
        help="what python -m experiments.fact_tracing.pair left (default: %(default)s)",
    )
    flags.add_argument("--prompt", metavar="TEXT", help="what is asked (default: a question that the model answers)")
    flags.add_argument("--factors", default="factors", help="folder of the factors (default: %(default)s)")
    flags.add_argument(
        "--candidates", type=positive_int, default=500, metavar="N", help="documents preselected (default: %(default)s)"
    )
    flags.add_argument(
        "--top-k", type=positive_int, default=5, metavar="K", help="proponents and opponents shown (default: 5)"
    )
    return flags


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse(arguments)
    pair = read_pair(options.pair)
    question = choose(pair, options.prompt, options.seed)
    output = Path(options.output)
    results = Path(options.results or output / "report")
    found, page = output / "influence", results / "page.html"
    if options.overwrite and (found / "config.yaml").is_file():
        shutil.rmtree(found)
    console = console_for_commands()
    environment = {"OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "false"}
    console.print("All commands run with " + " ".join(f"{name}={value}" for name, value in environment.items()))
    steps = Steps(console, environment)
    factors = {stage: str(Path(options.factors) / f"{pair.folder.name}-{stage}") for stage in STAGES}
    fit(steps, pair, factors, options.device)
    steps.run(
        "The model's answer, and the documents that made it likely",
        asking(pair, factors, question.prompt, found, options),
    )
    steps.run("The page", ["-m", "msif.page", str(found), "--page", str(page)])
    write(results, question, found, configuration(options))
    console.print((results / "case-study.md").read_text(encoding="utf-8"), markup=False, soft_wrap=True)
    console.print(f"The {len(steps.seconds)} commands took {sum(steps.seconds):.0f} s. Read {page} in a browser.")


def fit(steps: Steps, pair: Pair, factors: dict[str, str], device: str) -> None:
    """Factors of both models; those that are there are kept by the command itself."""
    files = pair.folder / "data"
    data = {
        "pretrained": [str(files / "corpus.jsonl"), "--text-field", "text"],
        "finetuned": [str(files / "finetune.jsonl"), "--prompt-field", "prompt", "--completion-field", "completion"],
    }
    for stage, name in STAGES.items():
        command = ["-m", "msif.fit_factors", "--model", getattr(pair, stage), "--data", *data[stage]]
        steps.run(f"Factors of the {name} model", [*command, "--device", device, "--output", factors[stage]])


def asking(pair: Pair, factors: dict[str, str], prompt: str, found: Path, options: argparse.Namespace) -> list[str]:
    """The influence command."""
    command = ["-m", "msif.influence"]
    for stage in STAGES:
        command += [f"--{stage}", getattr(pair, stage), f"--{stage}-factors", factors[stage]]
    command += ["--corpus", str(pair.folder / "data" / "corpus.jsonl"), "--query", prompt]
    command += ["--candidates", f"knn:{options.candidates}", "--top-k", str(options.top_k)]
    return [*command, "--device", options.device, "--output", str(found)]


if __name__ == "__main__":
    run(main)
