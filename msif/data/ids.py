"""What rows are called in results: their `id` fields, as the files of results can hold them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from msif.errors import MsifError

if TYPE_CHECKING:
    from msif.data.corpus import Corpus

CHECKED = 1000  # so many equal hashes of 64 bits are not all by chance
INT64, UINT64 = range(-(2**63), 2**63), range(2**64)


def is_empty(value: Any) -> bool:
    """Whether an id is none: null, an empty text, or what pandas has for a gap."""
    return value is None or (isinstance(value, str) and value == "") or bool(value != value)


def written_ids(ids: Sequence[Any]) -> Sequence[int | str]:
    """Ids as results hold them: integers, exact, where all are and fit into 64 bits; else all as text."""
    if all(isinstance(value, int) and not isinstance(value, bool) for value in ids):
        for held in (INT64, UINT64):
            if all(value in held for value in ids):
                return list(ids)
    return [id_text(value) for value in ids]


def id_text(value: Any) -> str:
    """An id as text that UTF-8 can hold: bytes are read as UTF-8, lists and mappings become JSON."""
    if type(value) is str and value.isascii():
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, (list, dict)):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")


def check_ids(corpus: Corpus) -> None:
    """Before expensive work: every row has an id of its own, also when written as text. Without a field `id` all have.

    It holds eight bytes a row.

    Raises:
        MsifError: names the row that has none, or two rows that share one.
    """
    if not corpus.has("id"):
        return
    hashes = np.fromiter((hash(id_text(value)) for value in corpus.iterate_ids()), np.int64)
    order = np.argsort(hashes, kind="stable")
    again = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]]) + 1
    for hashed in dict.fromkeys(hashes[np.sort(order[again])[:CHECKED]].tolist()):
        rows = np.flatnonzero(hashes == hashed)[:CHECKED].tolist()
        first: dict[str, int] = {}
        for row, value in zip(rows, corpus.iterate_ids(rows), strict=True):
            text = id_text(value)
            if first.setdefault(text, row) != row:  # else only their hashes are equal
                raise MsifError(shared(f"Rows {first[text]} and {row} of '{corpus.name}'", text))


def shared(rows: str, id: str) -> str:
    """The message on two rows of one id."""
    return f"{rows} have the same id '{id}': give each its own, or rename the field 'id' to have row numbers instead."
