"""Where the true sources of an answer stand in a ranking, and how good that is on the whole."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import astuple, dataclass
from math import comb
from pathlib import Path

from msif.json_text import json_lines


@dataclass(frozen=True)
class Summary:
    """Over some questions: how often a true source ranks first and within ten, and the mean reciprocal rank."""

    first: float
    within_ten: float
    mrr: float


def read_rankings(path: str | Path) -> dict[str, list[str]]:
    """Query id -> candidate ids, the largest score first, from the `scores.parquet` of `msif.influence`."""
    import pyarrow.parquet as pq

    rows = pq.read_table(path, columns=["query_id", "candidate_id", "rank"]).to_pylist()
    rankings: dict[str, list[str]] = {}
    for row in sorted(rows, key=lambda row: row["rank"]):
        rankings.setdefault(row["query_id"], []).append(row["candidate_id"])
    return rankings


def read_rows(path: str | Path) -> list[dict]:
    """The rows of a JSON Lines file."""
    return list(json_lines(path))


def first_source(ranking: Sequence[str], sources: Collection[str]) -> int | None:
    """The rank, from 1, of the first true source; None where the ranking holds none."""
    return next((rank for rank, candidate in enumerate(ranking, 1) if candidate in sources), None)


def summarise(ranks: Sequence[int | None]) -> Summary:
    """The summary of the first true sources' ranks; one that is not ranked at all counts as infinitely far down."""
    found = [rank for rank in ranks if rank is not None]
    total = len(ranks)
    return Summary(
        sum(rank == 1 for rank in found) / total,
        sum(rank <= 10 for rank in found) / total,
        sum(1 / rank for rank in found) / total,
    )


def mean(summaries: Sequence[Summary]) -> Summary:
    """The mean of summaries, field by field."""
    return Summary(*(sum(values) / len(summaries) for values in zip(*map(astuple, summaries), strict=True)))


def at_random(candidates: int, sources: int) -> Summary:
    """What a random order of the candidates would give on average."""
    if sources == 0:
        return Summary(0.0, 0.0, 0.0)
    orders = comb(candidates, sources)
    ranks = range(1, candidates - sources + 2)
    chances = [comb(candidates - rank, sources - 1) / orders for rank in ranks]
    within_ten = sum(chances[:10])
    return Summary(chances[0], within_ten, sum(chance / rank for rank, chance in zip(ranks, chances, strict=True)))
