"""Rows of JSON Lines, and of JSON files that hold one list."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from msif.data.compression import decompression_errors, not_text, open_bytes, unpacked
from msif.errors import MsifError

BOM = b"\xef\xbb\xbf"
HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # the escape of half a surrogate pair, whose other half may follow
SPACE = re.compile(r"[ \t\n\r]*")


def json_rows(path: Path, columns: Collection[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a JSON Lines file, or of a JSON file that holds one list of objects or one object.

    Values are Python's own, so that integers of any size stay exact. A key that an object has twice means its last
    value, as it does to most readers of JSON.

    Args:
        columns: fields of which text is looked at, None for all.

    Raises:
        MsifError: names the first line that is no JSON object, or holds text that is none.
    """
    with open_bytes(path) as file:
        # a mark of byte order begins each part of what `cat` put together
        lines = ((number, line.removeprefix(BOM).strip()) for number, line in enumerate(file, start=1))
        filled = (numbered for numbered in lines if numbered[1])
        first = next(filled, None)
        if first is not None and not is_document(path, first[1]):
            for number, line in chain([first], filled):
                row = _row(_parse(line, number, path), number, path)
                if b"\\u" in line and HALF.search(line):
                    refuse_halves(row, columns, f"line {number} of '{path}'")
                yield row
            return
    if first is not None:
        yield from _document_rows(path, columns)


def is_document(path: Path, first: bytes) -> bool:
    """Whether a file whose first line is this is one JSON document rather than lines of them."""
    if first.startswith(b"[") or first == b"{":
        return True
    if unpacked(path).suffix.lower() != ".json":
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return True
    return False


def shape_of(path: Path) -> Literal["lines", "line", "list", "object"]:
    """How a JSON file is laid out, by its first two lines: "object" is one that goes over several lines."""
    try:
        with open_bytes(path) as file:
            lines = list(islice((line.removeprefix(BOM).strip() for line in file if line.strip()), 2))
    except decompression_errors():  # reading it says what is wrong
        return "lines"
    if lines and is_document(path, lines[0]):
        return "list" if lines[0].startswith(b"[") else "object"
    return "lines" if len(lines) > 1 else "line"


def _parse(line: bytes, number: int, path: Path) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError:
        raise MsifError(not_text(path, number)) from None
    except (ValueError, RecursionError) as fault:
        raise _invalid(fault, number, path, "mend it or delete it") from None


def _invalid(fault: Exception, number: int, path: Path, remedy: str) -> MsifError:
    reason = getattr(fault, "msg", None) or str(fault)
    return MsifError(f"Line {number} of '{path}' is not valid JSON ({reason}); {remedy}.")


def _row(value: Any, number: int, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MsifError(f"Line {number} of '{path}' is not a JSON object; write each row as {{\"field\": value, ...}}.")
    return value


def refuse_halves(row: dict[str, Any], columns: Collection[str] | None, where: str) -> None:
    """
    Raises:
        MsifError: a field holds half of a surrogate pair.
    """
    for column in row if columns is None else columns:
        try:
            json.dumps(row.get(column), ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as fault:
            half = f"\\u{ord(fault.object[fault.start]):x}"
            raise MsifError(
                f"Field '{column}' of {where} holds {half}, half of a surrogate pair, which is no character; mend it "
                "or leave the row out."
            ) from None


def _document_rows(path: Path, columns: Collection[str] | None) -> Iterator[dict[str, Any]]:
    """The rows of one JSON document, parsed one at a time."""
    with open_bytes(path) as file:
        content = file.read()
    halves = HALF.search(content) is not None
    text = content.decode("utf-8-sig")
    del content
    number, counted = 1, 0
    try:
        for place, value in _values(text):
            number, counted = number + text.count("\n", counted, place), place
            row = _row(value, number, path)
            if halves:
                refuse_halves(row, columns, f"line {number} of '{path}'")
            yield row
    except (ValueError, RecursionError) as fault:
        raise _invalid(fault, getattr(fault, "lineno", number), path, "mend it") from None


def _values(text: str) -> Iterator[tuple[int, Any]]:
    """The elements of the list that a text is, or the one value that it is, with the places where they begin."""
    decode = json.JSONDecoder().raw_decode
    place = _after_space(text, 0)
    if text[place] != "[":
        value, end = decode(text, place)
        yield place, value
    else:
        place = end = _after_space(text, place + 1)
        while text[end : end + 1] != "]":
            if end > place:  # between two elements
                if text[end] != ",":
                    raise json.JSONDecodeError("Expecting ',' delimiter", text, end)
                place = _after_space(text, end + 1)
            value, end = decode(text, place)
            yield place, value
            end = _after_space(text, end)
            if end == len(text):
                raise json.JSONDecodeError("Expecting ',' delimiter", text, end)
        end += 1
    if _after_space(text, end) < len(text):
        raise json.JSONDecodeError("Extra data", text, _after_space(text, end))


def _after_space(text: str, place: int) -> int:
    match = SPACE.match(text, place)
    assert match is not None  # it matches nothing, too
    return match.end()
