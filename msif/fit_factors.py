"""Fit EK-FAC factors of one model over its training data."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msif.cli.checks import check_output_of, check_read, of_dry_run
from msif.cli.flags import (
    add_machine_flags,
    add_module_flags,
    add_process_flags,
    add_stage_data_flags,
    machines_of,
    stage_arguments,
)
from msif.cli.memory import memory_advice, of_fit
from msif.cli.parsing import Parser, not_negative, positive_int, run, seed, set_up_logging, write_configuration
from msif.cli.scripts import program

if TYPE_CHECKING:
    from msif.curvature.estimate import Machines
    from msif.curvature.store import FactorStore
    from msif.stage import Stage

EXAMPLE = """example:
  %(prog)s --model EleutherAI/pythia-70m --data corpus.jsonl --output factors/pythia-70m
"""


def parser() -> Parser:
    p = Parser(prog=program("msif.fit_factors"), description=__doc__, epilog=EXAMPLE)
    add_stage_data_flags(p, "what it was trained on")
    p.add_argument("--output", metavar="DIR", help="folder for the factors (required); an interrupted fit resumes")
    p.need("--model", "--data", "--output")
    p.add_argument(
        "--checkpoints",
        metavar="DIR",
        help="a Trainer's folder of checkpoint-N of this training: factors of each, too, in folders of the output",
    )
    fit = p.add_argument_group("fit")
    fisher = ["sampled", "empirical"]
    fit.add_argument(
        "--fisher", default="sampled", choices=fisher, help="labels drawn from the model (default), or the data's own"
    )
    fit.add_argument(
        "--label-samples", type=positive_int, default=1, metavar="K", help="label draws a sequence and pass (default 1)"
    )
    fit.add_argument("--seed", type=seed, default=0, help="of label draws and batch order (default 0)")
    fit.add_argument(
        "--checkpoint-every",
        type=not_negative,
        default=600.0,
        metavar="SECONDS",
        help="time between checkpoints within a pass (default 600)",
    )
    fit.add_argument(
        "--diagnostics", action="store_true", help="one line a module: how much A, G, Λ move as data doubles"
    )
    add_module_flags(p).add_argument(
        "--vocabulary-basis",
        default="identity",
        metavar="B",
        help="of an unembedding's rows: identity (default, no matrix), blocks:R (R blocks of ids), or dense",
    )
    p.set_defaults(modules="maps", split_heads=True)
    add_process_flags(add_machine_flags(p))
    return p


def main(arguments: Sequence[str] | None = None) -> None:
    command = parser()
    args = command.parse(arguments)
    set_up_logging(args.quiet)
    check_read(command.given(arguments), [of_dry_run(args)])
    with memory_advice(of_fit, args):
        _fit(args)


def stage_of(args: argparse.Namespace) -> Stage:
    """The stage that the flags describe."""
    from msif.curvature.fit import FitSettings
    from msif.stage import Stage

    return Stage(
        args.model,
        args.data,
        args.output,
        task=args.task,
        **stage_arguments(args),
        vocabulary_basis=args.vocabulary_basis,
        streaming=args.streaming,
        settings=FitSettings(args.fisher, args.label_samples, args.seed),
        memory=args.memory,
        checkpoints=args.checkpoints,
        checkpoint_every=args.checkpoint_every,
        fsdp=args.fsdp and not args.dry_run,
    ).checked()


def _fit(args: argparse.Namespace) -> None:
    from msif import distributed
    from msif.curvature.store import is_somebodys

    output = Path(args.output)
    check_output_of(output, output.is_dir() and is_somebodys(output), "factors")
    stage = stage_of(args)
    args.max_length = stage.max_length
    if args.dry_run:
        described = _describe(stage, machines_of(args))
        if distributed.leads():
            print(described)
        return
    for part in reversed(stage.segments):  # the model itself first
        start = time.perf_counter()
        store = part.store
        if distributed.leads():
            of_checkpoint = {"model": str(part.model), "output": str(part.factors), "checkpoints": None}
            own = {} if part.model == stage.model else of_checkpoint
            write_configuration(store.path / "config.yaml", argparse.Namespace(**{**vars(args), **own}))
            print(summary(store, time.perf_counter() - start))
            report_convergence(store, lines=args.diagnostics)


def _describe(stage: Stage, machines: Machines) -> str:
    from msif.curvature.estimate import describe_fit
    from msif.data.format import check_rows, soon_checked
    from msif.data.sample import foretell

    batches = stage.batches
    if soon_checked(batches.corpus):
        check_rows(batches.corpus, stage.format)
    plan, stream = foretell(batches), batches.size is None
    side = stage.side
    return describe_fit(side.model, side.tracked, side.objective, plan, stage.settings, machines, stream)


def summary(store: FactorStore, seconds: float) -> str:
    from msif.curvature.estimate import human_bytes, human_seconds

    counts = store.manifest["counts"]
    size = human_bytes(sum(file.stat().st_size for file in store.path.iterdir()))
    blocks = sum(len(module.blocks) for module in store.tracked)
    return (
        f"{store.path}: {blocks} blocks of {len(store.tracked)} modules, fitted on {counts['sequences']} sequences "
        f"with {counts['supervised']} supervised tokens in {human_seconds(seconds)}; {size} on disk"
    )


def report_convergence(store: FactorStore, lines: bool) -> None:
    """A warning where factors still move, or where it was not measured; one line a module on request."""
    from msif.curvature.convergence import WARN_ABOVE

    changes = store.manifest["convergence"]
    kinds = ("A", "G", "Lambda")
    if lines:
        print(f"relative change per doubling of the data\n{'module':48} {'A':>7} {'G':>7} {'Λ':>7}")
        for name, leader in store.groups.items():
            keys = (f"{leader}:A", f"{name}:G", f"{name}:Lambda")
            print(f"{name:48} " + " ".join(f"{changes[k]:7.1%}" if k in changes else "      –" for k in keys))
    if not changes:
        print(f"warning: {_not_measured(store.manifest['counts'])}.", file=sys.stderr)
    moving = {kind: max((v for k, v in changes.items() if k.endswith(f":{kind}")), default=0.0) for kind in kinds}
    worst = [f"{kind} {value:.0%}" for kind, value in moving.items() if value > WARN_ABOVE]
    if worst:
        advice = "more data or --label-samples would steady them; --diagnostics shows each layer"
        print(
            f"warning: factors still move per doubling of the data ({', '.join(worst)} at most): {advice}.",
            file=sys.stderr,
        )


def _not_measured(counts: Mapping[str, int]) -> str:
    """Why a fit says nothing of how much factors still move; only between batches are they looked at."""
    what = "how much factors would still move with more data was not measured, for"
    if counts["sequences"] < 2:
        return f"{what} they were fitted on one sequence: give more data"
    tokens = max(1, counts["positions"] // 4)  # of several batches one ends near the half
    return f"{what} nearly all data are one batch: --batch-tokens {tokens} with another --output measures it"


if __name__ == "__main__":
    run(main)
