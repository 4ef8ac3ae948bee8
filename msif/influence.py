"""Which pre-training documents made a fine-tuned model say that?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msif.attribution.methods import IHVPS, SEARCHES, usual_candidates
from msif.cli.checks import check_arguments, check_options, check_output, follow_the_command_line
from msif.cli.flags import DATA_SOURCES, add_field_flags, add_machine_flags, add_module_flags, add_process_flags
from msif.cli.memory import memory_advice, of_influence
from msif.cli.parsing import (
    Parser,
    not_negative,
    not_negative_or_auto,
    positive_int,
    run,
    seed,
    set_up_logging,
    write_configuration,
)
from msif.cli.scripts import program

EXAMPLE = """example:
  %(prog)s --pretrained base --finetuned tuned --pretrained-factors factors/base
      --finetuned-factors factors/tuned --corpus corpus.jsonl --query "Where was Ada born?" --candidates knn:1000
"""


def parser() -> Parser:
    p = Parser(prog=program("msif.influence"), description=__doc__, epilog=EXAMPLE)
    p.add_argument("--pretrained", metavar="M0", help="folder or hub name of the model that was trained on the corpus")
    p.add_argument("--finetuned", metavar="M1", help="folder or hub name of the model whose answer is explained")
    p.add_argument("--pretrained-factors", metavar="F0", help="folder that msif.fit_factors wrote for M0")
    p.add_argument("--finetuned-factors", metavar="F1", help="folder that msif.fit_factors wrote for M1")
    p.add_argument("--corpus", metavar="D", help=f"candidate documents: {DATA_SOURCES} (required)")
    p.need("--corpus")
    _add_query_flags(p.add_argument_group("query"))
    corpus = p.add_argument_group("corpus")
    add_field_flags(corpus)
    corpus.add_argument(
        "--candidates",
        metavar="SPEC",
        help="knn:N by sentence embeddings (default knn:1000), bm25:N by words, index:N by an index, knn:N+bm25:N, or "
        "all (default where scores come from an index)",
    )
    corpus.add_argument(
        "--search",
        default="exact",
        choices=SEARCHES,
        help="how index:N finds them: exact (default), or faiss, over what msif.build_index --bake R --faiss wrote",
    )
    corpus.add_argument("--embedding-model", metavar="E", help="sentence-transformers model (default all-MiniLM-L6-v2)")
    _add_method_flags(p.add_argument_group("method"))
    add_module_flags(p)
    out = p.add_argument_group("output")
    out.add_argument(
        "--top-k",
        type=positive_int,
        default=10,
        metavar="K",
        help="proponents and opponents shown a query (default 10)",
    )
    out.add_argument(
        "--output", metavar="DIR", help="folder for scores.parquet, top.jsonl and config.yaml (default none)"
    )
    add_process_flags(add_machine_flags(p))
    return p


def _add_query_flags(group: Any) -> None:
    group.add_argument("--query", metavar="TEXT", help="a prompt; for a classifier the text")
    group.add_argument(
        "--completion", metavar="TEXT", help="answer to explain, with its leading space (default: the model's own)"
    )
    group.add_argument(
        "--queries",
        metavar="FILE",
        help="many: fields prompt and completion, or messages (classification: text and label), id",
    )
    tasks = ["lm", "classification"]
    group.add_argument(
        "--task", default="lm", choices=tasks, help="what the fine-tuned model predicts: next tokens (default), a class"
    )
    group.add_argument(
        "--measurement",
        choices=["loss", "margin", "logit"],
        help="what is explained of an answer: its loss (default), log p/(1-p) (default of trak), or its logit",
    )
    group.add_argument(
        "--max-new-tokens", type=positive_int, default=32, metavar="N", help="longest answer of the model (default 32)"
    )


def _add_method_flags(group: Any) -> None:
    group.add_argument(
        "--method",
        default="multi-stage",
        metavar="NAME",
        help="multi-stage (default), single-stage, source, gdp (gradient dot product), cosine, cka, trak, logra, "
        "trackstar, representation, or random",
    )
    group.add_argument(
        "--index",
        metavar="DIR",
        help="folder that msif.build_index wrote: for trackstar, candidates index:N, or multi-stage scores by features",
    )
    group.add_argument(
        "--r",
        metavar="R",
        help="with an index: none, train, mixed or mixed:LAMBDA, which common directions count less (trackstar: mixed)",
    )
    group.add_argument(
        "--damping",
        type=not_negative_or_auto,
        metavar="X",
        help="λ in units of Λ, or 1/τ of each stage's own training: auto, by its files or else by the evidence; "
        "evidence; auto:3 is 3/τ",
    )
    group.add_argument(
        "--damping-scale",
        type=not_negative,
        default=0.1,
        metavar="X",
        help="λ relative to the mean of a block's Λ, where --damping is not given (default 0.1)",
    )
    group.add_argument(
        "--alpha",
        type=not_negative_or_auto,
        metavar="X",
        help="pull of fine-tuning to pre-trained weights, in units of Λ, or auto or evidence: 1/τ; auto:3 is 3/τ "
        "(default: auto)",
    )
    group.add_argument(
        "--adapter-hop",
        action="store_true",
        help="M1 is LoRA: take its training as the adapter's, on frozen weights (default: as one of all weights)",
    )
    group.add_argument(
        "--learning-rate-sum",
        type=not_negative,
        nargs="+",
        metavar="X",
        help="learning rates summed over steps, pre-training then fine-tuning, for auto",
    )
    group.add_argument(
        "--checkpoints",
        nargs="+",
        metavar="DIR",
        help="source: a Trainer's folder of checkpoint-N of each model, pre-training then fine-tuning: training in "
        "segments; factors by msif.fit_factors --checkpoints",
    )
    group.add_argument(
        "--ihvp",
        default="ekfac",
        choices=IHVPS,
        metavar="KIND",
        help=f"how each stage's inverse is applied: {', '.join(IHVPS)} (default ekfac)",
    )
    group.add_argument(
        "--ihvp-iterations", type=positive_int, metavar="N", help="at most so many products (default: by the kind)"
    )
    group.add_argument(
        "--ihvp-tolerance",
        type=not_negative,
        default=1e-4,
        metavar="X",
        help="relative residual at which CG ends (default 1e-4)",
    )
    group.add_argument(
        "--ihvp-examples",
        type=positive_int,
        metavar="N",
        help="sequences of the stage's data to solve on, for --halves, --adapter-hop, or of index data (default all)",
    )
    group.add_argument("--lissa-scale", type=not_negative, metavar="X", help="LiSSA's scale (default: measured)")
    group.add_argument(
        "--arnoldi-top", type=positive_int, default=20, metavar="K", help="Arnoldi's eigenpairs (default 20)"
    )
    group.add_argument(
        "--projection-size",
        type=positive_int,
        metavar="P",
        help="trak, logra: a module's gradient is projected to P x P (default 64 and 16)",
    )
    group.add_argument(
        "--projection-dim", type=positive_int, metavar="D", help="trak: features of a sequence in all (default 4096)"
    )
    group.add_argument("--projection-seed", type=seed, metavar="S", help="trak, logra: of the projection (default 0)")
    group.add_argument(
        "--trak-weighting",
        choices=["token", "example"],
        help="trak: 1-p weights each token's gradient (default), or its mean the sequence's",
    )
    group.add_argument(
        "--logra-labels",
        choices=["sampled", "true"],
        help="logra: curvature with labels of the model (default), or of the data",
    )
    group.add_argument(
        "--cka-rows",
        choices=["units", "whole"],
        help="cka: output units are rows (default), or the whole gradient is one: the squared cosine",
    )
    group.add_argument("--random-seed", type=seed, metavar="S", help="random: of the order (default 0)")
    group.add_argument(
        "--halves",
        metavar="K[:STEP[:NOISE]]",
        help="mean over K models moved towards trainings on random halves of M0's data, such as 4, or 1 in their "
        "middle, and by noise of other first weights; STEP, NOISE: numbers, or auto, what models bear (default none)",
    )
    group.add_argument("--pretrained-data", metavar="D", help="where M0's training data is now; index data")
    group.add_argument("--finetuned-data", metavar="D", help="where M1's training data is now; index data")
    group.add_argument(
        "--query-rank", type=positive_int, metavar="R", help="keep rank R of each query vector; the error is reported"
    )
    group.add_argument(
        "--prior",
        metavar="bm25:W",
        help="add what words say: W standard deviations of score for one of BM25+ over the candidates (default none)",
    )
    group.add_argument(
        "--normalize",
        choices=["none", "unit"],
        help="unit: divide each score by the candidate's gradient norm (default none; trackstar: unit, of both)",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    command = parser()
    args, given = command.parse(arguments), command.given(arguments)
    set_up_logging(args.quiet)
    follow_the_command_line(args, given)
    if args.candidates is None:
        args.candidates = usual_candidates(args.method, args.index)
    check_arguments(args)
    check_options(args, given)
    with memory_advice(of_influence, args):
        _explain(args)


def _explain(args: argparse.Namespace) -> None:
    from msif import distributed
    from msif.cli.explain import asked_of
    from msif.cli.output import new_or_unchanged, score_and_report, score_into
    from msif.prepare import prepare

    job = prepare(asked_of(args))
    args.alpha = job.options.damping.alpha
    if args.output:
        check_output(Path(args.output), args)
    if args.dry_run:
        from msif.cli.dry_run import describe
        from msif.cli.flags import machines_of

        described = describe(job, machines_of(args))
        if distributed.leads():
            print(described)
        return
    if not args.output:
        score_and_report(job)
        return
    output = Path(args.output)
    if not distributed.leads():
        score_into(output, job)
        return
    with new_or_unchanged(output):
        # first, so that an interrupted run's folder is known as its own
        write_configuration(output / "config.yaml", args)
        score_into(output, job)


if __name__ == "__main__":
    run(main)
