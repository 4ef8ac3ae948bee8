"""The mean of several runs: one result of model pairs that were trained alike from other seeds."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msif.atomic import write_json, write_json_lines
from msif.attribution.results import Ranking, write_scores
from msif.data.queries import Query
from msif.errors import MsifError
from msif.reporting.page import write_page
from msif.reporting.runs import Run, read_lines, read_run, read_scores
from msif.reporting.trackstar import answer_of

AVERAGED = "averaged"
"""The setting that names the runs."""
ALIKE = ("method", "measurement", "normalize", "prior")
"""What runs must have in common for their scores to be of one kind."""
COLUMNS = ("query_id", "row", "candidate_id", "score")
PARTS: dict[str, Any] = {"tokens": [], "blocks": {}, "by_answer": [], "norm": None, "self_influence": None}
"""What a document that is not shown in every run lacks."""


@dataclass(frozen=True)
class Mean:
    """One query's candidates by their mean score, the largest first.

    Attributes:
        ids: of candidates.
        ranking: with what search adds as its prior.
    """

    ids: list[Any]
    ranking: Ranking


def average_runs(folders: Sequence[Path | str], output: Path | str, top_k: int = 10) -> Path:
    """Writes the mean of the runs' scores as a result of its own: scores.parquet, top.jsonl, queries.jsonl,
    manifest.json, page.html.

    Scores of one model pair are noisy by its seed: the mean of several pairs, each trained alike from other first
    weights, foretells each pair's own retraining better than its own scores do (docs/counterfactual.md). A shown
    document keeps the parts of its score, their means too, if all runs show it; else its text alone.

    Args:
        folders: of ``msif.influence --output``, two or more, which asked the same queries of the same candidates.
        output: a new folder, or that of an earlier mean.
        top_k: proponents, and opponents, shown a query.

    Returns:
        The output folder.

    Raises:
        MsifError: a run cannot be read, runs differ in more than their models, or the output is in use.
    """
    paths, output = [Path(folder) for folder in folders], Path(output)
    _check_folders(paths, output)
    runs = [read_run(path) for path in paths]
    _check_alike(runs)
    means = _means(runs)
    _check_documents(runs)
    shown = list(_shown(runs, means, top_k))
    manifest = _manifest(runs, output, top_k)
    rows = {row: id for mean in means for row, id in zip(mean.ranking.rows.tolist(), mean.ids, strict=True)}
    write_scores(output / "scores.parquet", [mean.ranking for mean in means], rows, manifest)
    write_json(output / "manifest.json", manifest)
    write_json_lines(output / "queries.jsonl", [_told(runs, mean.ranking.query) for mean in means])
    write_json_lines(output / "top.jsonl", shown)
    write_page(output)
    return output


def without_parts(folder: Path | str) -> tuple[int, int]:
    """How many shown documents of a mean lack parts that some run has, and how many there are."""
    shown = read_lines(Path(folder) / "top.jsonl", ())
    return sum(bool(row.get("partly")) for row in shown), len(shown)


def _check_folders(paths: Sequence[Path], output: Path) -> None:
    if len(paths) < 2:
        raise MsifError("there is one run: give the folders of two or more to average.")
    resolved = [path.resolve() for path in paths]
    for path, place in zip(paths, resolved, strict=True):
        if resolved.count(place) > 1:
            raise MsifError(f"{path} is given twice: give each run once.")
    if output.resolve() in resolved:
        raise MsifError(f"{output} is one of the runs: choose another --output.")
    if output.exists() and not output.is_dir():
        raise MsifError(f"{output} is a file: give a folder as --output.")
    if output.is_dir() and any(output.iterdir()):
        try:
            earlier = AVERAGED in read_run(output).config
        except MsifError:
            earlier = False
        if not earlier:
            raise MsifError(f"{output} is not empty and holds no mean of runs: choose another --output.")


def _check_alike(runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        for key in ALIKE:
            if (a := first.config.get(key)) != (b := run.config.get(key)):
                raise MsifError(
                    f"{first.folder} and {run.folder} differ in {key} ({a!r} and {b!r}): average runs of one kind."
                )
        if lacking := sorted(first.scores.keys() ^ run.scores.keys()):
            raise MsifError(
                f"query '{lacking[0]}' is not in both of {first.folder} and {run.folder}: ask all pairs the same."
            )
        for query in first.scores:
            a, b = (_asked(one, query) for one in (first, run))
            if a != b:
                raise MsifError(
                    f"query '{query}' is {a!r} in {first.folder} and {b!r} in {run.folder}: give its answer "
                    "(--completion, or in --queries), so that all pairs explain the same."
                )


def _check_documents(runs: Sequence[Run]) -> None:
    """Row numbers say nothing of what documents are: of two halves of a corpus they are the same.

    Raises:
        MsifError: the documents that runs scored say something else.
    """
    known = [run for run in runs if run.manifest.get("documents")]
    said: dict[str, tuple[str, Run]] = {}
    for run in runs:
        for row in run.shown:
            text, first = said.setdefault(str(row["candidate_id"]), (row["text"], run))
            if text != row["text"]:
                raise _other_documents(first, run)
        if run in known and run.manifest["documents"] != known[0].manifest["documents"]:
            raise _other_documents(known[0], run)


def _other_documents(first: Run, other: Run) -> MsifError:
    return MsifError(
        f"{first.folder} and {other.folder} scored documents that have the same ids and other texts: give all runs the "
        "same corpus, also those of models that were trained on parts of it."
    )


def _asked(run: Run, query: str) -> tuple[str, str]:
    """(prompt, answer)."""
    row = run.told.get(query) or next((row for row in run.shown if row["query_id"] == query), None)
    return ("", "") if row is None else (row["prompt"], answer_of(row))


def _means(runs: Sequence[Run]) -> list[Mean]:
    """Of each query, in the order of the first run.

    Raises:
        MsifError: the runs scored other candidates.
    """
    tables = [_table(run.folder / "scores.parquet") for run in runs]
    first = tables[0]
    scores, influences = np.zeros(len(first["score"])), np.zeros(len(first["score"]))
    for run, table in zip(runs, tables, strict=True):
        if not all(np.array_equal(first[key], table[key]) for key in ("query_id", "row", "candidate_id")):
            raise MsifError(
                f"{runs[0].folder} and {run.folder} scored other candidates: give all runs the same corpus, and "
                "--candidates that choose the same documents of it."
            )
        scores += table["score"] / len(tables)
        influences += table["influence"] / len(tables)
    found = []
    for query in runs[0].scores:
        own = np.flatnonzero(first["query_id"] == query)
        order = own[np.lexsort((first["row"][own], -scores[own]))]
        prior = None if np.array_equal(scores, influences) else scores[order] - influences[order]
        ranking = Ranking(_query(runs[0], query), first["row"][order], scores[order], prior)
        found.append(Mean(first["candidate_id"][order].tolist(), ranking))
    return found


def _table(path: Path) -> dict[str, np.ndarray]:
    """The columns of scores, by query and row number; influence is the score where no prior stands beside it."""
    table = read_scores(path, COLUMNS, ["influence"]).sort_by([("query_id", "ascending"), ("row", "ascending")])
    columns = {name: table[name].to_numpy() for name in COLUMNS}
    own = "influence" if "influence" in table.column_names else "score"
    return {**columns, "influence": table[own].to_numpy()}


def _query(run: Run, query: str) -> Query:
    prompt, _ = _asked(run, query)
    row = run.told.get(query, {})
    return Query(query, prompt, row.get("completion"), row.get("label"))


def _shown(runs: Sequence[Run], means: Sequence[Mean], top_k: int) -> Iterator[dict[str, Any]]:
    """The best and the worst documents by mean score, among those that some run shows, and has a text of."""
    rows = [{(row["query_id"], str(row["candidate_id"])): row for row in run.shown} for run in runs]
    for mean in means:
        answers = [[word for word, _ in run.told.get(mean.ranking.query.id, {}).get("tokens") or []] for run in runs]
        splits = all(answer == answers[0] for answer in answers)
        ranking, left = mean.ranking, {"proponent": top_k, "opponent": top_k}
        for kind, place in ranking.shown(len(ranking.rows)):
            found = [own.get((ranking.query.id, str(mean.ids[place]))) for own in rows]
            if left[kind] and any(found):
                left[kind] -= 1
                score = float(ranking.scores[place])
                yield {**_merged(found, splits), "kind": kind, "rank": place + 1, "score": score}


def _merged(found: Sequence[Mapping[str, Any] | None], splits: bool) -> dict[str, Any]:
    """One document's rows, of the runs that show it.

    Args:
        splits: whether all runs cut the answer into the same tokens.
    """
    rows = [row for row in found if row is not None]
    base = dict(rows[0])
    if len(rows) < len(found):
        return {**base, **PARTS, "prior": 0.0, "partly": any(row.get("tokens") or row.get("blocks") for row in rows)}
    numbers = [name for name, value in base.items() if isinstance(value, float)]
    base |= {name: _mean([row.get(name) for row in rows]) for name in numbers}
    base["tokens"] = _mean_of_pairs([row.get("tokens") or [] for row in rows])
    base["blocks"] = _mean_of_blocks([row.get("blocks") or {} for row in rows])
    matrices = [row.get("by_answer") or [] for row in rows]
    base["by_answer"] = _mean_of_lists(matrices) if splits and base["tokens"] else []
    return {**base, "partly": not base["tokens"] and any(row.get("tokens") for row in rows)}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(values) if len(known) == len(values) else None


def _mean_of_pairs(parts: Sequence[Sequence[tuple[str, float]]]) -> list[list[Any]]:
    """Of (token, number) lists; empty where the tokens differ, as those of two tokenizers do."""
    words = [[word for word, _ in own] for own in parts]
    if any(own != words[0] for own in words):
        return []
    means = np.mean([[value for _, value in own] for own in parts], axis=0)
    return [[word, value] for word, value in zip(words[0], means.tolist(), strict=True)]


def _mean_of_blocks(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The largest magnitudes first; empty where the blocks differ, as those of two architectures do."""
    if any(own.keys() != parts[0].keys() for own in parts):
        return {}
    means = {name: math.fsum(own[name] for own in parts) / len(parts) for name in parts[0]}
    return dict(sorted(means.items(), key=lambda block: -abs(block[1])))


