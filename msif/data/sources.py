"""Rows of a dataset of `datasets`: on disk, on the hub, in memory."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from msif.data.files import HUB_NAME
from msif.data.readers import READ_ROWS
from msif.errors import MsifError, one_line

log = logging.getLogger(__name__)


class Rows(Protocol):
    """What a corpus is made of: rows with numbers from 0.

    Attributes:
        head: names of the fields of the first rows; none where there is no row.
        columns: names of all fields, in a stream as far as they are known.
        size: number of rows, None for a stream.
        exact: whether a null within a value is as it was written, and none that the schema of all rows adds.
    """

    streaming: bool

    @property
    def exact(self) -> bool: ...

    @property
    def head(self) -> tuple[str, ...]: ...
    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def size(self) -> int | None: ...
    def has(self, column: str) -> bool: ...
    def prepare(self, columns: Sequence[str]) -> None: ...
    def iterate(self, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]: ...
    def take(self, indices: Sequence[int], columns: Sequence[str] | None) -> Iterator[dict[str, Any]]: ...
    def where(self, index: int) -> str | None: ...
    def label_names(self, field: str) -> tuple[str, ...] | None: ...


class DatasetRows:
    """Rows of a `datasets.Dataset` (memory-mapped) or `IterableDataset` (a stream)."""

    exact = False

    def __init__(self, dataset: Any) -> None:
        from datasets import IterableDataset

        self.dataset = dataset
        self.streaming = isinstance(dataset, IterableDataset)
        self.size: int | None = None if self.streaming else len(dataset)
        first = next(iter(dataset), {}) if self.streaming else dataset.features if len(dataset) else {}
        self.columns: tuple[str, ...] = tuple(dataset.column_names or first) if first else ()
        self.head = self.columns

    def has(self, column: str) -> bool:
        if column in self.columns or self.dataset.column_names is not None:
            return column in self.columns
        return any(column in row for row in self.dataset)

    def prepare(self, columns: Sequence[str]) -> None:
        """Nothing: a dataset has all its fields in all its rows."""

    def iterate(self, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
        dataset = self.dataset
        if columns is not None and dataset.column_names is not None:
            dataset = dataset.select_columns(list(columns))
        if not self.streaming:
            yield from _decoded(dataset)
        for row in dataset if self.streaming else ():
            yield row if columns is None else {column: row.get(column) for column in columns}

    def take(self, indices: Sequence[int], columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
        dataset = self.dataset if columns is None else self.dataset.select_columns(list(columns))
        yield from _decoded(dataset.select(indices))

    def where(self, index: int) -> str | None:
        return None

    def label_names(self, field: str) -> tuple[str, ...] | None:
        feature = (self.dataset.features or {}).get(field)
        names = getattr(getattr(feature, "feature", feature), "names", None)
        return tuple(names) if names else None


def _decoded(dataset: Any) -> Iterator[dict[str, Any]]:
    """Rows of a map-style dataset, decoded many at a time (row by row is ten times slower)."""
    for columns in dataset.with_format(None).iter(batch_size=READ_ROWS):
        names = list(columns)
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(names, values, strict=True))


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk` wrote a folder; other tools, too, leave a `state.json`."""
    if (path / "dataset_dict.json").is_file():
        return True
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(state, dict) and "_data_files" in state


def open_saved(path: Path, split: str | None, streaming: bool) -> Any:
    from datasets import DatasetDict, load_from_disk

    try:
        dataset = load_from_disk(str(path))
    except Exception as error:
        raise MsifError(f"Cannot read '{path}' as a saved dataset ({one_line(error)}); save it again.") from error
    if isinstance(dataset, DatasetDict):
        dataset = dataset[_split_among(list(dataset), split, str(path))]
    return dataset.to_iterable_dataset() if streaming else dataset


def _split_among(names: Sequence[str], split: str | None, source: str) -> str:
    """The split asked for, or else `train`, or else the only one."""
    if split is None and "train" not in names and len(names) == 1:
        log.info("'%s' has one split, %s, which is read", source, names[0])
        return names[0]
    if (split or "train") not in names:
        hint = "choose one with --split" if split is None else "choose one of them"
        raise MsifError(f"'{source}' has no split '{split or 'train'}'; its splits are {', '.join(names)}: {hint}.")
    return split or "train"


def open_hub(source: str, split: str | None, streaming: bool) -> Any:
    """A dataset of the hub: the split asked for, or else `train`, or else its only one."""
    import datasets

    match = HUB_NAME.match(source)
    assert match is not None  # looks_local refuses anything else
    try:
        try:
            return datasets.load_dataset(match["name"], match["config"], split=split or "train", streaming=streaming)
        except ValueError as error:
            if split is not None or "Unknown split" not in str(error):
                raise
            names = datasets.get_dataset_split_names(match["name"], match["config"])
            only = _split_among(names, None, source)
            return datasets.load_dataset(match["name"], match["config"], split=only, streaming=streaming)
    except MsifError:
        raise
    except Exception as error:
        raise _explained(source, error) from error


def _explained(source: str, error: Exception) -> MsifError:
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    root = _root(error)
    if isinstance(root, OSError) and _is_of_cache(root):
        return MsifError(
            f"Cannot write '{source}' to the cache ({root.strerror}: {root.filename or 'a file'}); free space there, "
            "or set HF_HOME to a cache folder that can be written."
        )
    if "/" in source and Path(source).parent.is_dir():
        return MsifError(f"No such file or folder: '{source}'; check the path.")
    if isinstance(error, DatasetNotFoundError):
        return MsifError(
            f"'{source}' is neither a local file or folder nor a dataset on the Hugging Face hub that you may "
            "read; check the name, or log in with `hf auth login` if it is private."
        )
    if isinstance(error, DatasetGenerationError):  # its files differ, say, in fields that are not in use
        return MsifError(
            f"The files of hub dataset '{source}' cannot be put together ({one_line(root)}); name one part "
            "of it as name:config, or get them by `hf download --repo-type dataset` and name their folder."
        )
    if isinstance(error, ValueError):  # unknown split or configuration: the message lists those there are
        return MsifError(f"Cannot load hub dataset '{source}': {' '.join(str(error).split()).rstrip('.')}.")
    return MsifError(
        f"'{source}' is no local file or folder, and loading it from the Hugging Face hub failed "
        f"({type(root).__name__}: {one_line(root)}); check the name and the connection."
    )


def _is_of_cache(error: OSError) -> bool:
    """Whether the system refused to write what comes from the hub."""
    from datasets import config
    from huggingface_hub import constants

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    folders = (config.HF_CACHE_HOME, config.HF_DATASETS_CACHE, constants.HF_HOME, constants.HF_HUB_CACHE)
    return error.errno is not None and str(error.filename).startswith(tuple(str(folder) for folder in folders))


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
