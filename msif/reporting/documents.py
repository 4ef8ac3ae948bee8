"""The documents of a page, each text once, cut into the words that carry parts of scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from msif.reporting.duplicates import near_duplicates
from msif.reporting.words import words

UNREAD = 600  # characters kept of what the model did not read


class Documents:
    """A table of (id, text as it was read), filled by the rows of top.jsonl."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._texts: list[str] = []
        self._places: dict[tuple[str, str, tuple[str, ...]], int] = {}

    def add(self, row: Mapping[str, Any]) -> tuple[int, list[list[float]]]:
        """(the document's place, the parts of its words: of the whole answer, and then of each of its tokens)."""
        split = [*zip(*row.get("by_answer") or (), strict=True)]
        # parts of several kinds are summed at once
        tokens = [
            (str(token), np.array([part, *split[place]]) if split else float(part))
            for place, (token, part) in enumerate(row["tokens"])
        ]
        key = str(row["candidate_id"]), row["text"], tuple(token for token, _ in tokens)
        found: list[Any] = words(row["text"], tokens) if tokens else []  # type: ignore[arg-type]
        if key not in self._places:
            self._places[key] = len(self.rows)
            read = [unit for unit in found if unit.part is not None]
            document = {"id": key[0], "words": [unit.space + unit.text for unit in read], "fields": row.get("fields")}
            unread = [unit.space + unit.text for unit in found if unit.part is None] if tokens else [row["text"]]
            self.rows.append(document | self._rest("".join(unread), cut=bool(tokens)))
            self._texts.append(row["text"])
        parts = [unit.part for unit in found if unit.part is not None]
        return self._places[key], np.array(parts).T.tolist() if split else [parts]

    @staticmethod
    def _rest(text: str, cut: bool) -> dict[str, Any]:
        """What carries no parts: all of a text whose scores have none, or what lay beyond the longest length."""
        if not text:
            return {}
        if not cut:
            return {"plain": text}
        return {"unread": text[:UNREAD], "more": max(0, len(text) - UNREAD)}

    def groups(self) -> list[int]:
        """For each document the place of the first that says nearly the same."""
        return near_duplicates(self._texts)


def permille(parts: Sequence[float], score: float) -> list[int]:
    """Parts in thousandths of the score's size; of a score of nothing in thousandths of the largest part."""
    unit = abs(score) or max(map(abs, parts), default=0.0)
    return [round(1000 * part / unit) if unit and math.isfinite(part / unit) else 0 for part in parts]
