"""A run of ``msif.influence`` as it stands in its files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from msif.errors import MsifError, one_line
from msif.json_text import json_lines

SHOWN_FIELDS = ("query_id", "kind", "rank", "candidate_id", "score", "text", "prompt", "tokens", "blocks")


@dataclass(frozen=True)
class Scored:
    """One query's candidates, the largest score first.

    Attributes:
        ids: (k,), as text, by which runs are compared.
        scores: float64, (k,).
    """

    ids: Sequence[str]
    scores: np.ndarray


@dataclass(frozen=True)
class Run:
    """What ``msif.influence --output`` left, or what somebody else's tool did.

    Attributes:
        shown: the rows of top.jsonl, in order.
        manifest: manifest.json.
        scores: query id -> all that was scored for it; of a file of others only what it shows.
        told: query id -> its row of queries.jsonl; empty of results that have none.
        whole: whether ``scores`` are all that were made.
    """

    folder: Path
    shown: Sequence[Mapping[str, Any]]
    manifest: Mapping[str, Any]
    scores: Mapping[str, Scored]
    told: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    whole: bool = True

    @property
    def name(self) -> str:
        return self.folder.stem if self.folder.suffix == ".jsonl" else self.folder.resolve().name

    @property
    def config(self) -> Mapping[str, Any]:
        return self.manifest["config"]


def open_run(path: Path | str) -> Run:
    """A folder of results, or a JSON Lines file with the fields of the TrackStar viewer.

    Raises:
        MsifError: see ``read_run`` and ``read_trackstar``.
    """
    from msif.reporting.trackstar import read_trackstar

    path = Path(path)
    return read_trackstar(path) if path.suffix == ".jsonl" else read_run(path)


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
    shown = list(read_lines(folder / "top.jsonl", SHOWN_FIELDS))
    told = read_lines(folder / "queries.jsonl", ("id",)) if (folder / "queries.jsonl").is_file() else []
    return Run(folder, shown, manifest, _scores(folder / "scores.parquet"), {row["id"]: row for row in told})


def read_lines(path: Path, needed: Sequence[str]) -> list[dict[str, Any]]:
    """
    Raises:
        MsifError: the file is damaged, or a line lacks a field.
    """
    rows = []
    for number, row in enumerate(json_lines(path), 1):
        lacking = [field for field in needed if field not in row]
        if lacking:
            raise MsifError(f"{path} has no '{lacking[0]}' in line {number}: make it again.")
        rows.append(row)
    return rows


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MsifError(f"{path} is damaged ({error}): run msif.influence again.") from error
    if not isinstance(value, dict):
        raise MsifError(f"{path} is damaged (no JSON object): run msif.influence again.")
    return value


def read_scores(path: Path, needed: Sequence[str], also: Sequence[str] = ()) -> Any:
    """The columns of scores.parquet, with those of ``also`` that it has, as an Arrow table.

    Raises:
        MsifError: the file is damaged, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        there = pq.read_schema(path).names
        columns = [*needed, *(name for name in also if name in there)]
        return pq.read_table(path, columns=columns).select(columns)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise MsifError(f"{path} cannot be read ({one_line(error)}): run msif.influence again.") from error


def _scores(path: Path) -> dict[str, Scored]:
    """In the order of the queries."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = read_scores(path, ["query_id", "candidate_id", "score", "rank"])
    ids = pc.cast(table["candidate_id"], pa.string()).to_pylist()
    places: dict[str, list[int]] = {}
    for place, query in enumerate(table["query_id"].to_pylist()):
        places.setdefault(query, []).append(place)
    ranks, scores = table["rank"].to_numpy(), table["score"].to_numpy()
    found = {}
    for query, own in places.items():
        order = np.asarray(own)[np.argsort(ranks[own], kind="stable")]
        found[query] = Scored([ids[place] for place in order], scores[order])
    return found
