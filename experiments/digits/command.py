"""What the commands of this experiment have in common: flags, and what is refused before any work."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from experiments.common.running import experiment_parser
from experiments.digits.settings import SMALL, Settings
from msif.cli.parsing import Parser
from msif.errors import MsifError


def digits_parser(name: str, text: str | None, **defaults: Any) -> Parser:
    """A parser with the flags of each command."""
    parser = experiment_parser(name, text, **defaults)
    parser.add_argument("--small", action="store_true", help="a check in seconds: few images, retrainings and members")
    parser.add_argument("--processes", type=int, default=1, help="parts of the work at once (default: %(default)s)")
    return parser


def settings_of(options: argparse.Namespace, *numbers: int, **sizes: int) -> Settings:
    """
    Args:
        numbers: what else must be 1 or more.
        sizes: of the settings, as they are given.

    Raises:
        MsifError: another device than the CPU, or a number below 1.
    """
    if options.device != "cpu":
        raise MsifError("these networks are too small to gain from a GPU: leave --device at cpu.")
    if any(value < 1 for value in (options.processes, *numbers, *sizes.values())):
        raise MsifError("every number must be 1 or more: give larger numbers.")
    return replace(SMALL if options.small else Settings(), seed=options.seed, **sizes)
