"""The command line of an experiment."""

from __future__ import annotations

from typing import Any

from msif.cli.parsing import Parser


def experiment_parser(name: str, description: str | None, **defaults: Any) -> Parser:
    """A parser with the flags of every experiment; ``defaults`` are theirs."""
    parser = Parser(prog=f"python -m experiments.{name}", description=description)
    parser.add_argument(
        "--output",
        default=f"results/{name}",
        help="folder for models, factors and scores, where an interrupted run goes on (default: %(default)s)",
    )
    parser.add_argument("--results", help="folder for the tables and plots (default: OUTPUT/report)")
    parser.add_argument("--seed", type=int, default=0, help="decides all that is drawn (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace what other settings made")
    parser.set_defaults(**defaults)
    return parser


def add_data_flag(parser: Parser) -> None:
    """For experiments on data that is not in the project."""
    parser.add_argument("--data", default="../shared/data", help="folder of the data (default: %(default)s)")


def quiet(threads: int) -> None:
    """So many threads, and no progress bars of loading and saving."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(threads)
    logging.disable_progress_bar()
