"""The page that a person reads after an influence run.

One file without scripts, for a browser or a mail: for each query its answer, the documents that made it likely and
those that made it less so, with their words in the colours of their parts of the score, and the layers that carry it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msif.atomic import write_text
from msif.data.labels import describe_label
from msif.errors import MsifError, one_line
from msif.json_text import json_lines, to_json
from msif.reporting.document import document_card
from msif.reporting.markup import Markup, element, join
from msif.reporting.style import STYLE

PAGE = "page.html"
TITLE = "Which pre-training documents made the model say this?"
SHOWN_FIELDS = ("query_id", "kind", "rank", "candidate_id", "score", "text", "prompt", "tokens", "blocks")


@dataclass(frozen=True)
class Run:
    """What ``msif.influence --output`` left, as it stands in its files.

    Attributes:
        shown: the rows of top.jsonl, in order.
        manifest: manifest.json.
        scored: query id -> number of scored candidates.
    """

    folder: Path
    shown: Sequence[Mapping[str, Any]]
    manifest: Mapping[str, Any]
    scored: Mapping[str, int]


def read_run(folder: Path | str) -> Run:
    """Reads a folder of results.

    Raises:
        MsifError: it is not there, not complete, or damaged.
    """
    folder = Path(folder)
    for name in ("manifest.json", "scores.parquet", "top.jsonl"):
        if not (folder / name).is_file():
            raise MsifError(f"{folder} holds no {name}: give a folder that msif.influence --output wrote to its end.")
    manifest = _read_json(folder / "manifest.json")
    if not isinstance(manifest.get("config"), dict):
        raise MsifError(f"{folder / 'manifest.json'} holds no configuration: run msif.influence again.")
    shown = []
    for number, row in enumerate(json_lines(folder / "top.jsonl"), 1):
        lacking = [field for field in SHOWN_FIELDS if field not in row]
        if lacking:
            raise MsifError(f"{folder / 'top.jsonl'} has no '{lacking[0]}' in line {number}: run msif.influence again.")
        shown.append(row)
    return Run(folder, shown, manifest, _scored(folder / "scores.parquet"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MsifError(f"{path} is damaged ({error}): run msif.influence again.") from error
    if not isinstance(value, dict):
        raise MsifError(f"{path} is damaged (no JSON object): run msif.influence again.")
    return value


def _scored(path: Path) -> dict[str, int]:
    """In the order of the queries."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        counts = pq.read_table(path, columns=["query_id"]).column("query_id").value_counts().to_pylist()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise MsifError(f"{path} cannot be read ({one_line(error)}): run msif.influence again.") from error
    return {str(row["values"]): int(row["counts"]) for row in counts}


def write_page(folder: Path | str, path: Path | str | None = None) -> Path:
    """Writes the page of a folder of results to ``path``, or to page.html in it.

    Raises:
        MsifError: see ``read_run``.
    """
    path = Path(folder) / PAGE if path is None else Path(path)
    page = render(read_run(folder))
    write_text(path, page)
    return path


def render(run: Run) -> str:
    """The whole page."""
    queries = list(run.scored)
    sections = [_query(run, query, number) for number, query in enumerate(queries, 1)]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        # nothing that a document's text could bring with it is ever loaded or run
        element("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'"),
        element("title", TITLE),
        element("style", Markup(STYLE)),
    )
    body = element(
        "body",
        element("header", element("h1", TITLE), element("p", _models(run), class_="soft"), _legend(run)),
        _contents(run, queries) if len(queries) > 1 else Markup(""),
        element("main", join(sections)),
        _footer(run),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _models(run: Run) -> str:
    config = run.manifest["config"]
    names = {"pre-trained": config.get("pretrained"), "fine-tuned": config.get("finetuned")}
    models = ", ".join(f"{kind} {name}" for kind, name in names.items() if name)
    return f"{config.get('method')} influence · {models} · documents from {config.get('corpus')}"


def _legend(run: Run) -> Markup:
    parts = [
        element("span", "blue", class_="key p", style="--w:1"),
        " made the answer more likely, ",
        element("span", "orange", class_="key o", style="--w:1"),
        " made it less likely. ",
    ]
    if any(row["tokens"] for row in run.shown):
        parts.append(
            "A word is as strong in colour as its part of the score is beside the largest of its document; the part "
            "arises where the model, having read this word, predicts the next. Point at a word for its number. "
        )
    parts.append("Scores are compared within one query only.")
    return element("p", *parts, class_="legend")


def _contents(run: Run, queries: Sequence[str]) -> Markup:
    links = []
    for number, query in enumerate(queries, 1):
        rows = [row for row in run.shown if row["query_id"] == query]
        text = f"{_one_line(rows[0]['prompt'])} {_answer(rows[0])}" if rows else query
        links.append(element("li", element("a", text, href=f"#query-{number}")))
    return element("nav", element("ol", join(links)))


def _query(run: Run, query: str, number: int) -> Markup:
    rows = [row for row in run.shown if row["query_id"] == query]
    count = f"{run.scored[query]:,} documents were scored for this query."
    if not rows:
        shown = [element("p", f"Query {query}: no score differs from zero. {count}", class_="soft")]
    else:
        asked = element("p", rows[0]["prompt"], element("b", _answer(rows[0])), class_="asked", dir="auto")
        shown = [asked, element("p", count, class_="soft"), *_lists(rows)]
    return element("section", *shown, class_="query", id=f"query-{number}")


def _answer(row: Mapping[str, Any]) -> str:
    label = row.get("label")
    return f" {describe_label(label)}" if label is not None else str(row.get("completion") or "")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _lists(rows: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """Proponents, then opponents."""
    largest = max(abs(float(row["score"])) for row in rows)
    lists = []
    for kind, title in (("proponent", "Made it more likely"), ("opponent", "Made it less likely")):
        own = [row for row in rows if row["kind"] == kind]
        cards = [document_card(row, largest, is_open=place == 0) for place, row in enumerate(own)]
        if cards:
            lists += [element("h2", title), *cards]
    return lists


def _footer(run: Run) -> Markup:
    """All that made these numbers."""
    manifest = run.manifest
    entries = [(key, value) for key, value in manifest["config"].items() if value is not None]
    entries += [(f"version of {name}", value) for name, value in manifest.get("versions", {}).items()]
    entries += [("fingerprint of weights", value) for value in manifest.get("weights", [])]
    entries += [(f"left out: {name}", reason) for name, reason in manifest.get("left_out", {}).items()]
    rows = [element("tr", element("th", str(key), scope="row"), element("td", _shown(value))) for key, value in entries]
    again = f"python -m msif.influence --config {run.folder / 'config.yaml'}"
    return element(
        "footer",
        element("h2", "Configuration"),
        element("p", "The same again: ", element("code", again)),
        element("table", element("tbody", join(rows)), class_="settings"),
    )


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else to_json(value)
