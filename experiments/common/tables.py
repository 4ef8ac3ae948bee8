"""Tables that a run wrote, read again: plots are drawn from them, so that a plot shows what its table says."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msif.evaluation.intervals import Interval

Record = dict[str, Any]
SIGNED = re.compile(r"([-+\d.]+) \[([-+\d.]+), ([-+\d.]+)\]")


def read_tables(path: Path) -> dict[str, list[Record]]:
    """Title -> rows, intervals as such, of what ``write_results`` wrote."""
    return {
        table["title"]: [{key: _value(value) for key, value in row.items()} for row in table["rows"]]
        for table in json.loads(path.read_text(encoding="utf-8"))["tables"]
    }


def only(tables: dict[str, list[Record]], begins: str) -> list[Record]:
    """The rows of the first table whose title begins so; none where there is no such table."""
    return next((rows for title, rows in tables.items() if title.startswith(begins)), [])


def _value(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"mean", "low", "high"}:
        return Interval(**value)
    found = SIGNED.fullmatch(value) if isinstance(value, str) else None
    return Interval(*map(float, found.groups())) if found else value


def spread(intervals: Sequence[Interval]) -> list[list[float]]:
    """Lengths of matplotlib's error bars, below and above."""
    return [[i.mean - i.low for i in intervals], [i.high - i.mean for i in intervals]]
