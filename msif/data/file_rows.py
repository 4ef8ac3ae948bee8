"""Rows of local files, of the fields that are asked for alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from msif.data.files import LocalFiles
from msif.data.readers import READ_ROWS, Row, class_names, header_of, read_rows
from msif.data.table import SCHEMA, Table, write_table
from msif.errors import MsifError


class FileRows:
    """The rows of files of one kind, one file after the other.

    In a stream, files are read anew by each pass. Otherwise the fields that are first asked for, and `id`, are written
    to a table in the cache of `datasets`, under a name made of the files' state and the fields.
    """

    def __init__(self, files: LocalFiles, streaming: bool = False, limit: int | None = None) -> None:
        """`limit`: only the first so many rows."""
        self.files = files
        self.streaming = streaming
        self._limit = limit
        self._tables: list[tuple[set[str] | None, Table]] = []
        self._everywhere: set[str] = set()
        self._starts: list[int] = []  # the first row of each file, of a stream as far as it was read

    @cached_property
    def head(self) -> tuple[str, ...]:
        """The names of the fields that the first rows have, or that the files' headers name; none where no row is."""
        first = [row for _, row in islice(self._read(()), READ_ROWS)]
        named = [header_of(path, self.files.kind) or () for path in self.files.paths]
        return tuple(dict.fromkeys(name for names in (*named, *first) for name in names)) if first else ()

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The names of all fields; of a stream of JSON those of its first rows."""
        if self.streaming or self.files.kind != "json":
            return self.head
        names = dict.fromkeys(self.head)
        for _, row in self._read(()):
            if not row.keys() <= names.keys():
                names |= dict.fromkeys(row)
        return tuple(names)

    @property
    def size(self) -> int | None:
        if self.streaming:
            return None
        return len(self._tables[0][1] if self._tables else self._table(()))

    @property
    def exact(self) -> bool:
        return self.files.kind != "parquet"

    def has(self, column: str) -> bool:
        """Whether any row has a field."""
        if column in self.head:
            return True
        for _, table in self._tables:
            if column in table.columns:
                return table.has(column)
        return self.files.kind == "json" and any(column in row for _, row in self._read(()))

    def prepare(self, columns: Sequence[str]) -> None:
        """Open what these fields need.

        Raises:
            MsifError: a file cannot be read, or no row of it has one of the fields.
        """
        self._everywhere |= set(columns)
        if self.streaming:
            return  # each pass looks at every file
        table = self._table(columns)
        for column in columns:
            for number in table.files_without(column):
                if number + 1 < len(table.starts()) or len(table) != self._limit:  # a part may do without
                    raise self._lacking(number, column)

    def iterate(self, columns: Sequence[str] | None) -> Iterator[Row]:
        """All rows, in order."""
        if self.streaming:
            yield from self._stream(columns)
        else:
            yield from self._table(columns).rows(self.columns if columns is None else columns)

    def take(self, indices: Sequence[int], columns: Sequence[str] | None) -> Iterator[Row]:
        """The rows of these numbers, in this order; not of a stream."""
        yield from self._table(columns).rows(self.columns if columns is None else columns, indices)

    def where(self, index: int) -> str:
        """The file of a row, and its number there."""
        if not self._starts and not self.streaming:
            self._starts = self._table(()).starts()
        number = bisect_right(self._starts, index) - 1
        return f"row {index - self._starts[number]} of '{self.files.paths[number]}'"

    def label_names(self, field: str) -> tuple[str, ...] | None:
        """The class names that Parquet files of `datasets` declare for an integer field."""
        return class_names(self.files.paths[0], field) if self.files.kind == "parquet" else None

    def _read(self, columns: Collection[str] | None) -> Iterator[tuple[int, Row]]:
        """Rows with the numbers of their files."""
        numbered = enumerate(self.files.paths)
        rows = ((number, row) for number, path in numbered for row in read_rows(path, self.files.kind, columns))
        return islice(rows, self._limit)

    def _stream(self, columns: Sequence[str] | None) -> Iterator[Row]:
        wanted = self._everywhere & set(columns or ())
        lacking: set[str] = set()
        index, last = 0, -1
        for number, row in self._read(columns):
            if number != last:
                if lacking:
                    raise self._lacking(last, min(lacking))
                self._starts = self._starts[: last + 1] + [index] * (number - last)
                lacking, last = set(wanted), number
            if lacking:
                lacking -= row.keys()
            yield row if columns is None else {column: row.get(column) for column in columns}
            index += 1
        if lacking and index != self._limit:
            raise self._lacking(last, min(lacking))

    def _table(self, columns: Sequence[str] | None) -> Table:
        """A table of these fields, all of which are sound; or of all fields, whatever is in them."""
        wanted = None if columns is None else {"id", *columns}
        for sound, table in self._tables:
            if wanted == sound or (wanted and sound and wanted <= sound):
                return table
        table = self._opened(wanted)
        self._tables.append((wanted, table))
        return table

    def _opened(self, sound: set[str] | None) -> Table:
        import pyarrow
        from datasets import config
        from datasets.utils import tqdm

        state = self.files.state()
        named = (SCHEMA, self.files.kind, state, sound and sorted(sound), self._limit)
        key = blake2b(repr(named).encode(), digest_size=16).hexdigest()
        path = Path(config.HF_DATASETS_CACHE) / "msif" / f"{key}.arrow"
        try:
            return Table(path)
        except (pyarrow.ArrowException, OSError):  # not there, or damaged
            pass
        with tqdm(self._read(sound), unit=" rows", desc=f"Reading {self.files.paths[0].name}") as rows:
            write_table(path, rows, sorted(sound or {"id", *self.columns}))
        if self.files.state() != state:
            path.unlink()
            raise MsifError(f"'{self.files.paths[0]}' changed while it was read; wait until it is complete.")
        return Table(path)

    def _lacking(self, number: int, column: str) -> MsifError:
        path = self.files.paths[number]
        return MsifError(f"No row of '{path}' has the field '{column}'; rename the field there, or leave the file out.")
