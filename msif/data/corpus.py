"""A corpus: rows with numbers, from the hub, from disk or from a stream."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from msif.data.file_rows import FileRows
from msif.data.files import find_files, looks_local
from msif.data.ids import is_empty
from msif.data.memory_rows import MemoryRows
from msif.data.sources import DatasetRows, Rows, is_saved, open_hub, open_saved
from msif.errors import MsifError, some_of

_encode = json.JSONEncoder(ensure_ascii=False, sort_keys=True, default=str).encode


class Corpus:
    """Rows with numbers from 0, of which only the fields that are asked for are read.

    Attributes:
        name: what the user called it; for messages only, never a key.
        streaming: whether it is read on the fly.
    """

    def __init__(self, rows: Any, name: str) -> None:
        """Wrap a `datasets.Dataset` or `IterableDataset`, or other `Rows`."""
        self.name = name
        self._rows: Rows = rows if isinstance(rows, (FileRows, MemoryRows)) else DatasetRows(rows)
        self.streaming = self._rows.streaming
        self._is_one_file = Path(name).expanduser().is_file()
        self._fingerprints: dict[tuple[str, ...], str] = {}
        if not self._rows.head:
            raise MsifError(f"'{name}' has no rows; give a corpus with at least one.")

    @property
    def size(self) -> int | None:
        """Number of rows, None for a stream."""
        return self._rows.size

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all fields, for which JSON files are read once; of a stream as far as they are known."""
        return self._rows.columns

    @property
    def head(self) -> tuple[str, ...]:
        """The names of the fields that the first rows have."""
        return self._rows.head

    @property
    def exact(self) -> bool:
        """Whether a null within a value is as it was written, and none that a table's schema adds."""
        return self._rows.exact

    def __len__(self) -> int:
        if self.size is None:
            raise TypeError(f"'{self.name}' is a stream, its number of rows is not known")
        return self.size

    def __bool__(self) -> bool:  # a stream has no length to be judged by, and an empty corpus cannot be made
        return True

    def has(self, field: str) -> bool:
        """Whether any row has a field."""
        return self._rows.has(field)

    def require(self, field: str, flag: str | None = None) -> None:
        """Raise MsifError unless there is a column of that name; `flag` is the option that names it."""
        if not self.has(field):
            hint = f"; choose one with {flag}" if flag else ""
            raise MsifError(f"'{self.name}' has no field '{field}': its fields are {some_of(self.columns)}{hint}.")

    def prepare(self, columns: Sequence[str]) -> None:
        """Open what it takes to read these fields, so that what is wrong with a file is known before other work.

        Raises:
            MsifError: a file cannot be read, or lacks one of the fields.
        """
        self._rows.prepare(columns)

    def where(self, index: int) -> str:
        """How a message names a row: with its file, where the corpus is a folder or pattern."""
        inside = None if self._is_one_file else self._rows.where(index)
        return f"row {index} of '{self.name}'" + (f" ({inside})" if inside else "")

    def rows(
        self, indices: Iterable[int] | None = None, *, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (row number, row), all in order or those of `indices` in the order given.

        Only `columns` are read where they are given; a field that a row does not have is None. From a stream, rows
        that are asked for out of order are held in memory until the last of them has been read.
        """
        for column in columns or ():
            self.require(column)
        if indices is None:
            yield from enumerate(self._rows.iterate(columns))
        elif self.streaming:
            yield from self._out_of_order([int(index) for index in indices], columns)
        else:
            numbers = [int(index) for index in indices]
            yield from zip(numbers, self._rows.take(numbers, columns), strict=True)

    def _out_of_order(self, wanted: list[int], columns: Sequence[str] | None) -> Iterator[tuple[int, dict[str, Any]]]:
        uses = Counter(wanted)
        held: dict[int, dict[str, Any]] = {}
        position = 0
        for number, row in islice(enumerate(self._rows.iterate(columns)), max(wanted, default=-1) + 1):
            if number in uses:
                held[number] = row
            while position < len(wanted) and wanted[position] in held:
                index = wanted[position]
                position += 1
                uses[index] -= 1
                yield index, held[index] if uses[index] else held.pop(index)
        if position < len(wanted):
            raise IndexError(f"row {wanted[position]} is not in '{self.name}'")

    def texts(self, field: str) -> list[str]:
        """All values of a text field; a missing value is an empty text."""
        self.require(field)
        return [row[field] or "" for _, row in self.rows(columns=[field])]

    def ids(self, indices: Iterable[int] | None = None) -> list[Any]:
        """What to call the rows in results: their `id` field, or else their row numbers."""
        if not self.has("id"):
            if indices is None:
                indices = range(self.size) if self.size is not None else (number for number, _ in self.rows())
            return [int(index) for index in indices]
        return list(self.iterate_ids(indices))

    def iterate_ids(self, indices: Iterable[int] | None = None) -> Iterator[Any]:
        """The field `id` of the rows, one by one.

        Raises:
            MsifError: names the first row whose field is empty.
        """
        for index, row in self.rows(indices, columns=["id"]):
            value = row["id"]
            if is_empty(value):
                raise MsifError(
                    f"In row {index} of '{self.name}' the field 'id' is empty; fill it in, or rename the field."
                )
            yield value

    def label_names(self, field: str) -> tuple[str, ...] | None:
        """The class names that the dataset itself declares for a field of integers, or of lists of them, in their
        order."""
        return self._rows.label_names(field)

    def fingerprint(self, columns: Sequence[str] | None = None) -> str:
        """Hash of the rows' content: of `columns`, or of all. Neither name, path nor file format enters.

        It reads the whole corpus once (a stream is run through), and is remembered.
        """
        used = tuple(sorted(columns if columns is not None else self.columns))
        if used not in self._fingerprints:
            self._fingerprints[used] = self.fingerprint_of(None, used)
        return self._fingerprints[used]

    def hashes(self, columns: Sequence[str], indices: Iterable[int] | None = None) -> Iterator[tuple[int, bytes]]:
        """(row number, hash of 16 bytes) of rows' content in these fields: of equal rows equal, in any file."""
        used = tuple(sorted(columns))
        for number, row in self.rows(indices, columns=used):
            values = _encode([row[column] for column in used])
            yield number, blake2b(values.encode("utf-8", "surrogatepass"), digest_size=16).digest()

    def fingerprint_of(self, indices: Iterable[int] | None, columns: Sequence[str]) -> str:
        """The same of some rows."""
        used = tuple(sorted(columns))
        digest = blake2b(repr(used).encode(), digest_size=16)
        for _, row in self.rows(indices, columns=used):
            values = _encode([row[column] for column in used])
            digest.update(values.encode("utf-8", "surrogatepass") + b"\n")
        return digest.hexdigest()


def corpus_from_rows(rows: Iterable[Mapping[str, Any]], name: str = "rows") -> Corpus:
    """A corpus of rows that are in memory already."""
    return Corpus(MemoryRows(rows, name), name)


def as_corpus(data: Any, **options: Any) -> Corpus:
    """Whatever a user has as a corpus: a source's name, a ``datasets.Dataset``, or a list of texts or of rows.

    Args:
        options: of ``load_corpus``, for a name.

    Raises:
        MsifError: it is none of these, or what ``load_corpus`` raises.
    """
    if isinstance(data, Corpus):
        return data
    if isinstance(data, (str, Path)):
        return load_corpus(str(data), **options)
    if isinstance(data, Sequence) and data and all(isinstance(row, str) for row in data):
        return corpus_from_rows([{"text": text} for text in data], "texts")
    if isinstance(data, Sequence) and data and all(isinstance(row, Mapping) for row in data):
        return corpus_from_rows(data)
    if hasattr(data, "column_names") or hasattr(data, "iter"):
        return Corpus(data, "dataset")
    raise MsifError(
        f"data is {type(data).__name__}: give a file, a folder, a hub name, a datasets.Dataset, or a list of texts or "
        "rows."
    )


def load_corpus(
    source: str, *, split: str | None = None, streaming: bool = False, max_examples: int | None = None
) -> Corpus:
    """Open a corpus.

    Args:
        source: a file (.jsonl, .json, .csv, .tsv, .txt, each also .gz, .zst, .bz2 or .xz, or .parquet), a folder or
            glob of such files, a folder written by `save_to_disk`, or the name of a dataset on the Hugging Face hub
            (`name` or `name:config`). What exists locally goes first. Plain text has one document a line in field
            `text`; blank lines are not rows and are not counted. CSV values are kept as text, as they are written.
        split: which split of a hub dataset, dataset dictionary, or folder whose files name their splits; None is
            `train` or the only one, and of a folder all files unless they are laid out as splits.
        streaming: read on the fly, for a corpus larger than the disk; its size is then unknown.
        max_examples: only the first so many rows.

    Raises:
        MsifError: nothing there, nothing in it, or not readable as what it claims to be.
    """
    if max_examples is not None and max_examples < 1:
        raise MsifError(f"max_examples is {max_examples}; ask for at least one row, or leave it out for all.")
    source = str(source)
    if not source.strip():
        raise MsifError("the name of the data is empty: give a file, folder or name.")
    path = Path(source).expanduser()
    if is_saved(path):
        dataset = open_saved(path, split, streaming)
    elif files := find_files(source, split):
        return Corpus(FileRows(files, streaming, max_examples), source)
    elif looks_local(source):
        raise MsifError(f"No such file or folder: '{source}'; check the path.")
    else:
        dataset = open_hub(source, split, streaming)
    if max_examples is not None:
        dataset = dataset.take(max_examples)
    return Corpus(dataset, source)
