"""What a run keeps, so that an interrupted one goes on: files and folders that are complete or not there, and are never
taken for those of other settings."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msif.atomic import atomic_path, write_json
from msif.errors import MsifError

SETTINGS = "settings.json"
Arrays = dict[str, np.ndarray]
Step = tuple[Path, Mapping[str, Any], Callable[[Path], None]]
"""A folder, the settings that it is made from, and what fills it."""


def hashed(identity: Any) -> str:
    """Sixteen hexadecimal digits of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def read(path: Path) -> Any | None:
    """A JSON file; None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def kept(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a folder was made from these settings, in which tuples are lists to a file."""
    return read(folder / SETTINGS) == json.loads(json.dumps(settings))


def check(folder: Path, settings: Mapping[str, Any], overwrite: bool) -> None:
    """Whether the folder may be made or kept.

    Raises:
        MsifError: the folder is something else, or was made from other settings and ``overwrite`` is not given.
    """
    if not folder.exists() or kept(folder, settings):
        return
    if read(folder / SETTINGS) is None:
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
    if kept(folder, settings):
        print(f"{folder}: kept from an earlier run", file=sys.stderr)
        return folder
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    build(part)
    write_json(part / SETTINGS, settings)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(part, folder)
    return folder


def built_all(plan: Sequence[Step], overwrite: bool = False) -> None:
    """``built`` for folders that follow from each other; what cannot be made is said before any work."""
    for folder, settings, _ in plan:
        check(folder, settings, overwrite)
    for folder, settings, build in plan:
        built(folder, settings, build, overwrite)


def reported(path: Path, settings: Mapping[str, Any], report: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """A report in JSON, with the settings that it was made from: read, or made where it is of others or not there."""
    known = read(path)
    if not known or known.get("settings") != json.loads(json.dumps(settings)):
        write_json(path, {**report(), "settings": settings})
    return read(path)


def keyed(folder: Path, name: str, identity: Any, overwrite: bool = False) -> Path:
    """``folder/name.HASH``, for folders of several identities side by side.

    With ``overwrite`` what bears the same name and another hash is removed.
    """
    path = folder / f"{name}.{hashed(identity)}"
    for other in folder.glob(f"{name}.*") if overwrite else ():
        if other != path and len(other.name) == len(path.name):
            shutil.rmtree(other)
    return path


class Cache:
    """A folder that belongs to one set of settings, with one file of arrays for each part.

    Raises:
        MsifError: see ``check``.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], overwrite: bool = False) -> None:
        check(folder, settings, overwrite)
        self.folder = folder
        if not kept(folder, settings):
            shutil.rmtree(folder, ignore_errors=True)
            write_json(folder / SETTINGS, settings)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npz"

    def has(self, name: str) -> bool:
        return self._path(name).is_file()

    def save(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        with atomic_path(self._path(name)) as part, open(part, "wb") as file:
            np.savez(file, **arrays)

    def load(self, name: str) -> Arrays:
        with np.load(self._path(name)) as stored:
            return dict(stored)

    def arrays(self, name: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> Arrays:
        """The arrays of a part: read, or computed and kept."""
        if not self.has(name):
            self.save(name, compute())
        return self.load(name)
