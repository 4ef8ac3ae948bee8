"""What is known to be true of queries: the documents that state the answer, and the right answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msif.candidates.words import normalised
from msif.errors import MsifError, some_of
from msif.json_text import json_lines

if TYPE_CHECKING:
    from msif.reporting.runs import Run


@dataclass(frozen=True)
class Known:
    """
    Attributes:
        sources: ids of documents, as text; None where they are not known.
        answers: any of which is right; empty where none is known.
        correct: whether the model's answer is right, where that is said.
    """

    sources: frozenset[str] | None = None
    answers: Sequence[str] = ()
    correct: bool | None = None

    def says(self, answer: str) -> bool | None:
        """Whether an answer is right; None where that is not known. One that begins with a right one is."""
        if self.correct is not None:
            return self.correct
        if not self.answers:
            return None
        said = normalised(answer.strip())
        return any(said.startswith(normalised(right.strip())) for right in self.answers)


ANSWERS = ("answers", "answer", "completion")  # the first that names one counts
KEYS = {"sources", *ANSWERS, "correct"}


@dataclass(frozen=True)
class Truth:
    """Rows by their ids: a query's, or the value of one of its fields, such as the fact that it asks for."""

    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def of(self, query: str, fields: Mapping[str, Any], told: Mapping[str, Any] | None = None) -> Known | None:
        """What is known of a query by the row of its id, by those that this row or its own fields point to, and by
        what its data say themselves; what comes first counts."""
        own = self.rows.get(query, {})
        said = {key: value for key, value in (told or {}).items() if key in ("sources", "answers")}
        found: dict[str, Any] = {}
        for row in (own, *self._pointed_to(own), *self._pointed_to(fields), fields, said):
            found = {**{key: row[key] for key in KEYS if key in row}, **found}
        return _known(found) if found else None

    def meets(self, query: str, fields: Mapping[str, Any]) -> bool:
        """Whether a row is about a query."""
        return query in self.rows or bool(self._pointed_to(fields))

    def _pointed_to(self, row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        names = [str(value) for key, value in row.items() if key != "id" and type(value) in (str, int)]
        return [self.rows[name] for name in names if name in self.rows]


def read_truth(*paths: Path | str) -> Truth:
    """JSON Lines with ``id`` and any of ``sources`` (ids of documents), ``answer``, ``answers`` or ``completion`` (the
    right one), ``correct``; or with fields that are ids of other rows. What several rows of one id say is put together.

    Raises:
        MsifError: a file is not there, damaged or empty, or has a row without an id, with what cannot be read, or with
            something else than an earlier one of its id says.
    """
    rows: dict[str, Mapping[str, Any]] = {}
    for path in map(Path, paths):
        if not path.is_file():
            raise MsifError(f"there is no file {path}: check the path.")
        for number, row in enumerate(json_lines(path), 1):
            if "id" not in row:
                raise MsifError(f"{path} has no 'id' in line {number}: give a query's id, or the value of its field.")
            row = {key: value for key, value in row.items() if value is not None}
            _check(row, f"line {number} of {path}")
            earlier = rows.get(str(row["id"]), {})
            if differ := sorted(key for key in KEYS & row.keys() & earlier.keys() if row[key] != earlier[key]):
                raise MsifError(
                    f"'{differ[0]}' of '{row['id']}' in line {number} of {path} is not what an earlier row of that id "
                    "says: give one of them."
                )
            rows[str(row["id"])] = {**earlier, **row}
    if paths and not rows:
        raise MsifError(f"{paths[0]} has no rows: give what is true of the queries, one a line.")
    return Truth(rows)


def _check(row: Mapping[str, Any], where: str) -> None:
    """
    Raises:
        MsifError: what a row says is of another kind than it has to be.
    """
    sources, correct = row.get("sources", []), row.get("correct", True)
    if not _is_id(sources) and not isinstance(sources, list):
        is_what = "text" if isinstance(sources, str) else repr(sources)
        raise MsifError(f"'sources' in {where} is {is_what}: give a list of documents' ids.")
    if not isinstance(correct, bool):
        raise MsifError(f"'correct' in {where} is {correct!r}: write true or false.")
    for key in ANSWERS:
        if isinstance(row.get(key), dict):
            raise MsifError(f"'{key}' in {where} is a mapping: give the right answer as text, or a list of them.")


def check_meets(truth: Truth, runs: Sequence[Run]) -> None:
    """Truth that is about none of the queries is a mistake, of the wrong file or of ids.

    Raises:
        MsifError: no row is about a query.
    """
    asked = [query for run in runs for query in run.scores]
    fields = {query: told.get("fields") or {} for run in runs for query, told in _told(run).items()}
    if truth.rows and asked and not any(truth.meets(query, fields.get(query, {})) for query in asked):
        raise MsifError(
            f"the truth is about none of the queries (its ids are {some_of(list(truth.rows), 3)}, theirs are "
            f"{some_of(asked, 3)}): give the truth of these queries."
        )


def _told(run: Run) -> Mapping[str, Mapping[str, Any]]:
    shown = {row["query_id"]: row for row in reversed(run.shown)}
    return {**shown, **run.told}


def _known(row: Mapping[str, Any]) -> Known:
    sources, correct = row.get("sources"), row.get("correct")
    listed = [sources] if _is_id(sources) else sources
    return Known(
        frozenset(map(str, listed)) if isinstance(listed, (list, tuple)) else None,
        next(filter(None, (_answers(row.get(key)) for key in ANSWERS)), []),
        correct if isinstance(correct, bool) else None,
    )


def _is_id(value: Any) -> bool:
    """Whether it is one id of a document by itself; a text there is more often a list that somebody joined."""
    return isinstance(value, int) and not isinstance(value, bool)


def _answers(value: Any) -> list[str]:
    """One answer or a list, as text; without empty ones, with which every answer begins."""
    listed = value if isinstance(value, (list, tuple)) else [value]
    texts = [str(one) for one in listed if one is not None]
    return [text for text in texts if normalised(text.strip())]
