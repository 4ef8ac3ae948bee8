"""Opening what holds a corpus with `datasets`: saved folders, local files, the hub."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Iterator
from errno import ENOSPC
from glob import escape
from pathlib import Path
from typing import Any

from msif.data.files import HUB_NAME, LocalFiles, explain_failure, first_line, json_rows, open_text
from msif.errors import MsifError

log = logging.getLogger(__name__)

READ_ROWS = 1000  # rows decoded at a time


def decoded(dataset: Any) -> Iterator[dict[str, Any]]:
    """Rows of a map-style dataset, decoded many at a time (row by row is ten times slower)."""
    for columns in dataset.with_format(None).iter(batch_size=READ_ROWS):
        names = list(columns)
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(names, values, strict=True))


def open_saved(path: Path, split: str, streaming: bool) -> Any:
    from datasets import DatasetDict, load_from_disk

    try:
        dataset = load_from_disk(str(path))
    except Exception as error:
        raise MsifError(f"Cannot read '{path}' as a saved dataset ({first_line(error)}); save it again.") from error
    if isinstance(dataset, DatasetDict):
        if split not in dataset:
            raise MsifError(f"'{path}' has no split '{split}'; its splits are {', '.join(dataset)}.")
        dataset = dataset[split]
    return dataset.to_iterable_dataset() if streaming else dataset


def open_files(files: LocalFiles, streaming: bool) -> Any:
    """Rows of local files; a reader that fails is asked why."""
    from datasets import load_dataset

    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)  # failures are explained here, once
    options: dict[str, Any] = {
        "path": files.loader,
        "name": f"msif-{files.state()}",
        "data_files": {"train": [escape(str(path)) for path in files.paths]},
        "split": "train",
        "streaming": streaming,
    }
    if files.loader == "csv":
        options |= _csv_options(files)
    try:
        dataset = load_dataset(**options)
        if files.loader == "json" and "timestamp" in str(dataset.features):
            dataset = _plain_json(files, streaming)
    except Exception as error:
        if getattr(_root(error), "errno", None) == ENOSPC:
            raise _root(error) from error
        if "corresponds to no data" in str(error):
            raise MsifError(f"'{files.paths[0]}' has no rows; give a file with at least one.") from error
        raise explain_failure(files, error) from error
    if files.loader != "text":
        return dataset
    if streaming:
        return dataset.filter(lambda row: bool(row["text"].strip()))
    kept = [number for number, row in enumerate(decoded(dataset)) if row["text"].strip()]
    if len(kept) == len(dataset):
        return dataset
    log.info("%d blank lines of %s are not rows", len(dataset) - len(kept), files.paths[0].name)
    return dataset.select(kept)


def _plain_json(files: LocalFiles, streaming: bool) -> Any:
    """Rows of JSON files, strings left alone: Arrow's reader takes a field of "1987-05-02"s for points in time."""
    from datasets import Dataset, IterableDataset

    kind = IterableDataset if streaming else Dataset
    dataset = kind.from_generator(_json_rows, gen_kwargs={"files": files, "state": files.state()})
    return dataset


def _json_rows(files: LocalFiles, state: str) -> Iterator[dict[str, Any]]:
    for path in files.paths:
        yield from json_rows(path)


def _csv_options(files: LocalFiles) -> dict[str, Any]:
    """Read every CSV column as text: "007", "NA" and "1987" are documents, not numbers or gaps."""
    from datasets import Features, Value

    try:
        with open_text(files.paths[0]) as lines:
            header = next((row for row in csv.reader(lines) if row), [])
    except (ValueError, OSError, EOFError, csv.Error) as error:
        raise explain_failure(files, error) from error
    repeated = [name for name, times in Counter(header).items() if times > 1]
    if repeated:
        raise MsifError(f"'{files.paths[0]}' has two columns named '{repeated[0]}'; rename one.")
    names = [name or f"Unnamed: {number}" for number, name in enumerate(header)]  # as pandas calls them
    return {
        "features": Features({name: Value("string") for name in names}),
        "keep_default_na": False,
        "na_values": [""],
    }


def open_hub(source: str, split: str, streaming: bool) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    match = HUB_NAME.match(source)
    assert match is not None  # looks_local refuses anything else
    try:
        return load_dataset(match["name"], match["config"], split=split, streaming=streaming)
    except Exception as error:
        if getattr(_root(error), "errno", None) == ENOSPC:
            raise _root(error) from error
        if "/" in source and Path(source).parent.is_dir():
            raise MsifError(f"No such file or folder: '{source}'; check the path.") from error
        if isinstance(error, DatasetNotFoundError):
            raise MsifError(
                f"'{source}' is neither a local file or folder nor a dataset on the Hugging Face hub that you may "
                "read; check the name, or log in with `hf auth login` if it is private."
            ) from error
        if isinstance(error, ValueError):  # unknown split or configuration: the message lists those there are
            raise MsifError(
                f"Cannot load hub dataset '{source}': {' '.join(str(error).split()).rstrip('.')}."
            ) from error
        raise MsifError(
            f"'{source}' is no local file or folder, and loading it from the Hugging Face hub failed "
            f"({type(error).__name__}: {first_line(error)}); check the name and the connection."
        ) from error


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
