"""Models as trainings on random halves of the data would have left them, foretold by one step and written as folders.

Each is a model like any other: fit factors of it, ask it by any method, and average the runs. --halves of
msif.influence asks such models as well, with the curvature of those that are there.
"""

from __future__ import annotations

from collections.abc import Sequence

from msif.cli.flags import add_device_flags
from msif.cli.parsing import Parser, not_negative, positive_int, run, set_up_logging

EXAMPLE = """example:
  %(prog)s --pretrained M0 --finetuned M1 --pretrained-factors factors/M0 --output halves
  python -m msif.fit_factors --model halves/0/pretrained --data corpus.jsonl --output factors/half-0-M0
"""
STEP = 1.0


def parser() -> Parser:
    p = Parser(prog="python -m msif.foretell", description=__doc__, epilog=EXAMPLE)
    p.add_argument(
        "--pretrained", metavar="M0", help="folder or hub name of the model that documents taught (required)"
    )
    p.add_argument("--finetuned", metavar="M1", help="of a model that was fine-tuned from it, which moves along")
    p.add_argument("--pretrained-factors", metavar="F0", help="factors of M0, by msif.fit_factors (required)")
    p.add_argument("--output", metavar="DIR", help="folder for 0/pretrained, 0/finetuned, 1/pretrained ... (required)")
    p.add_argument(
        "--halves",
        default="4",
        metavar="K[:STEP[:NOISE]]",
        help=f"how many, or 1 for one model in their middle (default 4), the step to them (default {STEP:g}), and the "
        "noise of first weights, in standard deviations of each module's weights (default 0)",
    )
    p.add_argument("--task", default="lm", choices=["lm", "classification"], help="of M1 (default lm)")
    p.add_argument("--pretrained-data", metavar="D", help="where M0's training data is now")
    p.add_argument("--examples", type=positive_int, metavar="N", help="sequences of M0's data to read (default all)")
    p.add_argument(
        "--learning-rate-sum", type=not_negative, metavar="X", help="learning rates of M0's training, summed"
    )
    add_device_flags(p)
    p.add_argument("--quiet", action="store_true", help="warnings only")
    p.need("--pretrained", "--pretrained-factors", "--output")
    return p


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse(arguments)
    set_up_logging(args.quiet)
    from msif.attribution.halves import as_halves
    from msif.foretelling import write_halves
    from msif.stage import Stage

    halves = as_halves(args.halves if ":" in args.halves else f"{args.halves}:{STEP:g}")
    machine = {"dtype": args.dtype, "device": args.device}
    rates, data = args.learning_rate_sum, args.pretrained_data
    factors = args.pretrained_factors
    first = Stage(args.pretrained, factors=factors, moved_to=data, learning_rate_sum=rates, **machine)
    last = None if args.finetuned is None else Stage(args.finetuned, task=args.task, **machine)
    folders = write_halves(first, last, halves, args.output, args.examples)
    print(f"{len(folders)} foretold models are in {args.output}")


if __name__ == "__main__":
    run(main)
