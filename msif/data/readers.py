"""Rows of one file as they are written: no type is guessed from a part of them."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from msif.data.compression import decompression_errors, is_compressed, not_text, open_bytes
from msif.data.json_rows import json_rows
from msif.errors import MsifError, one_line

log = logging.getLogger(__name__)

Row = dict[str, Any]

READ_ROWS = 1000  # rows decoded at a time
DELIMITERS = {"csv": ",", "tsv": "\t"}


def read_rows(path: Path, kind: str, columns: Collection[str] | None = None) -> Iterator[Row]:
    """The rows of a file.

    Args:
        kind: what the file's name says it is, see `files.KINDS`.
        columns: the fields in use, None for all: others need not be sound, and may be left out of the rows.

    Raises:
        MsifError: the file cannot be read; names it, and the line where there is one.
    """
    with _explained(path):
        yield from READERS[kind](path, columns)


def header_of(path: Path, kind: str) -> tuple[str, ...] | None:
    """The names of a file's fields; None for JSON, where each row has its own."""
    if kind == "json":
        return None
    if kind == "text":
        return ("text",)
    with _explained(path):
        if kind == "parquet":
            return tuple(_schema(path).names)
        with _open_text(path, newline="") as lines:
            return tuple(_header(csv.reader(lines, delimiter=DELIMITERS[kind])))


def class_names(path: Path, field: str) -> tuple[str, ...] | None:
    """The names that `datasets` wrote into a Parquet file for the classes of a field of integers, or lists of them."""
    with _explained(path):
        written = (_schema(path).metadata or {}).get(b"huggingface")
    feature = json.loads(written).get("info", {}).get("features", {}).get(field, {}) if written else {}
    feature = feature.get("feature", feature) if isinstance(feature, dict) else {}
    return tuple(feature["names"]) if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What goes wrong with a file, as one sentence."""
    from pyarrow.lib import ArrowException

    try:
        yield
    except UnicodeDecodeError:
        raise MsifError(not_text(path)) from None
    except ArrowException as fault:
        raise MsifError(f"Cannot read '{path}' as parquet ({one_line(fault)}); check that it is complete.") from fault
    except decompression_errors() as fault:
        check = "that the file is complete" + (" and packed as its name says" if is_compressed(path) else "")
        check = "its rights" if isinstance(fault, PermissionError) else check
        raise MsifError(f"'{path}' cannot be read ({one_line(fault)}); check {check}.") from fault


def _open_text(path: Path, newline: str | None = None) -> io.TextIOWrapper:
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", newline=newline)


def text_rows(path: Path, columns: Collection[str] | None = None) -> Iterator[Row]:
    """The lines of a text file that are not blank; a line ends as Python's own do, so not at U+2028 or a form feed."""
    blank = 0
    with _open_text(path) as lines:
        for line in lines:
            if line.strip():
                yield {"text": line.rstrip("\n")}
            else:
                blank += 1
    if blank:
        _say_blank(path, blank)


@cache
def _say_blank(path: Path, count: int) -> None:  # once, however often the file is read
    log.info("%d blank lines of %s are not rows", count, path.name)


def delimited_rows(kind: str, path: Path, columns: Collection[str] | None = None) -> Iterator[Row]:
    """The rows of a CSV or TSV file, all values as text: "007", "NA" and "1987" are no numbers or gaps."""
    csv.field_size_limit(2**31 - 1)  # a document is longer than the 128 KiB that are thought enough for a field
    with _open_text(path, newline="") as lines:
        reader = csv.reader(lines, delimiter=DELIMITERS[kind], strict=True)
        start = 1
        try:
            header = _header(reader)
            used = [(place, name) for place, name in enumerate(header) if columns is None or name in columns]
            _refuse_repeated([name for _, name in used], path)
            start = reader.line_num + 1
            for row in reader:
                if len(row) > len(header) and any(row[len(header) :]):
                    raise MsifError(
                        f"Expected {len(header)} fields in line {start} of '{path}', saw {len(row)}; put text that "
                        "holds a delimiter into quotes."
                    )
                if row:  # no blank line
                    row += [""] * (len(header) - len(row))
                    yield {name: row[place] or None for place, name in used}
                start = reader.line_num + 1
        except csv.Error as fault:
            raise MsifError(
                f"The row that begins in line {start} of '{path}' is not valid {kind.upper()} ({fault}); put text that "
                "holds quotes into quotes, and double those within."
            ) from None


def _header(reader: Iterator[list[str]]) -> list[str]:
    header = next((row for row in reader if row), [])
    return [name or f"Unnamed: {number}" for number, name in enumerate(header)]  # as pandas calls them


def _refuse_repeated(names: list[str], path: Path) -> None:
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise MsifError(f"'{path}' has two columns named '{repeated[0]}'; rename one.")


def _open_parquet(path: Path) -> Any:
    from pyarrow.parquet import ParquetFile

    return ParquetFile(path, memory_map=True)


def _schema(path: Path) -> Any:
    with _open_parquet(path) as file:
        return file.schema_arrow


def parquet_rows(path: Path, columns: Collection[str] | None = None) -> Iterator[Row]:
    """The rows of a Parquet file, of the columns in use."""
    with _open_parquet(path) as file:
        schema = file.schema_arrow
        used = [name for name in schema.names if columns is None or name in columns]
        _refuse_repeated(used, path)
        as_text = {name: schema.field(name).type for name in used if not _is_plain(schema.field(name).type)}
        wrong = next((name for name in as_text if name != "id"), None)
        if columns is not None and wrong:
            raise MsifError(f"Field '{wrong}' of '{path}' is of type {as_text[wrong]}, not text; write it as strings.")
        for batch in file.iter_batches(batch_size=READ_ROWS, columns=used):
            lists = [_values(batch.column(name), name in as_text) for name in used]
            if not used:
                yield from ({} for _ in range(batch.num_rows))
            for values in zip(*lists, strict=True):
                yield dict(zip(used, values, strict=True))


def _is_plain(kind: Any) -> bool:
    """Whether JSON has values like those of an Arrow type."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    plain = (types.is_null, types.is_boolean, types.is_integer, types.is_floating, types.is_nested)
    return kind in _text_types() or any(is_kind(kind) for is_kind in plain)


def _text_types() -> tuple[Any, ...]:
    import pyarrow

    return (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view())


def _values(column: Any, as_text: bool) -> list[Any]:
    values: list[Any] = column.to_pylist()
    return [None if value is None else str(value) for value in values] if as_text else values


READERS: dict[str, Callable[[Path, Collection[str] | None], Iterator[Row]]] = {
    "json": json_rows,
    "csv": partial(delimited_rows, "csv"),
    "tsv": partial(delimited_rows, "tsv"),
    "text": text_rows,
    "parquet": parquet_rows,
}
