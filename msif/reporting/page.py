"""The page that a person works in after an influence run.

One file that opens from the disk: the queries, each with the documents that made its answer likelier or less likely,
their words in the colours of their parts of the score; two runs side by side; and how the numbers were made. Nothing
of a document ever becomes markup: data is JSON, and its scripts write text only.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from msif.atomic import write_text
from msif.json_text import finite, to_json
from msif.reporting.about import about
from msif.reporting.payload import payload
from msif.reporting.runs import Run, open_run
from msif.reporting.runs import read_run as read_run  # where it was looked for
from msif.reporting.truth import Truth, check_meets, read_truth

PAGE = "page.html"
TITLE = "Which pre-training documents made the model say this?"
TEMPLATES = Path(__file__).parent / "templates"
# in the order in which they are read
SCRIPTS = ("dom", "state", "format", "charts", "text", "entry", "queries", "query", "compare", "runs", "main")
STYLES = ("base", "parts", "views", "print")
# what would end a script element or begin markup, and lines that end for JavaScript alone
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def write_page(
    folders: Path | str | Sequence[Path | str], path: Path | str | None = None, truth: Sequence[Path | str] = ()
) -> Path:
    """Writes the page of results, one folder or several side by side, to ``path``, or to page.html in the first.

    Args:
        folders: of ``msif.influence --output``, or JSON Lines files of the TrackStar viewer.
        truth: files of what is true, see ``read_truth``.

    Raises:
        MsifError: results or truth cannot be read.
    """
    given = [folders] if isinstance(folders, (str, Path)) else list(folders)
    first = Path(given[0])
    path = (first.with_suffix(".html") if first.suffix == ".jsonl" else first / PAGE) if path is None else Path(path)
    known = read_truth(*truth)
    runs = [open_run(folder) for folder in given]
    check_meets(known, runs)
    write_text(path, render(runs, known))
    return path


def render(runs: Sequence[Run], truth: Truth | None = None) -> str:
    """The whole page."""
    from markupsafe import Markup

    shown = payload(runs, truth or Truth())
    script = _joined(SCRIPTS, "js")
    return _template().render(
        title=TITLE,
        style=Markup(style()),
        script=Markup(script),
        script_hash=_hash(script),
        runs=[about(run) for run in runs],
        index=shown.index,
        queries=shown.queries,
        documents=shown.documents,
    )


@cache
def _template() -> Any:
    """Compiled once: several pages are often made by one process."""
    from jinja2 import Environment, FileSystemLoader
    from markupsafe import Markup

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["data"] = lambda value: Markup(embedded(value))
    return environment.get_template("page.html")


def embedded(value: Any) -> str:
    """JSON that is safe inside a script element, whatever its strings and numbers are."""
    try:
        text = to_json(value, allow_nan=False)
    except ValueError:  # rare, and a page is large
        text = to_json(finite(value))
    for character, escape in _UNSAFE.items():
        text = text.replace(character, escape)
    return text


def style() -> str:
    """The style sheet of the page."""
    return _joined(STYLES, "css")


@cache
def _joined(names: Sequence[str], ending: str) -> str:
    parts = [(TEMPLATES / f"{name}.{ending}").read_text(encoding="utf-8") for name in names]
    if ending == "js":
        return '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"
    return "\n".join(parts)


def _hash(script: str) -> str:
    """By which the page's policy tells its own script from any other."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
