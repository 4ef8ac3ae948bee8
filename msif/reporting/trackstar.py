"""Rankings in the JSON Lines of the public TrackStar viewer, one query a line: written for it, and read from others.

Fields: example_id, query_set, inputs_plaintext, targets_plaintext; proponents, proponent_ids, proponent_scores and the
same three of opponents; optional fact_id, relation, groundtruth, proponent_correct, c4_frequency.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from msif.atomic import write_json_lines
from msif.data.labels import describe_label
from msif.errors import MsifError
from msif.reporting.runs import Run, Scored, read_lines
from msif.reporting.truth import Truth

NEEDED = ("example_id", "inputs_plaintext", "targets_plaintext", "proponents", "proponent_ids", "proponent_scores")
KINDS = ("proponent", "opponent")
EXTRA = ("fact_id", "relation")


def write_trackstar(path: Path | str, run: Run, truth: Truth) -> Path:
    """Writes a run's shown documents.

    Raises:
        MsifError: the file cannot be written.
    """
    path = Path(path)
    write_json_lines(path, _rows(run, truth))
    return path


def _rows(run: Run, truth: Truth) -> Iterator[dict[str, Any]]:
    for query in run.scores:
        shown = [row for row in run.shown if row["query_id"] == query]
        told = run.told.get(query) or (shown[0] if shown else {"prompt": "", "completion": ""})
        fields = told.get("fields") or {}
        known = truth.of(query, fields, told)
        yield {
            "example_id": query,
            "query_set": run.name,
            "inputs_plaintext": told["prompt"],
            "targets_plaintext": answer_of(told),
            **{key: value for row in map(shown_as(shown), KINDS) for key, value in row.items()},
            **{name: fields[name] for name in EXTRA if name in fields},
            **({"fact_id": fields["fact"]} if "fact" in fields and "fact_id" not in fields else {}),
            **({"groundtruth": known.answers[0]} if known and known.answers else {}),
            **({"proponent_correct": _correct(shown, known.sources)} if known and known.sources is not None else {}),
            **({"c4_frequency": told["occurrences"]} if told.get("occurrences") is not None else {}),
        }


def shown_as(shown: list[Mapping[str, Any]]) -> Any:
    """A kind -> its three lists."""

    def lists(kind: str) -> dict[str, list[Any]]:
        own = [row for row in shown if row["kind"] == kind]
        texts, ids = [row["text"] for row in own], [str(row["candidate_id"]) for row in own]
        return {f"{kind}s": texts, f"{kind}_ids": ids, f"{kind}_scores": [row["score"] for row in own]}

    return lists


def _correct(shown: list[Mapping[str, Any]], sources: frozenset[str]) -> list[bool]:
    return [str(row["candidate_id"]) in sources for row in shown if row["kind"] == "proponent"]


def answer_of(told: Mapping[str, Any]) -> str:
    """What the model said, as text."""
    label = told.get("label")
    return describe_label(label) if label is not None else str(told.get("completion") or "")


def read_trackstar(path: Path | str) -> Run:
    """Reads a file of the viewer as a run, without words in colour, whose scores are those it shows.

    Raises:
        MsifError: it is not there, damaged, empty, or has lists of different lengths.
    """
    path = Path(path)
    if not path.is_file():
        raise MsifError(f"there is no file {path}: check the path.")
    rows = read_lines(path, NEEDED)
    if not rows:
        raise MsifError(f"{path} has no rows: give a file with at least one query.")
    shown: list[dict[str, Any]] = []
    scores, told = {}, {}
    for number, row in enumerate(rows, 1):
        _check(row, f"{path}, line {number}")
        query = str(row["example_id"])
        if query in told:
            raise MsifError(f"{path} has the example_id '{query}' twice: give each query its own.")
        own = [one for kind in KINDS for one in _shown(row, query, kind, f"{path}, line {number}")]
        order = sorted(own, key=lambda one: -one["score"])
        ids = [str(one["candidate_id"]) for one in order]
        scores[query] = Scored(ids, np.array([one["score"] for one in order], dtype=np.float64))
        shown += own
        told[query] = _told(row, query)
    names = list(dict.fromkeys(str(row["query_set"]) for row in rows if row.get("query_set")))
    config = {"method": ", ".join(names) or path.stem, "file": path.name}
    return Run(path, shown, {"config": config}, scores, told, whole=False)


def _lists(kind: str) -> tuple[str, str, str]:
    """The fields of its texts, ids and scores."""
    return f"{kind}s", f"{kind}_ids", f"{kind}_scores"


def _check(row: Mapping[str, Any], where: str) -> None:
    """
    Raises:
        MsifError: a field is of another kind than the viewer's.
    """
    for name in ("inputs_plaintext", "targets_plaintext"):
        if row[name] is not None and not isinstance(row[name], str):
            raise MsifError(f"{where} has the {name} {row[name]!r}: write it as text.")
    for name in (*(name for kind in KINDS for name in _lists(kind)), "proponent_correct"):
        if row.get(name) is not None and not isinstance(row[name], list):
            raise MsifError(f"{where} has {row[name]!r} as {name}: write a list.")


def _shown(row: Mapping[str, Any], query: str, kind: str, where: str) -> Iterator[dict[str, Any]]:
    texts, ids, scores = (row.get(name) or [] for name in _lists(kind))
    if not len(texts) == len(ids) == len(scores):
        raise MsifError(f"{where} has {len(texts)} {kind}s, {len(ids)} ids and {len(scores)} scores: make them equal.")
    asked = {"query_id": query, "prompt": row["inputs_plaintext"] or "", "completion": row["targets_plaintext"]}
    for place, (text, id, score) in enumerate(zip(texts, ids, scores, strict=True), 1):
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
            raise MsifError(f"{where} has the {kind} score {score!r}: write scores as numbers.")
        document = {"kind": kind, "rank": place, "candidate_id": id, "score": float(score), "text": str(text)}
        yield {**asked, **document, "tokens": [], "blocks": {}}


def _told(row: Mapping[str, Any], query: str) -> dict[str, Any]:
    fields = {name: row[name] for name in (*EXTRA, "query_set") if row.get(name) is not None}
    correct = row.get("proponent_correct")
    found: dict[str, Any] = {
        "id": query,
        "prompt": row["inputs_plaintext"] or "",
        "completion": row["targets_plaintext"],
    }
    if isinstance(correct, list):
        sources = [str(id) for id, right in zip(row["proponent_ids"] or [], correct, strict=False) if right]
        found["sources"] = sources
    if row.get("groundtruth") is not None:
        found["answers"] = [str(row["groundtruth"])]
    return {**found, "fields": fields, "occurrences": row.get("c4_frequency")}
