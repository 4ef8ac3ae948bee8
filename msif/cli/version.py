"""What ``--version`` says, without importing what it names."""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

import msif

NAMED = ("torch", "transformers")


def versions() -> str:
    """One line that belongs into a report of a problem."""
    others = ", ".join(f"{name} {_version(name)}" for name in NAMED)
    return f"msif {msif.__version__} ({others}, Python {platform.python_version()})"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


class ShowVersion(argparse.Action):
    """Prints the versions and ends the command."""

    def __init__(self, option_strings: list[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(versions())
        parser.exit()
