"""What a page shows, as JSON: an index of queries and runs, one part for each query, and the documents.

A page holds its parts apart, so that a browser reads only those that are looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from msif.reporting.agreement import FIRST, agreement, ranks_of
from msif.reporting.blocks import cells, kinds_and_layers, strongest_blocks
from msif.reporting.documents import Documents, permille
from msif.reporting.runs import Run, Scored
from msif.reporting.trackstar import answer_of
from msif.reporting.truth import Known, Truth

BINS = 48
COMMON = 0.5  # of the queries, among whose first ten (and first half) a document has to be to be called common
FEWEST = 4  # queries that there must be for that


@dataclass(frozen=True)
class Payload:
    """
    Attributes:
        index: queries and runs in short, and how far runs agree.
        queries: of each query what its own view needs.
        documents: texts.
    """

    index: dict[str, Any]
    queries: list[dict[str, Any]]
    documents: list[dict[str, Any]]


def payload(runs: Sequence[Run], truth: Truth) -> Payload:
    """All that is shown of some runs side by side; their queries are one by their ids."""
    ids = list(dict.fromkeys(query for run in runs for query in run.scores))
    documents = Documents()
    shown = [_by_query(run) for run in runs]
    common = [_common(run) for run in runs]
    asked, parts = [], []
    for query in ids:
        told = _told(query, runs, shown)
        known = truth.of(query, told["fields"], told["told"])
        views = [
            None if query not in run.scores else _view(run, query, own.get(query, []), known, documents, often)
            for run, own, often in zip(runs, shown, common, strict=True)
        ]
        _add_ranks(views, [run.scores.get(query) for run in runs], documents)
        parts.append(_part(told, known, views))
        asked.append(_entry(query, told, known, views))
    groups = documents.groups()
    for document, group in zip(documents.rows, groups, strict=True):
        document["group"] = group
    index = {
        "queries": asked,
        "runs": [_run(run) for run in runs],
        "agreement": _agreements(runs, ids),
        "fields": sorted({name for entry in asked for name in entry["fields"]}),
    }
    return Payload(index, parts, documents.rows)


def _by_query(run: Run) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in run.shown:
        found.setdefault(row["query_id"], []).append(row)
    return found


def _told(query: str, runs: Sequence[Run], shown: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the first run that knows the query."""
    told = next((run.told[query] for run in runs if query in run.told), None)
    rows: Sequence[Mapping[str, Any]] = next((own[query] for own in shown if query in own), [])
    row = told or (rows[0] if rows else {"prompt": query, "completion": None})
    fields = (told or {}).get("fields") or {}
    return {"prompt": row["prompt"], "answer": answer_of(row), "fields": fields, "told": told}


def _view(
    run: Run,
    query: str,
    rows: Sequence[Mapping[str, Any]],
    known: Known | None,
    documents: Documents,
    common: Mapping[str, int],
) -> dict[str, Any]:
    """One query in one run."""
    scored = run.scores[query]
    positive = float(scored.scores[scored.scores > 0].sum())
    negative = float(-scored.scores[scored.scores < 0].sum())
    sources = known.sources if known is not None and known.sources is not None else frozenset()
    blocks = {name: 0.0 for row in rows for name in row["blocks"]}
    kinds, layers = kinds_and_layers(blocks)
    entries = []
    for row in rows:
        document, (parts, *split) = documents.add(row)
        score = float(row["score"])
        total = positive if score > 0 else negative
        entry: dict[str, Any] = {"d": document, "kind": row["kind"], "rank": row["rank"], "score": score}
        entry |= {"share": score / total if total else 0.0, "words": permille(parts, score)}
        if split:
            # a token may give next to nothing, and its words still have to be told apart
            entry["answer"] = [{"part": sum(own), "words": permille(own, sum(own))} for own in split]
        if row["blocks"]:
            unit = (abs(score) or 1.0) / 1000
            entry |= {"cells": cells(row["blocks"], kinds, layers, unit)}
            entry |= {"blocks": strongest_blocks(row["blocks"], unit)}
        entry |= {name: row[name] for name in ("norm", "lexical", "prior", "self_influence") if row.get(name)}
        if str(row["candidate_id"]) in sources:
            entry["source"] = True
        if often := common.get(str(row["candidate_id"])):
            entry["common"] = [often, len(run.scores)]
        entries.append(entry)
    found = _found(scored, sources) if sources else None
    view: dict[str, Any] = {"scored": len(scored.ids), "positive": positive, "negative": negative, "sources": found}
    view |= {"kinds": kinds, "layers": layers, "entries": entries, "whole": run.whole}
    view["unsplit"] = run.told.get(query, {}).get("unsplit")
    return view | {"histogram": _histogram(scored.scores)}


