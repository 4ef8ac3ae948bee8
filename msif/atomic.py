"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from msif.errors import MsifError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside ``path``; renamed to it when the block ends well, removed when it does not.

    Raises:
        MsifError: the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    except Exception as error:
        part.unlink(missing_ok=True)
        if _is_disk_full(error):
            raise MsifError(
                f"the disk is full while writing {path}: free some space and run the same again."
            ) from error
        raise
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _is_disk_full(error: Exception) -> bool:
    # safetensors reports the operating system's error as text only
    return getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically, indented for people."""
    with atomic_path(path) as part:
        part.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
