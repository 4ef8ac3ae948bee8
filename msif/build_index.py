"""Compute each document's projected gradient once, for any later query."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msif.cli.checks import check_output_of, check_read, of_damping, scale_takes_its_place
from msif.cli.flags import add_machine_flags, add_stage_data_flags, stage_arguments
from msif.cli.memory import memory_advice, of_index
from msif.cli.parsing import (
    Parser,
    bakeable,
    not_negative,
    positive_int,
    run,
    seed,
    set_up_logging,
    share,
    write_configuration,
)
from msif.cli.scripts import program
from msif.errors import MsifError

if TYPE_CHECKING:
    from msif.index.storage import GradientIndex

EXAMPLE = """example:
  %(prog)s --model EleutherAI/pythia-70m --data corpus.jsonl --output index/pythia-70m
"""


def parser() -> Parser:
    p = Parser(prog=program("msif.build_index"), description=__doc__, epilog=EXAMPLE)
    add_stage_data_flags(p, "the documents")
    p.add_argument(
        "--output",
        metavar="DIR",
        help="folder for the index (required); an interrupted one goes on, new documents join",
    )
    p.need("--model", "--data", "--output")
    _add_feature_flags(p.add_argument_group("features"))
    curvature = p.add_argument_group("multi-stage influence")
    curvature.add_argument("--factors", metavar="DIR", help="of the model: the index is of H^(-1/2) times gradients")
    curvature.add_argument("--damping", type=not_negative, metavar="X", help="λ in units of Λ")
    curvature.add_argument(
        "--damping-scale",
        type=not_negative,
        default=0.1,
        metavar="X",
        help="λ relative to the mean of a block's Λ, where --damping is not given (default 0.1)",
    )
    curvature.add_argument(
        "--basis",
        choices=["random", "leading"],
        help="random projections (default), or the leading entries of EK-FAC's eigenbasis (default with --factors)",
    )
    add_machine_flags(p)
    search = p.add_argument_group("search")
    search.add_argument(
        "--bake",
        type=bakeable,
        metavar="R",
        help="none or train: write unit vectors corrected by this R, too, which --r R with unit norm then uses",
    )
    search.add_argument(
        "--faiss",
        nargs="?",
        const="auto",
        metavar="FACTORY",
        help="approximate search of the baked vectors, by a factory string of faiss such as IVF1024,SQ8 (default: by "
        "the number of documents); what it finds of the exact search is measured",
    )
    machine = p.add_argument_group("shards")
    machine.add_argument("--shard", type=share, metavar="I/N", help="this process takes share I of N of the documents")
    machine.add_argument(
        "--checkpoint-every",
        type=not_negative,
        default=600.0,
        metavar="SECONDS",
        help="a shard is written after so long at most (default 600)",
    )
    return p


def _add_feature_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--modules", help="everything (default: all but the embedding of tokens), maps, layers, or a regular expression"
    )
    group.add_argument(
        "--blocks",
        type=positive_int,
        default=8,
        metavar="B",
        help="groups of layers; attention and MLP apart (default 8)",
    )
    group.add_argument(
        "--projection", type=positive_int, default=64, metavar="P", help="P x P features of a block (default 64)"
    )
    group.add_argument("--seed", type=seed, default=0, help="of the projection (default 0)")
    group.add_argument(
        "--second-moments",
        default="auto",
        metavar="KIND",
        help="gradients are divided by their roots: adam, adafactor, optimizer (the state beside the model), estimate, "
        "none, a folder or file, or auto: the state or else an estimate (default)",
    )
    group.add_argument(
        "--measurement",
        default="loss",
        choices=["loss", "margin", "logit"],
        help="what is differentiated (default loss)",
    )
    group.add_argument(
        "--weighting",
        default="token",
        choices=["token", "example", "none"],
        help="how margins or logits of a document's tokens count (default token: by 1-p of each)",
    )
    group.add_argument("--tied", action="store_true", help="with an unembedding that is tied to the embedding")
    group.add_argument(
        "--store",
        default="bfloat16",
        choices=["float32", "bfloat16", "float16", "int8"],
        help="dtype of what is stored (default bfloat16)",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    command = parser()
    args, given = command.parse(arguments), command.given(arguments)
    set_up_logging(args.quiet)
    scale_takes_its_place(args, given)
    of_factors = [(name, bool(args.factors), "give --factors") for name in ("damping", "damping_scale")]
    check_read(given, [*of_factors, *of_damping(given)])
    with memory_advice(of_index, args):
        _build(args)


def _build(args: argparse.Namespace) -> None:
    from msif import distributed
    from msif.index.approximate import check_factory, make_approximate
    from msif.index.baking import bake
    from msif.index.settings import IndexSettings
    from msif.index.writing import is_somebodys
    from msif.indexing import check_share, describe_index, make_index, usual_basis
    from msif.stage import Stage

    check_output_of(Path(args.output), is_somebodys(Path(args.output)), "index")
    check_share(Path(args.output), args.shard)
    if args.faiss and not args.bake:
        raise MsifError("faiss searches baked vectors: give --bake train or --bake none with --faiss.")
    factory = None if args.faiss == "auto" else args.faiss
    if args.faiss:
        check_factory(factory)
    args.basis = args.basis or usual_basis(args.factors)
    names = ("blocks", "projection", "seed", "measurement", "weighting", "basis", "tied")
    settings = IndexSettings(**{name: getattr(args, name) for name in names}, dtype=args.store)
    stage = Stage(
        args.model, args.data, task=args.task, **stage_arguments(args), streaming=args.streaming, memory=args.memory
    ).checked()
    options = {name: getattr(args, name) for name in ("second_moments", "factors")}
    if args.dry_run:
        described = describe_index(stage, settings, **options, bakes=args.bake is not None)
        if distributed.leads():
            print(described)
        return
    options |= {name: getattr(args, name) for name in ("damping", "damping_scale", "checkpoint_every")}
    index = make_index(stage, args.output, settings, **options, share=args.shard)
    if not distributed.leads():
        return
    write_configuration(Path(args.output) / "config.yaml", args)
    if index is None:
        print(f"this share is done; others of {args.output} are not")
        return
    baked = bake(index, args.bake) if args.bake else None
    found = make_approximate(baked, factory) if baked is not None and args.faiss else None
    print(summary(index))
    if baked is not None:
        print(f"baked: unit vectors for --r {args.bake} --normalize unit")
    if found is not None:
        print(found)


def summary(index: GradientIndex) -> str:
    from msif.curvature.estimate import human_bytes

    size = human_bytes(sum(file.stat().st_size for file in index.path.rglob("*") if file.is_file()))
    said = f"{index.path}: {len(index)} documents, {index.width} features of {len(index.manifest['blocks'])} blocks"
    lines = [f"{said} as {index.settings.dtype}; {size} on disk"]
    if index.rounding:
        lines.append(
            f"rounding changes cosines by {index.rounding['largest']:.1g} at most; of the first ten of a document "
            f"{index.rounding['top10']:.0%} are the same (measured on {index.rounding['documents']} documents)"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
