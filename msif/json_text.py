"""JSON as text that every reader takes: UTF-8 whatever its strings hold, and lines that end at "\\n" alone."""

from __future__ import annotations

import gzip
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from msif.errors import MsifError

# lone surrogates, which UTF-8 cannot hold, and what other readers than ours take for the end of a line
_FRAGILE = re.compile("[\x85\u2028\u2029\ud800-\udfff]")


def to_json(value: Any, indent: int | None = None, allow_nan: bool = True) -> str:
    """JSON of a value, characters as they are where that is safe: it can be encoded, and read line by line.

    Raises:
        ValueError: without ``allow_nan``, of an infinity or NaN.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=allow_nan)
    return _FRAGILE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def finite(value: Any) -> Any:
    """A value without infinities and NaN, which only Python takes for JSON: each becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    return [finite(one) for one in value] if isinstance(value, (list, tuple)) else value


def json_lines(path: Path | str) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file, which may be compressed (".gz"), one a line; blank lines are passed over.

    Raises:
        MsifError: names the first line that holds no JSON object.
    """
    path, number = Path(path), 0
    try:
        with _opened(path) as lines:
            for line in lines:
                number += 1
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError("no JSON object")
                    yield row
    except UnicodeDecodeError as error:  # of a line that was not reached
        raise MsifError(f"{path} is damaged after line {number} ({error}): make it again.") from error
    except ValueError as error:
        raise MsifError(f"{path} is damaged in line {number} ({error}): make it again.") from error


def _opened(path: Path) -> IO[str]:
    opener: Any = gzip.open if path.suffix.lower() == ".gz" else open
    return opener(path, "rt", encoding="utf-8-sig", newline="\n")
