"""Tables of results: Markdown for people, JSON for programs, with all that is needed to make them again."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from msif.atomic import write_json, write_text
from msif.errors import MsifError

PACKAGES = ("msif", "torch", "transformers", "numpy")


@dataclass(frozen=True)
class Table:
    """Named columns and rows of values.

    Attributes:
        formats: column -> format specification, such as ".3f"; None is shown as a dash.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    title: str = ""
    formats: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise MsifError(f"the table '{self.title}' has {len(self.columns)} columns, and a row of {len(row)}.")

    def records(self) -> list[dict[str, Any]]:
        """One mapping from column to value for each row."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def markdown(self) -> str:
        """A pipe table, numbers aligned to the right; the title above it."""
        cells = [[self._cell(column, row) for column, row in zip(self.columns, row, strict=True)] for row in self.rows]
        numeric = [
            bool(self.rows) and all(value is None or not isinstance(value, str) for value in column)
            for column in zip(*self.rows, strict=True)
        ] or [False] * len(self.columns)
        widths = [
            max(3, len(name), *(len(row[i]) for row in cells)) if cells else max(3, len(name))
            for i, name in enumerate(self.columns)
        ]
        lines = [_line(self.columns, widths, numeric)]
        marks = [
            "-" * (width - 1) + ":" if right else "-" * width for width, right in zip(widths, numeric, strict=True)
        ]
        lines.append("| " + " | ".join(marks) + " |")
        lines.extend(_line(row, widths, numeric) for row in cells)
        return (f"**{self.title}**\n\n" if self.title else "") + "\n".join(lines) + "\n"

    def _cell(self, column: str, value: Any) -> str:
        if value is None:
            return "–"
        return format(value, self.formats.get(column, "")).replace("|", "\\|")


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    padded = [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(cells, widths, right, strict=True)]
    return "| " + " | ".join(padded) + " |"


def write_results(
    folder: Path | str, name: str, tables: Table | Sequence[Table], configuration: Mapping[str, Any]
) -> None:
    """Writes ``name.md`` and ``name.json``: the tables, their configuration, and the versions that made them.

    Args:
        configuration: what the run was asked for; values that JSON can hold.
    """
    folder = Path(folder)
    tables = [tables] if isinstance(tables, Table) else list(tables)
    write_text(folder / f"{name}.md", "\n".join(table.markdown() for table in tables))
    contents = [{"title": table.title, "rows": [_plain(record) for record in table.records()]} for table in tables]
    write_json(
        folder / f"{name}.json", {"configuration": dict(configuration), "versions": versions(), "tables": contents}
    )


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}, "system": sys.platform}


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of numpy and intervals as JSON has them."""
    return {key: _json_value(value) for key, value in record.items()}


def _json_value(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()
    if hasattr(value, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    return value
