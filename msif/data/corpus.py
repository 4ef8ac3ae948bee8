"""A corpus: rows with numbers, from the hub, from disk or from a stream."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from errno import ENOSPC
from functools import partial
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import Any

from msif.data.files import explain_failure, find_files, looks_local
from msif.data.ids import is_empty
from msif.data.sources import READ_ROWS, decoded, open_files, open_hub, open_saved
from msif.errors import MsifError

log = logging.getLogger(__name__)


class Corpus:
    """Rows of a `datasets.Dataset` (memory-mapped) or `IterableDataset` (a stream), numbered from 0.

    Attributes:
        name: what the user called it; for messages only, never a key.
        columns: the names of its fields.
        size: number of rows, None for a stream.
    """

    def __init__(self, dataset: Any, name: str, *, explain: Callable[[BaseException], MsifError] | None = None) -> None:
        """Wrap a dataset; `explain` turns an exception met while a stream is read into a sentence."""
        from datasets import IterableDataset

        self.name = name
        self.dataset = dataset
        self.streaming = isinstance(dataset, IterableDataset)
        self._explain = explain
        self._fingerprints: dict[tuple[str, ...], str] = {}
        self.size: int | None = None if self.streaming else len(dataset)
        head = next(self._stream(None), None) if self.streaming else None
        if self.size == 0 or (self.streaming and not head):
            raise MsifError(f"'{name}' has no rows; give a corpus with at least one.")
        self.columns: tuple[str, ...] = tuple(dataset.column_names or head or ())

    def __len__(self) -> int:
        if self.size is None:
            raise TypeError(f"'{self.name}' is a stream, its number of rows is not known")
        return self.size

    def __bool__(self) -> bool:  # a stream has no length to be judged by, and an empty corpus cannot be made
        return True

    def require(self, field: str, flag: str | None = None) -> None:
        """Raise MsifError unless there is a column of that name; `flag` is the option that names it."""
        if field not in self.columns:
            hint = f"; choose one with {flag}" if flag else ""
            raise MsifError(f"'{self.name}' has no field '{field}': its fields are {', '.join(self.columns)}{hint}.")

    def rows(
        self, indices: Iterable[int] | None = None, *, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (row number, row), all in order or those of `indices` in the order given.

        Only `columns` are decoded where they are given. From a stream, rows that are asked for out of order are
        held in memory until the last of them has been read.
        """
        for column in columns or ():
            self.require(column)
        if self.streaming:
            yield from self._stream_rows(indices, columns)
            return
        dataset = self.dataset if columns is None else self.dataset.select_columns(list(columns))
        numbers: Iterable[int] = range(len(dataset))
        if indices is not None:
            numbers = [int(index) for index in indices]
            dataset = dataset.select(numbers)
        yield from zip(numbers, decoded(dataset), strict=True)

    def _stream_rows(
        self, indices: Iterable[int] | None, columns: Sequence[str] | None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        if indices is None:
            yield from enumerate(self._stream(columns))
            return
        wanted = [int(index) for index in indices]
        uses = Counter(wanted)
        held: dict[int, dict[str, Any]] = {}
        position = 0
        for number, row in islice(enumerate(self._stream(columns)), max(wanted, default=-1) + 1):
            if number in uses:
                held[number] = row
            while position < len(wanted) and wanted[position] in held:
                index = wanted[position]
                position += 1
                uses[index] -= 1
                yield index, held[index] if uses[index] else held.pop(index)
        if position < len(wanted):
            raise IndexError(f"row {wanted[position]} is not in '{self.name}'")

    def _stream(self, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
        try:
            for row in self.dataset:
                yield row if columns is None else {column: row.get(column) for column in columns}
        except MsifError:
            raise
        except Exception as error:
            if self._explain is None:
                raise
            raise self._explain(error) from error

    def texts(self, field: str) -> list[str]:
        """All values of a text field; a missing value is an empty text."""
        self.require(field)
        return [row[field] or "" for _, row in self.rows(columns=[field])]

    def ids(self, indices: Iterable[int] | None = None) -> list[Any]:
        """What to call the rows in results: their `id` field, or else their row numbers."""
        if "id" not in self.columns:
            if indices is None:
                indices = range(self.size) if self.size is not None else (number for number, _ in self.rows())
            return [int(index) for index in indices]
        return list(self.iterate_ids(indices))

    def iterate_ids(self, indices: Iterable[int] | None = None) -> Iterator[Any]:
        """The field `id` of the rows, one by one.

        Raises:
            MsifError: names the first row whose field is empty.
        """
        for index, value in self._column("id", indices):
            if is_empty(value):
                raise MsifError(
                    f"In row {index} of '{self.name}' the field 'id' is empty; fill it in, or rename the field."
                )
            yield value

    def _column(self, name: str, indices: Iterable[int] | None) -> Iterator[tuple[int, Any]]:
        """(row number, value) of one field; without a row for each a tenth of `rows`' time."""
        if self.streaming:
            yield from ((index, row[name]) for index, row in self.rows(indices, columns=[name]))
            return
        numbers = range(len(self.dataset)) if indices is None else [int(index) for index in indices]
        dataset = self.dataset.select_columns([name])
        dataset = dataset if indices is None else dataset.select(numbers)
        batches = dataset.with_format(None).iter(batch_size=READ_ROWS)
        yield from zip(numbers, chain.from_iterable(batch[name] for batch in batches), strict=True)

    def label_names(self, field: str) -> tuple[str, ...] | None:
        """The class names that the dataset itself declares for an integer field, in the order of the integers."""
        feature = (self.dataset.features or {}).get(field)
        names = getattr(feature, "names", None)
        return tuple(names) if names else None

    def fingerprint(self, columns: Sequence[str] | None = None) -> str:
        """Hash of the rows' content: of `columns`, or of all. Neither name, path nor file format enters.

        It reads the whole corpus once (a stream is run through), and is remembered.
        """
        used = tuple(sorted(columns if columns is not None else self.columns))
        if used not in self._fingerprints:
            self._fingerprints[used] = self.fingerprint_of(None, used)
        return self._fingerprints[used]

    def fingerprint_of(self, indices: Iterable[int] | None, columns: Sequence[str]) -> str:
        """The same of some rows."""
        used = tuple(sorted(columns))
        digest = blake2b(repr(used).encode(), digest_size=16)
        for _, row in self.rows(indices, columns=used):
            values = json.dumps([row[column] for column in used], ensure_ascii=False, sort_keys=True, default=str)
            digest.update(values.encode("utf-8", "surrogatepass") + b"\n")
        return digest.hexdigest()


def corpus_from_rows(rows: Iterable[Mapping[str, Any]], name: str = "rows") -> Corpus:
    """A corpus of rows that are in memory already."""
    from datasets import Dataset

    return Corpus(Dataset.from_list([dict(row) for row in rows]), name)


def load_corpus(
    source: str, *, split: str = "train", streaming: bool = False, max_examples: int | None = None
) -> Corpus:
    """Open a corpus.

    Args:
        source: a file (.jsonl, .json, .csv, .txt, each also .gz, or .parquet), a folder or glob of such files, a
            folder written by `save_to_disk`, or the name of a dataset on the Hugging Face hub (`name` or
            `name:config`). What exists locally goes first. Plain text has one document a line in field `text`;
            blank lines are not rows and are not counted. CSV values are kept as text, as they are written.
        split: which split of a hub dataset, dataset dictionary, or folder whose files name their splits.
        streaming: read on the fly, for a corpus larger than the disk; its size is then unknown.
        max_examples: only the first so many rows.

    Raises:
        MsifError: nothing there, nothing in it, or not readable as what it claims to be.
    """
    if max_examples is not None and max_examples < 1:
        raise MsifError(f"max_examples is {max_examples}; ask for at least one row, or leave it out for all.")
    source = str(source)
    path = Path(source).expanduser()
    explain: Callable[[BaseException], MsifError] | None = None
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            dataset = open_saved(path, split, streaming)
        elif files := find_files(source, split):
            explain = partial(explain_failure, files)
            dataset = open_files(files, streaming)
        elif looks_local(source):
            raise MsifError(f"No such file or folder: '{source}'; check the path.")
        else:
            dataset = open_hub(source, split, streaming)
        if max_examples is not None:
            dataset = (
                dataset.take(max_examples) if streaming else dataset.select(range(min(max_examples, len(dataset))))
            )
        return Corpus(dataset, source, explain=explain)
    except OSError as error:
        if error.errno == ENOSPC:
            raise MsifError(f"The disk is full while '{source}' is converted; free space or set HF_HOME.") from error
        raise
