"""The pair that `experiments.fact_tracing.pair` leaves, as experiments read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msif.errors import MsifError


@dataclass(frozen=True)
class Asked:
    """A fact of the half that fine-tuning never saw, as it is asked.

    Attributes:
        answers: all right ones, the one asked for first.
        sources: rows of the corpus that state it.
        answered: whether the fine-tuned model gives the answer.
    """

    id: str
    relation: str
    answers: tuple[str, ...]
    sources: tuple[int, ...]
    prompt: str
    completion: str
    answered: bool

    @property
    def text(self) -> str:
        """Question and answer without the frame around them, for search by words or by meaning."""
        question = self.prompt.strip().removeprefix("Question:").removesuffix("Answer:")
        return f"{question.strip()} {self.completion.strip()}"


@dataclass(frozen=True)
class Pair:
    """
    Attributes:
        texts: the attribution set; a sentence's place is its row.
        finetuning: prompts and completions.
        pretrained, finetuned: folders or hub names of the models.
        asked: facts that can be traced: those with a source.
        counts: what was read, and what could not be used.
        named: the ids behind some counts.
    """

    folder: Path
    texts: tuple[str, ...]
    finetuning: tuple[dict[str, str], ...]
    asked: tuple[Asked, ...]
    pretrained: str
    finetuned: str
    counts: Mapping[str, int] = field(default_factory=dict)
    named: Mapping[str, list[str]] = field(default_factory=dict)


def read_pair(folder: str | Path) -> Pair:
    """
    Raises:
        MsifError: a file is missing or does not fit the others, or no fact has a source.
    """
    folder = Path(folder)
    corpus = _rows(folder, "corpus", ("text",))
    facts = {row["id"]: row for row in _rows(folder, "facts", ("id", "relation", "answers", "sources"))}
    accuracy = _accuracy(folder)
    answered = accuracy["answered"]
    asked = []
    without_source = []
    for query in _rows(folder, "queries", ("id", "prompt", "completion")):
        fact = facts.get(query["id"])
        if fact is None:
            raise MsifError(f"query '{query['id']}' in {folder} is of no fact in facts.jsonl: make the pair again.")
        if query["id"] not in answered:
            raise MsifError(f"accuracy.json in {folder} does not know fact '{query['id']}': make the pair again.")
        sources = tuple(sorted({int(row) for row in fact["sources"]}))
        if not sources:
            without_source.append(query["id"])
            continue
        if sources[0] < 0 or sources[-1] >= len(corpus):
            raise MsifError(
                f"a source of fact '{query['id']}' is row {sources[-1]} of {len(corpus)}: make the pair again."
            )
        known = fact["relation"], tuple(fact["answers"]), sources
        asked.append(Asked(query["id"], *known, query["prompt"], query["completion"], bool(answered[query["id"]])))
    if not asked:
        raise MsifError(
            f"no question of {folder} has a source in its corpus: make a pair whose corpus states its facts."
        )
    counts = {
        "sentences": len(corpus),
        "facts asked of the model": len(asked) + len(without_source),
        "facts without source, left out": len(without_source),
        "facts that the model answers": sum(fact.answered for fact in asked),
    }
    named = {"facts without source": without_source}
    finetuning = tuple(
        {"prompt": row["prompt"], "completion": row["completion"]}
        for row in _rows(folder, "finetune", ("prompt", "completion"))
    )
    # of a pair that was not trained here its names; a trained pair lies beside the data, wherever that was moved to
    given = accuracy.get("settings", {}).get("models")
    names = given or [str(folder / which) for which in ("pretrained", "finetuned")]
    return Pair(folder, tuple(row["text"] for row in corpus), finetuning, tuple(asked), *names, counts, named)


@dataclass(frozen=True)
class Stated:
    """A fact with the rows of the corpus that state it; all right objects, the one asked for first."""

    id: str
    relation: str
    subject: str
    answers: tuple[str, ...]
    sources: tuple[int, ...]


def read_facts(folder: str | Path) -> tuple[list[str], list[Stated]]:
    """The corpus, and all facts of both halves.

    Raises:
        MsifError: a file is missing, or does not parse.
    """
    folder = Path(folder)
    texts = [row["text"] for row in _rows(folder, "corpus", ("text",))]
    names = ("id", "relation", "subject", "answers", "sources")
    facts = [
        Stated(row["id"], row["relation"], row["subject"], tuple(row["answers"]), tuple(sorted(set(row["sources"]))))
        for row in _rows(folder, "facts", names)
    ]
    return texts, facts


def _rows(folder: Path, name: str, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    path = folder / "data" / f"{name}.jsonl"
    if not path.is_file():
        raise MsifError(
            f"there is no {path}: make the pair with python -m experiments.fact_tracing.pair --output {folder}."
        )
    rows = []
    with open(path, encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise MsifError(f"line {number} of {path} is not JSON: make the pair again.") from error
            lacking = [field for field in fields if field not in row]
            if lacking:
                raise MsifError(f"line {number} of {path} has no '{lacking[0]}': make the pair again.")
            rows.append(row)
    if not rows:
        raise MsifError(f"{path} is empty: make the pair again.")
    return rows


def _accuracy(folder: Path) -> Mapping[str, Any]:
    path = folder / "accuracy.json"
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
        contents["answered"].keys()
        return contents
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise MsifError(
            f"{path} does not tell which facts the model answers: finish the pair with "
            f"python -m experiments.fact_tracing.pair --output {folder}."
        ) from error
