"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import platform
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from msif.errors import MsifError
from msif.json_text import to_json

# two machines may write into one folder by the same process number
HOST = re.sub(r"\W", "-", platform.node())[:32] or "host"


@contextmanager
def atomic_path(path: Path, remedy: str | None = None) -> Iterator[Path]:
    """Yields a temporary name beside ``path``; renamed to it when the block ends well, removed when it does not.

    Folders that had to be made for it go too when they stay empty. `remedy` says what to do where the path is none
    that the user chose for output.

    Raises:
        MsifError: the disk is full, or the path cannot be written to.
    """
    part = path.with_name(f".{path.name}.{HOST}.{os.getpid()}.part")
    new = missing_folders(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
            remove_empty(new)
        if isinstance(error, Exception) and _is_disk_full(error):
            message = f"the disk is full while writing {path}: {remedy or 'free some space and run the same again'}."
            raise MsifError(message) from error
        if isinstance(error, OSError):
            message = f"{path} cannot be written ({error.strerror or error}): {remedy or 'choose another --output'}."
            raise MsifError(message) from error
        raise


def missing_folders(path: Path) -> list[Path]:
    """The folders that have to be made for a folder, itself first and the outermost last."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Removes folders, inner ones first, as far as nothing came into them."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _is_disk_full(error: Exception) -> bool:
    # safetensors reports the operating system's error as text only
    return getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 atomically; a lone surrogate, which it cannot hold, as its escape."""
    with atomic_path(path) as part:
        part.write_bytes(text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically, indented for people."""
    write_text(path, to_json(value, indent=1) + "\n")


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Writes JSON Lines atomically, one value a line."""
    write_text(path, "".join(f"{to_json(row)}\n" for row in rows))