def _mean_of_lists(parts: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """Of matrices; empty where they are not of one shape."""
    shapes = {tuple(len(row) for row in own) for own in parts}
    return np.mean(np.array(parts, dtype=float), axis=0).tolist() if len(shapes) == 1 and parts[0] else []


def _told(runs: Sequence[Run], query: Query) -> dict[str, Any]:
    """A query's row: that of the first run, the logarithms of the answer's probabilities averaged."""
    rows = [run.told.get(query.id, {}) for run in runs]
    given = {"id": query.id, "prompt": query.prompt, "completion": query.completion, "label": query.label, **rows[0]}
    return {**given, "tokens": _mean_of_pairs([row.get("tokens") or [] for row in rows]) or None}


def _manifest(runs: Sequence[Run], output: Path, top_k: int) -> dict[str, Any]:
    """What the runs have in common, which they are, and the command that makes this again."""
    first, names = runs[0], [str(run.folder) for run in runs]
    common = {key: value for key, value in first.config.items() if all(r.config.get(key) == value for r in runs)}
    again = ["python", "-m", "msif.average", *names, "--output", str(output), "--top-k", str(top_k)]
    versions = [run.manifest.get("versions") or {} for run in runs]
    return {
        "config": {**common, "top_k": top_k, "output": str(output), AVERAGED: names},
        "versions": {name: value for name, value in versions[0].items() if all(v.get(name) == value for v in versions)},
        "weights": [weight for run in runs for weight in run.manifest.get("weights") or []],
        "documents": next(filter(None, (run.manifest.get("documents") for run in runs)), None),
        "modules": first.manifest.get("modules") or [],
        "left_out": {name: why for run in runs for name, why in (run.manifest.get("left_out") or {}).items()},
        "again": shlex.join(again),
    }
