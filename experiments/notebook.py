"""Runs the notebooks of docs/ and keeps what they show: python -m experiments.notebook.

Warnings, progress bars and what is large, such as a whole page, are left out of what is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from msif.atomic import write_text
from msif.cli.parsing import Parser, run
from msif.errors import MsifError

FOLDER = Path("docs/notebooks")
LARGEST = 100_000
"""Characters of one output."""


def parser() -> Parser:
    flags = Parser(prog="python -m experiments.notebook", description=__doc__)
    flags.add_argument("--folder", type=Path, default=FOLDER, help="of notebooks (default: %(default)s)")
    return flags


def executed(path: Path) -> Any:
    """A notebook with the outputs of a run in a folder that goes away.

    Raises:
        MsifError: nbclient is not installed.
    """
    try:
        import nbformat
        from nbclient import NotebookClient
    except ImportError as error:
        raise MsifError("notebooks need nbclient and ipykernel: pip install -e '.[dev]'.") from error
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as folder:
        # what is run knows nothing of where it lies
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    return notebook


def kept(notebook: Any) -> Any:
    """Without times, warnings and large outputs, of which the short text stays."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [_short(output) for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def _short(output: Any) -> Any:
    if "data" in output:
        output["data"] = {kind: text for kind, text in output["data"].items() if len(text) < LARGEST}
    return output


def main(arguments: Sequence[str] | None = None) -> None:
    import nbformat

    for path in sorted(parser().parse(arguments).folder.glob("*.ipynb")):
        write_text(path, nbformat.writes(kept(executed(path))) + "\n")
        print(path)


if __name__ == "__main__":
    run(main)
