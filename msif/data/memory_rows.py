"""Rows that are in memory already, as they are: Arrow would want one type of each field."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from msif.data.json_rows import refuse_halves


class MemoryRows:
    """A list of rows. What is in it later changes nothing, but for what is inside its values."""

    streaming, exact = False, True

    def __init__(self, rows: Iterable[Mapping[str, Any]], name: str) -> None:
        """`name`: of the rows, for messages."""
        self._rows = [{str(field): _plain(value) for field, value in row.items()} for row in rows]
        self._name = name
        self.columns = tuple(dict.fromkeys(field for row in self._rows for field in row))
        self.head = self.columns
        self.size = len(self._rows)

    def has(self, column: str) -> bool:
        """Whether any row has a field."""
        return column in self.columns

    def prepare(self, columns: Sequence[str]) -> None:
        """
        Raises:
            MsifError: names the first row whose text is none.
        """
        for number, row in enumerate(self._rows):
            refuse_halves(row, columns, f"row {number} of '{self._name}'")

    def iterate(self, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
        yield from self.take(range(self.size), columns)

    def take(self, indices: Sequence[int], columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
        """A field that a row does not have is None."""
        names = self.columns if columns is None else columns
        for index in indices:
            yield {name: self._rows[index].get(name) for name in names}

    def where(self, index: int) -> str | None:
        return None

    def label_names(self, field: str) -> tuple[str, ...] | None:
        return None


def _plain(value: Any) -> Any:
    """Numbers and arrays of NumPy and PyTorch as Python's own, and what pandas has for a gap as None."""
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    return value.tolist() if hasattr(value, "tolist") else value
