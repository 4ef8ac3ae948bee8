"""Rows of files, kept on disk so that they can be read again and out of order.

`datasets` would have Arrow guess a type for each column from the file's first megabytes. Here every column is one of
strings, and a value that is no string is written as JSON behind a mark: it comes back as it was, whatever its
neighbours are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from msif.atomic import atomic_path
from msif.data.readers import READ_ROWS

SCHEMA = 1
MARK = "\0"  # what follows is JSON
FILE = "msif:file"  # the column of the row's file, counted from 0
END = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # of an Arrow stream; readers take a missing one for the end
WRITE_CHARACTERS = 1 << 24  # of text that waits to be written
ABSENT = object()


def write_table(path: Path, rows: Iterable[tuple[int, dict[str, Any]]], columns: Sequence[str]) -> None:
    """Write rows, each with the number of its file, as an Arrow stream; it appears whole or not at all.

    Raises:
        MsifError: the cache cannot be written.
    """
    import pyarrow

    schema = pyarrow.schema([(FILE, pyarrow.int32()), *((name, pyarrow.large_string()) for name in columns)])
    remedy = "free space there, or set HF_DATASETS_CACHE to a cache folder that can be written"
    with (
        atomic_path(path, remedy) as part,
        open(part, "wb") as file,
        pyarrow.ipc.new_stream(file, schema) as writer,
    ):
        for numbers, cells in _chunks(rows, columns):
            arrays = [pyarrow.array(numbers, pyarrow.int32())]
            arrays += [pyarrow.array(cells[name], pyarrow.large_string()) for name in columns]
            writer.write_batch(pyarrow.record_batch(arrays, schema=schema))


def _chunks(
    rows: Iterable[tuple[int, dict[str, Any]]], columns: Sequence[str]
) -> Iterator[tuple[list[int], dict[str, list[str | None]]]]:
    numbers: list[int] = []
    cells: dict[str, list[str | None]] = {name: [] for name in columns}
    size = 0
    for number, row in rows:
        numbers.append(number)
        for name, column in cells.items():
            cell = _encode(row.get(name, ABSENT))
            column.append(cell)
            size += len(cell) if cell else 0
        if len(numbers) == READ_ROWS or size > WRITE_CHARACTERS:
            yield numbers, cells
            numbers, cells, size = [], {name: [] for name in columns}, 0
    if numbers:
        yield numbers, cells


def _encode(value: Any) -> str | None:
    if value is ABSENT:
        return None
    if type(value) is str and not value.startswith(MARK):
        return value
    return MARK + json.dumps(value, default=str)


def _decode(cell: str | None) -> Any:
    if cell is None or cell[:1] != MARK:
        return cell
    return json.loads(cell[1:])


class Table:
    """Rows that `write_table` wrote, memory-mapped.

    Attributes:
        columns: the fields that it was written with, whether any row has them or not.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError or `pyarrow.ArrowException` where the table is not there or damaged."""
        from datasets import Dataset

        with open(path, "rb") as file:
            file.seek(-len(END), os.SEEK_END)
            if file.read() != END:
                raise OSError(f"{path} is cut off")
        self._dataset = Dataset.from_file(str(path)).with_format("arrow")
        self._views: dict[tuple[str, ...], Any] = {}  # of some columns: making one takes longer than reading a row
        self.columns = tuple(name for name in self._dataset.column_names if name != FILE)

    def __len__(self) -> int:
        return len(self._dataset)

    def rows(self, columns: Sequence[str], indices: Sequence[int] | None = None) -> Iterator[dict[str, Any]]:
        """All rows, or those of `indices` in their order; a field that a row does not have is None."""
        columns = list(dict.fromkeys(columns))
        for batch in self._batches(tuple(columns or [FILE]), indices):
            lists = [map(_decode, batch.column(name).to_numpy().tolist()) for name in columns]
            if not columns:
                yield from ({} for _ in range(len(batch)))
            for values in zip(*lists, strict=True):
                yield dict(zip(columns, values, strict=True))

    def _batches(self, columns: tuple[str, ...], indices: Sequence[int] | None) -> Iterator[Any]:
        if columns not in self._views:
            self._views[columns] = self._dataset.select_columns(list(columns))
        view = self._views[columns]
        if indices is None:
            yield from view.iter(batch_size=READ_ROWS)
            return
        for start in range(0, len(indices), READ_ROWS):  # select() takes ten times as long for a few rows
            yield view[list(indices[start : start + READ_ROWS])]

    def has(self, column: str) -> bool:
        """Whether any row has a field."""
        data = self._dataset.data.column(column)
        return bool(data.null_count < len(data))

    def starts(self) -> list[int]:
        """The first row of each file that has rows, and of those between."""
        import numpy as np

        counts = np.bincount(self._dataset.data.column(FILE).to_numpy())
        return [0, *np.cumsum(counts)[:-1].tolist()]

    def files_without(self, column: str) -> list[int]:
        """The numbers of files of which no row has a field."""
        import numpy as np

        files = self._dataset.data.column(FILE).to_numpy()
        present = self._dataset.data.column(column).is_valid().to_numpy()
        lacking = (np.bincount(files, weights=present) == 0) & (np.bincount(files) > 0)
        return np.flatnonzero(lacking).tolist()
