"""Folders that are made once: complete or not there, and never taken for those of other settings."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from msif.errors import MsifError

SETTINGS = "settings.json"


def check(folder: Path, settings: Mapping[str, Any], overwrite: bool) -> None:
    """Whether ``built`` may make or keep the folder; to be asked for all of them before any work.

    Raises:
        MsifError: the folder is something else, or was made from other settings and ``overwrite`` is not given.
    """
    found = read(folder / SETTINGS)
    if not folder.exists() or found == _as_json(settings):
        return
    if found is None:
        raise MsifError(f"{folder} was not made by this program: choose another --output, or move it away.")
    if not overwrite:
        raise MsifError(f"{folder} was made with other settings: choose another --output, or add --overwrite.")


def built(folder: Path, settings: Mapping[str, Any], build: Callable[[Path], None], overwrite: bool = False) -> Path:
    """``folder``, kept if it was made from these settings, else filled by ``build``.

    It is built under another name beside it and takes its own when it is complete.

    Raises:
        MsifError: see ``check``.
    """
    check(folder, settings, overwrite)
    if read(folder / SETTINGS) == _as_json(settings):
        print(f"{folder}: kept from an earlier run", file=sys.stderr)
        return folder
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    build(part)
    (part / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(part, folder)
    return folder


def read(path: Path) -> Any | None:
    """A JSON file; None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _as_json(settings: Mapping[str, Any]) -> Any:
    """The settings as they come back from a file, where tuples are lists."""
    return json.loads(json.dumps(settings))
