"""Scores on disk: Parquet for all of them, JSON Lines with texts for the top ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from msif.atomic import atomic_path
from msif.attribution.scorers import Scores
from msif.data.queries import Query


@dataclass(frozen=True)
class Ranking:
    """One query's scored candidates, the largest score first.

    Attributes:
        rows: int64, (k,), row numbers of the candidates.
        scores: (k,), positive for proponents.
    """

    query: Query
    rows: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Shown:
    """A document that is shown for a query.

    Attributes:
        kind: "proponent" or "opponent".
        rank: its place among the query's candidates, from 1.
        tokens: (token, its part of the score) in the order of the text; empty where scores are no such sums.
        blocks: the parts of the parameter blocks, the largest magnitudes first; empty likewise.
    """

    query_id: str
    kind: str
    rank: int
    candidate_id: Any
    score: float
    text: str
    prompt: str
    completion: str | None
    label: Any = None
    tokens: list[tuple[str, float]] = field(default_factory=list)
    blocks: dict[str, float] = field(default_factory=dict)


def rank(scores: Scores, queries: Sequence[Query], candidates: Sequence[np.ndarray]) -> list[Ranking]:
    """Each query's own candidates, best first; documents that only other queries asked for are left out."""
    rankings = []
    for number, query in enumerate(queries):
        order = scores.ranked(number)
        rows = scores.candidates[order]
        own = np.isin(rows, candidates[number])
        rankings.append(Ranking(query, rows[own], scores.values[number][order][own]))
    return rankings


def write_scores(path: Path, rankings: Sequence[Ranking], ids: dict[int, Any], provenance: dict[str, Any]) -> None:
    """One row for each query and candidate: query_id, candidate_id, row, score, rank (from 1).

    A positive score names a proponent. ``provenance`` is kept as JSON in the schema's metadata under "msif".
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = np.concatenate([ranking.rows for ranking in rankings])
    names = [ids[int(row)] for row in rows]
    if not all(isinstance(name, int) for name in names):
        names = [str(name) for name in names]
    table = pa.table(
        {
            "query_id": pa.array([r.query.id for r in rankings for _ in r.rows], pa.string()),
            "candidate_id": pa.array(names),
            "row": pa.array(rows, pa.int64()),
            "score": pa.array(np.concatenate([r.scores for r in rankings]).astype(np.float64)),
            "rank": pa.array(np.concatenate([np.arange(1, len(r.rows) + 1) for r in rankings]), pa.int64()),
        }
    ).replace_schema_metadata({"msif": json.dumps(provenance, default=str)})
    with atomic_path(path) as part:
        pq.write_table(table, part)


def write_shown(path: Path, shown: Sequence[Shown]) -> None:
    """The shown documents, one JSON object a line."""
    with atomic_path(path) as part:
        lines = (json.dumps(asdict(document), ensure_ascii=False) for document in shown)
        part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
