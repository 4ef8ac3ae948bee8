"""An index on disk: a manifest, and shards of features with a table of their documents.

index/NAME/manifest.json              what is indexed, of which model, and how
index/NAME/shards.P-of-N.json         the shards of process P of N, rewritten whenever one is complete
index/NAME/P-of-N.00000.safetensors   gradients (n, D), norms (n,), scales (n, blocks) where there are
index/NAME/P-of-N.00000.parquet       content hash, row, id, source and tokens of its n documents
index/NAME/moments.safetensors        second moments, where gradients are scaled by them
index/NAME/baked-R/                   unit-normalised W φ in files of the same names, see msif.index.baking
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from msif.errors import MsifError, one_line
from msif.index.settings import DTYPES, IndexSettings

SCHEMA = 1
MOMENTS_FILE = "moments.safetensors"
REBUILD = "build it again with python -m msif.build_index"
# to what the largest feature of a document and block is scaled; float16 ends at 65504
LARGEST = {"int8": 127.0, "float16": 2.0**14}
# rows that are read from a shard at a time
CHUNK_BYTES = 2**23


@dataclass(frozen=True)
class Shard:
    """One file of features: ``rows`` documents, of which the first has this place in the index."""

    name: str
    rows: int
    start: int


class GradientIndex:
    """An index that is open for reading.

    Attributes:
        path: its folder.
        manifest: what it says of itself.
        shards: in order of their places.
        skipped: content hashes of documents that have nothing to be indexed.
        rounding: what its dtype does to scores, see ``rounding_error``; None of float32.
    """

    def __init__(
        self, path: Path, manifest: Mapping[str, Any], shards: Sequence[Shard], parts: Sequence[Mapping[str, Any]]
    ) -> None:
        self.path, self.manifest, self.shards = path, manifest, list(shards)
        self.skipped = {bytes.fromhex(value) for part in parts for value in part["skipped"]}
        self.rounding = next((part["rounding"] for part in parts if part["rounding"]), None)

    @classmethod
    def open(cls, path: str | Path) -> GradientIndex:
        """
        Raises:
            MsifError: there is no index, it is of another schema, or a part of it is missing.
        """
        path = Path(path)
        manifest = read_manifest(path)
        parts = read_parts(path)
        whole = {(number, of) for _, of in parts for number in range(of)}
        unfinished = sorted(whole - {key for key, part in parts.items() if part["complete"]})
        if unfinished or not parts:
            number, of = unfinished[0] if unfinished else (0, 1)
            raise MsifError(
                f"the index in {path} is not complete (part {number + 1} of {of} is missing or was interrupted): run "
                "python -m msif.build_index again with the same settings to finish it."
            )
        shards: list[Shard] = []
        for _, part in sorted(parts.items()):
            for entry in part["shards"]:
                start = shards[-1].start + shards[-1].rows if shards else 0
                shards.append(Shard(entry["name"], entry["rows"], start))
        index = cls(path, manifest, shards, [part for _, part in sorted(parts.items())])
        for shard in shards:
            index.check(shard)
            if not (path / f"{shard.name}.parquet").is_file():
                raise MsifError(f"{path / shard.name}.parquet is not there: {REBUILD}.")
        return index

    def shard(self, shard: Shard) -> GradientIndex:
        """An index of this shard alone, in which places begin at 0."""
        return GradientIndex(self.path, self.manifest, [replace(shard, start=0)], [])

    def beside(self, folder: Path) -> GradientIndex:
        """Other vectors of the same documents, in files of the same names there; without tables."""
        return GradientIndex(folder, self.manifest, self.shards, [])

    def __len__(self) -> int:
        """Documents."""
        return self.shards[-1].start + self.shards[-1].rows if self.shards else 0

    @property
    def identity(self) -> dict[str, Any]:
        """What scores depend on, as JSON."""
        return {"run": self.manifest["run"], "documents": len(self)}

    @cached_property
    def settings(self) -> IndexSettings:
        return IndexSettings.from_json(self.manifest["run"]["settings"])

    @property
    def width(self) -> int:
        """D, features of a document."""
        return self.columns[-1].stop

    @cached_property
    def columns(self) -> list[slice]:
        """The features of each block."""
        return [slice(*bounds) for bounds in self.manifest["columns"]]

    @cached_property
    def documents(self) -> Any:
        """Of every document, by place: hash, row, id, source, tokens (a ``pyarrow.Table``)."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            tables = [pq.read_table(self.path / f"{shard.name}.parquet") for shard in self.shards]
        except (OSError, pa.ArrowException) as error:
            raise MsifError(
                f"a table of the index in {self.path} cannot be read ({one_line(error)}): {REBUILD}."
            ) from error
        return pa.concat_tables(tables)

    @cached_property
    def places(self) -> dict[bytes, int]:
        """Content hash -> place of the document."""
        return {value: place for place, value in enumerate(self.documents["hash"].to_pylist())}

    @cached_property
    def norms(self) -> np.ndarray:
        """‖φ‖ of every document, float32, (N,), before it was rounded."""
        parts = [self._tensor(shard, "norms") for shard in self.shards]
        return torch.cat(parts).numpy() if parts else np.zeros(0, np.float32)

    def chunks(self, places: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, Tensor]]:
        """(places (n,), features (n, D), float32) of all documents in order, or of the named places, some at a time."""
        step = max(1, CHUNK_BYTES // (self.width * DTYPES[self.settings.dtype].itemsize))
        wanted = None if places is None else np.unique(places)
        for shard in self.shards:
            with self._opened(shard) as handle:
                names = {"gradients", "scales"} & set(handle.keys())
                for start in range(0, shard.rows, step):
                    rows = slice(start, min(start + step, shard.rows))
                    own = np.arange(shard.start + rows.start, shard.start + rows.stop)
                    if wanted is not None:
                        own = wanted[(wanted >= own[0]) & (wanted <= own[-1])]
                        if not len(own):
                            continue
                    stored = {name: handle.get_slice(name)[rows] for name in names}
                    if len(own) < rows.stop - rows.start:
                        chosen = torch.from_numpy(own - shard.start - rows.start)
                        stored = {name: part[chosen] for name, part in stored.items()}
                    yield own, decoded(stored, self.columns)

    def rows(self, places: Sequence[int] | np.ndarray) -> Tensor:
        """Features of some documents, (n, D), float32, in the order asked."""
        wanted = np.asarray(places, dtype=np.int64)
        result = torch.empty(len(wanted), self.width)
        for own, features in self.chunks(wanted):
            found = np.flatnonzero(np.isin(wanted, own))
            result[found] = features[np.searchsorted(own, wanted[found])]
        return result

    def _tensor(self, shard: Shard, name: str) -> Tensor:
        with self._opened(shard) as handle:
            return handle.get_tensor(name)

    def _opened(self, shard: Shard) -> Any:
        file = self.path / f"{shard.name}.safetensors"
        try:
            return safe_open(file, framework="pt")
        except Exception as error:
            raise MsifError(f"{file} cannot be read ({one_line(error)}): {REBUILD}.") from error

    def check(self, shard: Shard) -> None:
        """
        Raises:
            MsifError: the file of a shard is missing, damaged, or of another size.
        """
        with self._opened(shard) as handle:
            shape = handle.get_slice("gradients").get_shape()
        if shape != [shard.rows, self.width]:
            raise MsifError(
                f"{self.path / shard.name}.safetensors holds {shape[0]} × {shape[1]} numbers where its index says "
                f"{shard.rows} × {self.width}: {REBUILD}."
            )


def encoded(features: Tensor, columns: Sequence[slice], dtype: str) -> dict[str, Tensor]:
    """What a shard holds of features (n, D), float32: rounded gradients and their norms before that."""
    norms = features.norm(dim=1)
    if dtype not in LARGEST:
        return {"gradients": features.to(DTYPES[dtype]), "norms": norms}
    scales = torch.stack([features[:, block].abs().amax(1) for block in columns], 1) / LARGEST[dtype]
    stored = torch.empty(features.shape, dtype=DTYPES[dtype])
    for number, block in enumerate(columns):
        scaled = features[:, block] / scales[:, number, None].clamp(min=torch.finfo(torch.float32).tiny)
        stored[:, block] = scaled.round_() if dtype == "int8" else scaled
    return {"gradients": stored, "norms": norms, "scales": scales}


def decoded(stored: Mapping[str, Tensor], columns: Sequence[slice]) -> Tensor:
    """Its inverse but for rounding, float32."""
    features = stored["gradients"].float()
    if "scales" in stored:
        for number, block in enumerate(columns):
            features[:, block] *= stored["scales"][:, number, None]
    return features


def read_manifest(path: Path) -> dict[str, Any]:
    """
    Raises:
        MsifError: no folder, no manifest, one that does not parse, or another schema.
    """
    file = path / "manifest.json"
    if not file.is_file():
        raise MsifError(f"there is no index at {path} (no manifest.json): make it with python -m msif.build_index.")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MsifError(f"{file} is damaged ({one_line(error)}): remove the folder and {REBUILD}.") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != "index":
        raise MsifError(f"{file} is no manifest of an index: give a folder that python -m msif.build_index made.")
    if manifest.get("schema") != SCHEMA:
        raise MsifError(
            f"{file} is of schema {manifest.get('schema')}, and this version reads schema {SCHEMA}: {REBUILD}."
        )
    return manifest


def read_parts(path: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """(number, of how many) of each process -> what it wrote."""
    parts = {}
    for file in sorted(path.glob("shards.*-of-*.json")):
        try:
            part = json.loads(file.read_text(encoding="utf-8"))
            parts[part["part"], part["of"]] = part
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MsifError(f"{file} is damaged ({one_line(error)}): {REBUILD}.") from error
    return parts
