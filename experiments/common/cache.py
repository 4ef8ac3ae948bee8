"""What a run keeps, part by part, so that an interrupted one goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.folders import SETTINGS, check, read
from msif.atomic import atomic_path, write_json

Arrays = dict[str, np.ndarray]


def hashed(identity: Any) -> str:
    """Sixteen hexadecimal digits of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


class Cache:
    """A folder that belongs to one set of settings, with one file of arrays for each part.

    Raises:
        MsifError: the folder is something else, or of other settings and ``overwrite`` is not given.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], overwrite: bool = False) -> None:
        check(folder, settings, overwrite)
        self.folder = folder
        if folder.exists() and read(folder / SETTINGS) != json.loads(json.dumps(settings)):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SETTINGS, settings)

    def arrays(self, name: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> Arrays:
        """The arrays of a part: read, or computed and kept."""
        path = self.folder / f"{name}.npz"
        if not path.is_file():
            computed = compute()
            with atomic_path(path) as part, open(part, "wb") as file:
                np.savez(file, **computed)
        with np.load(path) as stored:
            return dict(stored)
