"""Flags that both commands have, in groups."""

from __future__ import annotations

import argparse
from typing import Any

from msif.cli.parsing import byte_count, positive_int

DATA_SOURCES = "hub name, save_to_disk folder, or .jsonl .json .csv .tsv .txt (also .gz .zst .bz2 .xz) or .parquet"


def add_field_flags(group: Any) -> None:
    """Which fields of the data are read."""
    group.add_argument("--text-field", metavar="F", help="field of plain text (default: text, where there is one)")
    group.add_argument("--prompt-field", metavar="P", help="field of prompts, with --completion-field")
    group.add_argument("--completion-field", metavar="C", help="field of completions; only they are supervised")
    group.add_argument("--messages-field", metavar="F", help="field of chat messages; assistant turns are supervised")
    group.add_argument("--label-field", metavar="L", help="field of class labels, for a classifier (default: label)")
    group.add_argument("--split", help="split of a dataset that has several (default: train, or the only one)")
    group.add_argument(
        "--max-length", type=positive_int, metavar="T", help="tokens kept of a document (default 512, or what fits)"
    )
    group.add_argument("--max-examples", type=positive_int, metavar="N", help="only the first N rows (default all)")


def add_stage_data_flags(p: argparse.ArgumentParser, data: str) -> None:
    """The model, its data and where results go, and how the data are read."""
    p.add_argument("--model", metavar="M", help="folder or hub name of the model (required)")
    p.add_argument("--data", metavar="D", help=f"{data}: {DATA_SOURCES} (required)")
    group = p.add_argument_group("data")
    tasks = ["lm", "classification"]
    group.add_argument(
        "--task", default="lm", choices=tasks, help="what is predicted: next tokens (default) or a class"
    )
    add_field_flags(group)
    group.add_argument("--streaming", action="store_true", help="read on the fly, for a corpus larger than the disk")


def field_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The field flags as arguments of ``choose_format``."""
    from msif.data.format import FIELDS

    return {field: getattr(args, field) for field in FIELDS}


def stage_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The flags that commands have of a stage, as arguments of ``Stage``; an index has no heads to split."""
    same = ("modules", "split_heads", "dtype", "device", "split", "max_length", "max_examples", "batch_tokens")
    return {"fields": field_arguments(args), **{name: getattr(args, name, None) for name in same}}


def add_module_flags(p: argparse.ArgumentParser) -> Any:
    group = p.add_argument_group("modules")
    group.add_argument(
        "--modules",
        help="maps (default, or what factors hold), layers, attention, mlp, everything, or a regular expression",
    )
    group.add_argument(
        "--split-heads",
        action=argparse.BooleanOptionalAction,
        help="one block for each head of q, k and v, or one block a module (default: split)",
    )
    return group


def add_device_flags(group: Any) -> None:
    """Where weights are, and in what."""
    dtypes = ["auto", "float32", "bfloat16", "float16"]
    group.add_argument("--dtype", default="auto", choices=dtypes, help="dtype of the weights; auto: as stored")
    group.add_argument("--device", default="auto", help="auto (CUDA where there is one), cpu, cuda, cuda:1 ...")


def add_machine_flags(p: argparse.ArgumentParser) -> Any:
    """How a run is carried out."""
    group = p.add_argument_group("machine")
    add_device_flags(group)
    group.add_argument(
        "--batch-tokens", type=positive_int, default=8192, metavar="N", help="tokens of a padded batch (default 8192)"
    )
    group.add_argument(
        "--memory",
        type=byte_count,
        metavar="SIZE",
        help="of the device in all, such as 20GB; else passes are repeated (default: most of what is free)",
    )
    group.add_argument("--quiet", action="store_true", help="warnings only")
    group.add_argument(
        "--dry-run", action="store_true", help="print sizes, memory and a time estimate from a short probe, and stop"
    )
    return group


def add_process_flags(group: Any) -> None:
    """Of commands whose work several processes share."""
    group.add_argument(
        "--fsdp",
        action="store_true",
        help="under torchrun: share the weights out between the processes, for a model larger than a device",
    )
    group.add_argument(
        "--processes", type=positive_int, metavar="N", help="with --dry-run: foretell a run of N processes"
    )


def machines_of(args: argparse.Namespace) -> Any:
    """What is foretold."""
    from msif import distributed
    from msif.curvature.estimate import Machines

    return Machines(args.processes or distributed.processes(), args.fsdp, args.memory)