def _found(scored: Scored, sources: frozenset[str]) -> list[dict[str, Any]]:
    """Where the true sources stand; those that were not scored have no rank."""
    ranks = ranks_of(scored)
    found = [{"id": id, "rank": ranks.get(id)} for id in sorted(sources)]
    return sorted(found, key=lambda one: (one["rank"] is None, one["rank"] or 0))


def _histogram(scores: np.ndarray) -> dict[str, Any] | None:
    finite = scores[np.isfinite(scores)]
    if not len(finite) or finite.min() == finite.max():
        return None
    counts, _ = np.histogram(finite, bins=BINS)
    return {"low": float(finite.min()), "high": float(finite.max()), "counts": counts.tolist()}


def _common(run: Run) -> dict[str, int]:
    """Id -> in the first ten of how many queries it is, for those that are there for most."""
    queries = len(run.scores)
    if queries < FEWEST:
        return {}
    counted = Counter(id for one in run.scores.values() for id in one.ids[: min(FIRST, len(one.ids) // 2)])
    return {id: count for id, count in counted.items() if count >= COMMON * queries}


def _add_ranks(views: Sequence[dict[str, Any] | None], scored: Sequence[Scored | None], documents: Documents) -> None:
    """The ranks of every shown document in all runs, where there are several."""
    if len(views) < 2:
        return
    ranks = [{} if one is None else ranks_of(one) for one in scored]
    for view in views:
        for entry in view["entries"] if view else ():
            entry["ranks"] = [own.get(documents.rows[entry["d"]]["id"]) for own in ranks]


def _part(told: Mapping[str, Any], known: Known | None, views: Sequence[Any]) -> dict[str, Any]:
    row = told["told"] or {}
    return {
        "prompt": told["prompt"],
        "tokens": row.get("tokens"),
        "occurrences": row.get("occurrences"),
        "documents": row.get("documents"),
        "answers": list(known.answers) if known else [],
        "runs": views,
    }


def _entry(query: str, told: Mapping[str, Any], known: Known | None, views: Sequence[Any]) -> dict[str, Any]:
    """A line of the list of queries."""
    tokens = (told["told"] or {}).get("tokens")
    return {
        "id": query,
        "prompt": " ".join(told["prompt"].split()),
        "answer": told["answer"],
        "fields": told["fields"],
        "correct": known.says(told["answer"]) if known else None,
        "probability": float(np.exp(sum(value for _, value in tokens))) if tokens else None,
        "runs": [view and _short(view) for view in views],
    }


def _short(view: Mapping[str, Any]) -> dict[str, Any]:
    best = next((entry for entry in view["entries"] if entry["kind"] == "proponent"), None)
    ranks = [one["rank"] for one in view["sources"] or () if one["rank"]]
    return {
        "scored": view["scored"],
        "shown": len(view["entries"]),
        "best": best and best["score"],
        "share": best and best["share"],
        "mrr": None if view["sources"] is None else (1 / min(ranks) if ranks else 0.0),
    }


def _run(run: Run) -> dict[str, Any]:
    found = {"name": run.name, "method": str(run.config.get("method", "")), "whole": run.whole}
    own = {row["candidate_id"]: row["self_influence"] for row in run.shown if row.get("self_influence") is not None}
    found |= {"self": float(np.median(list(own.values()))) if own else None}
    return {**found, "histogram": _relative(run)}


def _relative(run: Run) -> dict[str, Any] | None:
    """The histogram of all scores, each over the largest of its query, and where the tenth lies in the median."""
    relative, firsts = [], []
    for scored in run.scores.values():
        scores = scored.scores[np.isfinite(scored.scores)]
        if len(scores) and (largest := np.abs(scores).max()) > 0:
            relative.append(scores / largest)
            firsts.append(relative[-1][min(FIRST, len(scores)) - 1])
    found = _histogram(np.concatenate(relative)) if relative else None
    return found and {**found, "first": float(np.median(firsts))}


def _agreements(runs: Sequence[Run], ids: Sequence[str]) -> list[dict[str, Any]]:
    """Of each pair of runs the agreement on each query; None where one of them has not got it."""
    found = []
    for a, b in combinations(range(len(runs)), 2):
        one, other = runs[a].scores, runs[b].scores
        rows = [agreement(one[query], other[query]) if query in one and query in other else None for query in ids]
        found.append({"a": a, "b": b, "rows": rows})
    return found
