"""Scores on disk: Parquet for all of them, JSON Lines with texts for the top ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from msif.atomic import atomic_path, write_json_lines
from msif.attribution.scorers import Scores
from msif.data.ids import INT64, shared, written_ids
from msif.data.queries import Query
from msif.errors import MsifError


@dataclass(frozen=True)
class Ranking:
    """One query's scored candidates, the largest score first.

    Attributes:
        rows: int64, (k,), row numbers of the candidates.
        scores: (k,), positive for proponents: prior + scale · influence.
        prior: (k,), what search adds (``with_prior``); None where there is no prior.
    """

    query: Query
    rows: np.ndarray
    scores: np.ndarray
    prior: np.ndarray | None = None
    scale: float = 1.0

    @property
    def influences(self) -> np.ndarray:
        """The scores of the method itself, (k,)."""
        return self.scores if self.prior is None else (self.scores - self.prior) / self.scale

    def shown(self, k: int) -> list[tuple[str, int]]:
        """(kind, place) of the first k with positive scores, and of the last k with negative ones, strongest first."""
        places = range(len(self.rows))
        proponents = [("proponent", place) for place in places if self.scores[place] > 0][:k]
        opponents = [("opponent", place) for place in reversed(places) if self.scores[place] < 0][:k]
        return proponents + opponents


@dataclass(frozen=True)
class Shown:
    """A document that is shown for a query.

    Attributes:
        kind: "proponent" or "opponent".
        rank: its place among the query's candidates, from 1.
        prior: what search adds to the score; tokens sum to the rest, and so do blocks.
        tokens: (token, its part of the score) in the order of the text; empty where scores are no such sums.
        blocks: the parts of the parameter blocks, the largest magnitudes first; empty likewise.
        fields: what else its row of the corpus says in a few words.
        norm: of its gradient, where that is known.
        by_answer: for each token of the answer the parts of this document's tokens; empty where it is not split.
        lexical: what it shares with the query in words (``msif.reporting.lexical``).
        self_influence: ∇Lᵀ P ∇L of it alone, on the pre-trained model (``msif.attribution.self_influence``); None where
            the method has none.
    """

    query_id: str
    kind: str
    rank: int
    candidate_id: int | str
    score: float
    text: str
    prompt: str
    completion: str | None
    label: Any = None
    tokens: list[tuple[str, float]] = field(default_factory=list)
    blocks: dict[str, float] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    norm: float | None = None
    by_answer: list[list[float]] = field(default_factory=list)
    lexical: dict[str, Any] | None = None
    prior: float = 0.0
    self_influence: float | None = None


def rank(scores: Scores, queries: Sequence[Query], candidates: Sequence[np.ndarray]) -> list[Ranking]:
    """Each query's own candidates, best first; documents that only other queries asked for are left out."""
    rankings = []
    for number, query in enumerate(queries):
        order = scores.ranked(number)
        rows = scores.candidates[order]
        own = np.isin(rows, candidates[number])
        rankings.append(Ranking(query, rows[own], scores.values[number][order][own]))
    return rankings


def write_scores(
    path: Path, rankings: Sequence[Ranking], ids: Mapping[int, Any], provenance: Mapping[str, Any]
) -> None:
    """One row for each query and candidate: query_id, candidate_id, row, score, rank (from 1); influence with a prior.

    A positive score names a proponent. ``provenance`` is kept as JSON in the schema's metadata under "msif".

    Args:
        ids: row number -> id, all integers or written as text (``written_ids``).

    Raises:
        MsifError: two candidates of one id, or the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = np.concatenate([ranking.rows for ranking in rankings])
    named = _named(np.unique(rows).tolist(), ids)
    names = [named[row] for row in rows.tolist()]
    own = {}
    if any(ranking.prior is not None for ranking in rankings):
        own = {"influence": pa.array(np.concatenate([r.influences for r in rankings]).astype(np.float64))}
    table = pa.table(
        {
            "query_id": pa.array([r.query.id for r in rankings for _ in r.rows], pa.string()),
            "candidate_id": pa.array(names, _arrow_type(names)),
            "row": pa.array(rows, pa.int64()),
            "score": pa.array(np.concatenate([r.scores for r in rankings]).astype(np.float64)),
            "rank": pa.array(np.concatenate([np.arange(1, len(r.rows) + 1) for r in rankings]), pa.int64()),
            **own,
        }
    ).replace_schema_metadata({"msif": json.dumps(provenance, default=str)})
    with atomic_path(path) as part:
        pq.write_table(table, part)


def _arrow_type(names: Sequence[Any]) -> Any:
    import pyarrow as pa

    if not all(isinstance(name, int) for name in names):
        return pa.string()
    return pa.int64() if all(name in INT64 for name in names) else pa.uint64()


def _named(rows: Sequence[int], ids: Mapping[int, Any]) -> dict[int, Any]:
    """Row number -> id as it is written, after a check that none is written for two rows."""
    named = dict(zip(rows, written_ids([ids[row] for row in rows]), strict=True))
    first: dict[Any, int] = {}
    for row, name in named.items():
        if first.setdefault(name, row) != row:
            raise MsifError(shared(f"Rows {first[name]} and {row}", str(name)))
    return named


def write_shown(path: Path, shown: Sequence[Shown]) -> None:
    """The shown documents, one JSON object a line."""
    write_json_lines(path, [asdict(document) for document in shown])
