"""What came of it, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from experiments.case_study.question import Question
from msif.reporting.page import read_run
from msif.reporting.tables import Table, write_results
from msif.reporting.terminal import WORDS
from msif.reporting.words import strongest, words

EXCERPT = 160


def write(folder: Path, question: Question, found: Path, settings: Mapping[str, Any]) -> None:
    """case-study.md and .json: the question with its answer, the shown documents, and where the sources rank."""
    scores = pq.read_table(found / "scores.parquet", columns=["row", "rank"]).to_pylist()
    shown = read_run(found).shown
    row_at = {entry["rank"]: entry["row"] for entry in scores}
    tables = [asked(question, shown, scores)]
    for kind in ("proponent", "opponent"):
        own = [row for row in shown if row["kind"] == kind]
        if own:
            tables.append(documents(f"{kind.capitalize()}s", own, question, row_at))
    write_results(folder, "case-study", tables, {**settings, "prompt": question.prompt})


def asked(question: Question, shown: Sequence[Mapping[str, Any]], scores: list[dict[str, Any]]) -> Table:
    """The prompt and its answer; of a known fact also the right answers and the ranks of its sources."""
    answer = shown[0]["completion"].strip() if shown else None
    rows: list[list[Any]] = [
        ["prompt", " ".join(question.prompt.split())],
        ["the model's answer", answer],
        ["documents scored", str(len(scores))],
    ]
    if question.fact is not None:
        ranks = sorted(entry["rank"] for entry in scores if entry["row"] in question.fact.sources)
        rows += [
            ["right answers", ", ".join(question.fact.answers)],
            ["documents that state the fact", str(len(question.fact.sources))],
            ["of them among those scored, at rank", ", ".join(map(str, ranks)) or "none"],
        ]
    return Table(["", "value"], rows, "The question")


def documents(title: str, rows: Sequence[Mapping[str, Any]], question: Question, row_at: Mapping[int, int]) -> Table:
    """A row for each shown document; whether it states the fact is a dash where the fact is not known."""
    lines = []
    for row in rows:
        text = " ".join(row["text"].split())
        named = [word for word, _ in strongest(words(row["text"], row["tokens"]), row["score"], WORDS)]
        states = None
        if question.fact is not None:
            states = "yes" if row_at[row["rank"]] in question.fact.sources else "no"
        excerpt = text if len(text) <= EXCERPT else f"{text[: EXCERPT - 3]}..."
        lines.append([row["rank"], row["score"], str(row["candidate_id"]), states, ", ".join(named), excerpt])
    columns = ["rank", "score", "document", "states the fact", "words that carry it", "text"]
    return Table(columns, lines, title, {"score": ".4g"})
