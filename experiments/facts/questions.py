"""What a fact is asked with: templates of questions and of cloze sentences, one for each relation."""

from __future__ import annotations

import json
from pathlib import Path

from msif.errors import MsifError

SUBJECT, OBJECT = "[X]", "[Y]"


def load_questions(path: str | Path) -> dict[str, str]:
    """Relation -> question, such as `Where was [X] born?`; JSON Lines with "relation" and "question".

    Raises:
        MsifError: the file cannot be read, a line lacks a field or `[X]`, or a relation has two templates.
    """
    return _templates(Path(path), "question", (SUBJECT,))


def load_clozes(path: str | Path) -> dict[str, str]:
    """Relation -> sentence, such as `[X] was born in [Y] .`; JSON Lines with "relation" and "template".

    Raises:
        MsifError: as for questions, and where `[Y]` is lacking.
    """
    return _templates(Path(path), "template", (SUBJECT, OBJECT))


def question(template: str, subject: str) -> str:
    """The prompt that asks for the object."""
    return f"Question: {template.replace(SUBJECT, subject)}\nAnswer:"


def completion(answer: str) -> str:
    return f" {answer}"


def cloze(template: str, subject: str) -> str | None:
    """What stands before the object in a cloze sentence; None where the subject comes after it, too late to be read."""
    start, _ = template.split(OBJECT, 1)
    return start.replace(SUBJECT, subject).rstrip() if SUBJECT in start else None


def _templates(path: Path, field: str, needed: tuple[str, ...]) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise MsifError(f"the template file {path} cannot be read ({error}).") from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            relation, template = row["relation"], row[field]
        except (ValueError, KeyError, TypeError) as error:
            message = f'{path}, line {number}: write one JSON object with "relation" and "{field}" a line.'
            raise MsifError(message) from error
        if missing := [mark for mark in needed if mark not in template]:
            raise MsifError(f"{path}, line {number}: the template '{template}' has no {' or '.join(missing)}.")
        if relation in found:
            raise MsifError(f"{path}, line {number}: {relation} has a template already; keep one of them.")
        found[relation] = template
    return found
