"""What a run keeps, method by method: files and folders whose names hold a hash of all that they depend on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.cache import Arrays, hashed
from msif.atomic import atomic_path


def keyed(folder: Path, name: str, identity: Any, overwrite: bool = False) -> Path:
    """``folder/name.HASH``, so that nothing made from another identity is ever taken for it.

    With ``overwrite`` what bears the same name and another hash is removed.
    """
    path = folder / f"{name}.{hashed(identity)}"
    for other in folder.glob(f"{name}.*") if overwrite else ():
        stem = other.name.removesuffix(".npz")
        if stem != path.name and len(stem) == len(path.name):
            shutil.rmtree(other) if other.is_dir() else other.unlink()
    return path


class ScoreStore:
    """Arrays of methods in one folder.

    Args:
        identity: of the whole run: models, data, what is asked and ranked.
    """

    def __init__(self, folder: Path, identity: Any, overwrite: bool = False) -> None:
        self.folder, self.identity, self.overwrite = folder, identity, overwrite

    def _path(self, name: str, settings: Mapping[str, Any]) -> Path:
        path = keyed(self.folder, name, {"run": self.identity, "settings": settings}, self.overwrite)
        return path.with_name(f"{path.name}.npz")

    def has(self, name: str, settings: Mapping[str, Any]) -> bool:
        return self._path(name, settings).is_file()

    def load(self, name: str, settings: Mapping[str, Any]) -> Arrays:
        with np.load(self._path(name, settings)) as stored:
            return dict(stored)

    def save(self, name: str, settings: Mapping[str, Any], arrays: Arrays) -> None:
        with atomic_path(self._path(name, settings)) as part, open(part, "wb") as file:
            np.savez(file, **arrays)
