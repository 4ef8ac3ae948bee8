"""Writing an index: its folder, and the shards of one process, each whole or not there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from msif.atomic import atomic_path, remove_empty, write_json
from msif.curvature.store import differences, save_tensors
from msif.errors import MsifError, one_line
from msif.index.storage import MOMENTS_FILE, REBUILD, SCHEMA, read_manifest, read_parts

EMPTY: dict[str, Any] = {"complete": False, "rounding": None, "shards": [], "skipped": []}
"""A part of which nothing is written."""


def open_or_create(path: Path, run: Mapping[str, Any], fresh: Mapping[str, Any]) -> bool:
    """Begins a new index, or looks whether the one that is there has equal settings; returns whether it is new.

    Raises:
        MsifError: the folder holds something else, or an index of other settings: the first difference is named.
    """
    run = json.loads(json.dumps(run))
    if path.is_file():
        raise MsifError(f"{path} is a file: give a folder as --output.")
    if is_somebodys(path):
        manifest = read_manifest(path)
        for key, here, there in differences(run, manifest["run"]):
            raise MsifError(
                f"{path} is an index of other settings ({key} is {_short(there)} there and {_short(here)} now): choose "
                "another --output or remove that folder."
            )
        return False
    write_json(path / "manifest.json", {"kind": "index", "schema": SCHEMA, "run": run, **fresh})
    return True


def is_somebodys(path: Path) -> bool:
    """Whether there is anything but what a run that was ended at once left."""
    return path.is_dir() and any(not file.name.endswith(".part") for file in path.iterdir())


def remove_if_nothing_done(path: Path, made: Sequence[Path]) -> None:
    """A build that failed before its first shard of a new index leaves no folder, which would refuse other settings.

    Only of a build that is alone: other shares may be at work by the manifest that one of them made.

    Args:
        made: the folders that were made for it, itself first.
    """
    if not any(path.glob("*.parquet")):
        for name in ("manifest.json", MOMENTS_FILE):
            (path / name).unlink(missing_ok=True)
        remove_empty(made or [path])


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def settle(path: Path, of: int) -> None:
    """What an interrupted build of another number of processes had left has been done by these, if all have ended."""
    parts = read_parts(path)
    if not all(parts.get((number, of), {}).get("complete") for number in range(of)):
        return
    for number, others in {(number, split) for _, split in parts for number in range(split)}:
        part = parts.get((number, others), {**EMPTY, "part": number, "of": others})
        if not part["complete"]:
            write_json(path / f"shards.{number}-of-{others}.json", {**part, "complete": True})


def known_hashes(path: Path) -> set[bytes]:
    """Content hashes of all documents that are there, or skipped, whoever wrote them."""
    known: set[bytes] = set()
    for part in read_parts(path).values():
        known.update(bytes.fromhex(value) for value in part["skipped"])
        for entry in part["shards"]:
            known.update(_hashes(path / f"{entry['name']}.parquet"))
    return known


def _hashes(file: Path) -> list[bytes]:
    import pyarrow.parquet as pq

    try:
        return pq.read_table(file, columns=["hash"])["hash"].to_pylist()
    except Exception as error:
        raise MsifError(f"{file} cannot be read ({one_line(error)}): {REBUILD}.") from error


class ShardWriter:
    """Writes the shards of one process; what was complete before is kept.

    Attributes:
        part, parts: number of this process, and of all.
        skipped: content hashes of documents that have nothing to be indexed.
        rounding: what storing in fewer bits does, see ``rounding_error``.
        known: see ``known_hashes``.
    """

    def __init__(self, path: Path, part: int = 0, parts: int = 1) -> None:
        self.path, self.part, self.parts = path, part, parts
        mine: dict[str, Any] = read_parts(path).get((part, parts), EMPTY)
        self.shards: list[dict[str, Any]] = list(mine["shards"])
        self.skipped = {bytes.fromhex(value) for value in mine["skipped"]}
        self.rounding: dict[str, Any] | None = mine["rounding"]
        self.known = known_hashes(path)
        for leftover in path.glob(f".{self._prefix}*.part"):
            leftover.unlink(missing_ok=True)

    @property
    def _prefix(self) -> str:
        return f"{self.part}-of-{self.parts}"

    def write(self, tensors: Mapping[str, Tensor], documents: Mapping[str, Sequence[Any]]) -> None:
        """One shard, whole or not at all.

        Raises:
            MsifError: the disk is full, or the folder cannot be written to; shards before it are kept.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        name = f"{self._prefix}.{len(self.shards):05d}"
        table = pa.table(
            {
                "hash": pa.array(documents["hash"], pa.binary(16)),
                **{key: pa.array(values) for key, values in documents.items() if key != "hash"},
            }
        )
        with atomic_path(self.path / f"{name}.parquet") as part:
            pq.write_table(table, part)
        save_tensors(self.path / f"{name}.safetensors", tensors)
        self.shards.append({"name": name, "rows": len(documents["hash"])})
        self.known.update(documents["hash"])
        self.save(complete=False)

    def save(self, complete: bool) -> None:
        value = {
            "part": self.part,
            "of": self.parts,
            "complete": complete,
            "rounding": self.rounding,
            "shards": self.shards,
            "skipped": sorted(value.hex() for value in self.skipped),
        }
        write_json(self.path / f"shards.{self._prefix}.json", value)
