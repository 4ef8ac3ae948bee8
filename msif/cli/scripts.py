"""The installed commands: ``msif``, which lists the others, and one for each module that is a command."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from msif.cli.version import ShowVersion

COMMANDS = {
    "msif-fit": ("msif.fit_factors", "EK-FAC factors of a model, once"),
    "msif-influence": ("msif.influence", "which documents made a model say that, once a question"),
    "msif-index": ("msif.build_index", "documents' gradients on disk, for many questions"),
}
OTHERS = {
    "msif.foretell": "models as trainings on random halves of the data would have left them",
    "msif.average": "the mean of several runs, of model pairs trained from other seeds",
    "msif.page": "the page of an influence run, again, or of several side by side",
}


def program(module: str) -> str:
    """A command's name in its help, as it was called: by its own name or as a module."""
    called = _called()
    return called if called in COMMANDS and COMMANDS[called][0] == module else f"python -m {module}"


def _called() -> str:
    return Path(sys.argv[0]).stem if sys.argv else ""


def overview() -> str:
    """What commands there are, by both of their names."""
    rows = [(f"{name}  or  python -m {module}", what) for name, (module, what) in COMMANDS.items()]
    rows += [(f"python -m {module}", what) for module, what in OTHERS.items()]
    return "commands (each has --help):\n" + "".join(f"  {names}\n      {what}\n" for names, what in rows)


def main() -> None:
    """Lists the commands."""
    parser = argparse.ArgumentParser(
        prog="msif" if _called() == "msif" else "python -m msif",
        description="Which pre-training documents made this fine-tuned language model say that?",
        epilog=overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=ShowVersion, help="versions of msif, torch and transformers")
    _, others = parser.parse_known_args()
    if others:
        sys.stderr.write(f"error: there is no '{others[0]}' here: {parser.prog} alone lists the commands\n")
        raise SystemExit(2)
    parser.print_help()


def fit() -> NoReturn:
    _start("msif-fit")


def influence() -> NoReturn:
    _start("msif-influence")


def index() -> NoReturn:
    _start("msif-index")


def _start(name: str) -> NoReturn:
    from msif.cli.parsing import run

    run(import_module(COMMANDS[name][0]).main)
