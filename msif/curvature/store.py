"""Factors on disk: a manifest, and one safetensors file a layer, read lazily (docs/method.md).

factors/NAME/manifest.json            what was fitted, on what, how far it came
factors/NAME/layers.0.safetensors     Q_A, S_A (once an input), Q_G, S_G (each module)
factors/NAME/layers.0.lambda.safetensors   Lambda (each module)
factors/NAME/checkpoint.safetensors   running sums, while a pass is under way (one a process)
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from msif.atomic import atomic_path, remove_empty, write_json
from msif.curvature.factors import ModuleFactors
from msif.errors import MsifError
from msif.models.blocks import Block, TrackedModule, Use

log = logging.getLogger(__name__)

SCHEMA = 2
PARTS = ("eigenvectors", "lambda")


class FactorStore(Mapping[str, ModuleFactors]):
    """A folder of factors as a mapping from module name to ``ModuleFactors``, each read when asked for.

    Open a finished one with ``FactorStore.open``; ``msif.fit`` makes one.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.tracked = [_module_from_json(entry) for entry in manifest["modules"]]
        self._modules = {module.name: module for module in self.tracked}
        self.groups = {entry["name"]: entry["input"] for entry in manifest["modules"]}

    @classmethod
    def open(cls, path: str | Path) -> FactorStore:
        """Opens complete factors.

        Raises:
            MsifError: there is no such folder, it is of another schema, or the fit did not end.
        """
        path = Path(path)
        manifest = read_manifest(path)
        missing = [part for part in PARTS if not manifest["parts"].get(part)]
        if missing:
            raise MsifError(
                f"the factors in {path} are incomplete ({missing[0]} is missing): run msif.fit_factors again with the "
                "same settings to finish them."
            )
        return cls(path, manifest)

    def __getitem__(self, name: str) -> ModuleFactors:
        if name not in self.groups:
            raise KeyError(name)
        return _factors_from(self._load([name]), name, self.groups[name])

    def __contains__(self, name: object) -> bool:
        return name in self.groups  # without reading its factors

    def __iter__(self) -> Iterator[str]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def load_all(self, names: Sequence[str] | None = None) -> dict[str, ModuleFactors]:
        """Every module's factors in memory, or the named ones'; those that share an input share one Q_A."""
        names = list(self.groups) if names is None else names
        tensors = self._load(names)
        return {name: _factors_from(tensors, name, self.groups[name]) for name in names}

    def _load(self, names: Sequence[str]) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for file, members in files_of(self.groups).items():
            wanted = [name for name in names if name in members]
            if not wanted:
                continue
            tensors |= self._read(file, {key for name in wanted for key in self._keys(name)})
            if self.has_lambda(file):
                tensors |= self._read(lambda_file(file), {f"{name}:Lambda" for name in wanted})
        return tensors

    def _read(self, file: str, keys: set[str]) -> dict[str, Tensor]:
        try:
            with safe_open(self.path / file, framework="pt") as handle:
                tensors = {key: handle.get_tensor(key) for key in handle.keys() if key in keys}  # noqa: SIM118
        except Exception as error:
            raise MsifError(f"{self.path / file} cannot be read ({error}): fit the factors again.") from error
        for key in sorted(keys):
            if key not in tensors:
                raise MsifError(f"{self.path / file} is damaged (it lacks {key}): fit the factors again.")
            if not bool(torch.isfinite(tensors[key]).all()):
                raise MsifError(f"{self.path / file} holds NaN or infinity in {key}: fit the factors again.")
        return tensors

    def has_bases(self, file: str) -> bool:
        return (self.path / file).exists()

    def has_lambda(self, file: str) -> bool:
        return self.manifest["parts"]["lambda"] or (self.path / lambda_file(file)).exists()

    def _keys(self, name: str) -> list[str]:
        """The tensors that belong to a module; of an identity there is none."""
        module, leader = self._modules[name], self.groups[name]
        vectors = [f"{leader}:Q_A"] if module.column_basis == "eigenvectors" else []
        vectors += [f"{name}:Q_G"] if module.row_basis == "eigenvectors" else []
        return [*vectors, f"{leader}:S_A", f"{name}:S_G"]

    def save_bases(self, file: str, factors: Mapping[str, ModuleFactors]) -> None:
        """Writes one layer's factors without Λ."""
        tensors: dict[str, Tensor] = {}
        for name, module in factors.items():
            leader = self.groups[name]
            found = {
                f"{leader}:Q_A": module.Q_A,
                f"{leader}:S_A": module.S_A,
                f"{name}:Q_G": module.Q_G,
                f"{name}:S_G": module.S_G,
            }
            tensors |= {key: tensor for key, tensor in found.items() if tensor is not None}
        save_tensors(self.path / file, tensors)

    def save_lambda(self, file: str, Lambda: Mapping[str, Tensor]) -> None:
        save_tensors(self.path / lambda_file(file), {f"{name}:Lambda": tensor for name, tensor in Lambda.items()})

    def save_manifest(self) -> None:
        write_json(self.path / "manifest.json", self.manifest)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a factors folder.

    Raises:
        MsifError: no folder, no manifest, one that does not parse, or another schema.
    """
    if not path.is_dir():
        raise MsifError(f"there is no folder of factors at {path}: make it with python -m msif.fit_factors.")
    file = path / "manifest.json"
    if not file.is_file():
        raise MsifError(
            f"{path} holds no manifest.json, so it is no folder of factors: make one with msif.fit_factors."
        )
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MsifError(f"{file} is damaged ({error}): remove the folder and fit the factors again.") from error
    if not isinstance(manifest, dict):
        raise MsifError(f"{file} is no manifest of factors: remove the folder and fit the factors again.")
    if manifest.get("schema") != SCHEMA:
        raise MsifError(
            f"{file} is of schema {manifest.get('schema')}, and this version reads schema {SCHEMA}: "
            "fit the factors again."
        )
    lacking = [key for key in ("parts", "provenance", "run", "counts", "convergence", "modules") if key not in manifest]
    if lacking:
        raise MsifError(f"{file} is damaged ('{lacking[0]}' is missing): remove the folder and fit the factors again.")
    return manifest


def open_or_create(
    path: Path,
    run: dict[str, Any],
    tracked: Sequence[TrackedModule],
    groups: Mapping[str, str],
    provenance: Mapping[str, Any],
) -> FactorStore:
    """A new store for a run, or the one of an earlier run with equal settings, to be resumed.

    Raises:
        MsifError: the folder holds something else, or factors with other settings: the first difference is named.
    """
    modules = [module_to_json(module, groups[module.name]) for module in tracked]
    run = json.loads(json.dumps({**run, "modules": _by_name(modules)}))
    if path.is_file():
        raise MsifError(f"{path} is a file: give a folder as --output.")
    if path.exists() and is_somebodys(path):
        manifest = read_manifest(path)
        _remove_leftovers(path)
        for key, here, there in differences(run, {**manifest["run"], "modules": _by_name(manifest["modules"])}):
            raise MsifError(
                f"{path} holds factors fitted with other settings ({key} is {_short(there)} there and {_short(here)} "
                "now): choose another --output or remove that folder."
            )
        return FactorStore(path, manifest)
    manifest = {
        "schema": SCHEMA,
        "parts": dict.fromkeys(PARTS, False),
        "provenance": dict(provenance),
        "run": {key: value for key, value in run.items() if key != "modules"},
        "counts": {},
        "convergence": {},
        "modules": modules,
    }
    for part in path.glob(checkpoint_file("*", "*")):  # of nobody knows what
        part.unlink()
    store = FactorStore(path, manifest)
    store.save_manifest()
    return store


def is_somebodys(path: Path) -> bool:
    """Whether there is anything but what a run that was ended at once left: a first manifest, parts of sums."""
    return any(
        not file.match(".manifest.json.*.part") and not file.match(checkpoint_file("*", "*")) for file in path.iterdir()
    )


def _by_name(modules: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {module["name"]: module for module in modules}


def remove_if_nothing_done(store: FactorStore, made: Sequence[Path] = ()) -> None:
    """A failed fit that has nothing to resume from leaves no folder, which would refuse other settings.

    Args:
        made: the folders that were made for it, itself first.
    """
    if not any(store.path.glob("*.safetensors")):
        (store.path / "manifest.json").unlink(missing_ok=True)
        remove_empty(made or [store.path])


def _remove_leftovers(path: Path) -> None:
    """Removes what a killed run was writing into a folder of factors; whole files are never named like this."""
    for kind in ("manifest.json", "*.safetensors"):
        for part in path.glob(f".{kind}.*.part"):
            part.unlink(missing_ok=True)


def differences(here: Any, there: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, value here, value there) of every leaf in which two JSON values differ."""
    if isinstance(here, dict) and isinstance(there, dict):
        for name in sorted(here.keys() | there.keys()):
            yield from differences(here.get(name), there.get(name), f"{key}.{name}" if key else name)
    elif here != there:
        yield key, here, there


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file atomically."""
    with atomic_path(path) as part:
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, part, dict(metadata) if metadata else None)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a file of running sums; of a damaged one nothing, so that its pass begins anew."""
    try:
        with safe_open(path, framework="pt") as handle:
            return {key: handle.get_tensor(key) for key in handle.keys()}, handle.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        log.warning("%s is damaged (%s) and is not used", path, error)
        return {}, {}


def load_metadata(path: Path) -> dict[str, str]:
    """Of a file of running sums; of a damaged one nothing."""
    try:
        with safe_open(path, framework="pt") as handle:
            return handle.metadata() or {}
    except SafetensorError:
        return {}


def files_of(groups: Mapping[str, str]) -> dict[str, list[str]]:
    """File name -> modules in it: one file a layer, which is the leader's name up to its first number."""
    files: dict[str, list[str]] = {}
    for name, leader in groups.items():
        match = re.match(r"(.*?\d+)(?:\.|$)", leader)
        layer = match.group(1) if match else "modules"
        files.setdefault(f"{layer}.safetensors", []).append(name)
    return files


def checkpoint_file(rank: int | str = 0, processes: int | str = 1) -> str:
    """Running sums of one process of several."""
    return "checkpoint.safetensors" if processes == 1 else f"checkpoint.{rank}-of-{processes}.safetensors"


def lambda_file(file: str) -> str:
    """Where a layer's Λ is, beside its bases."""
    return f"{file.removesuffix('.safetensors')}.lambda.safetensors"


def module_to_json(module: TrackedModule, leader: str) -> dict[str, Any]:
    blocks = [[block.start, block.stop, block.role, block.head] for block in module.blocks]
    shape = {"d_in": module.d_in, "d_out": module.d_out, "bias": module.bias}
    uses = [[use.path, use.kind, use.key] for use in module.uses]
    bases = {"row_basis": module.row_basis, "column_basis": module.column_basis}
    return {"name": module.name, "path": module.path, "input": leader, **shape, "blocks": blocks, "uses": uses, **bases}


def _module_from_json(entry: Mapping[str, Any]) -> TrackedModule:
    fields = {key: entry[key] for key in ("name", "path", "d_in", "d_out", "bias", "row_basis", "column_basis")}
    blocks, uses = (Block(*block) for block in entry["blocks"]), (Use(*use) for use in entry["uses"])
    return TrackedModule(**fields, blocks=tuple(blocks), uses=tuple(uses))


def _factors_from(tensors: Mapping[str, Tensor], name: str, leader: str) -> ModuleFactors:
    return ModuleFactors(
        Q_A=tensors.get(f"{leader}:Q_A"),
        Q_G=tensors.get(f"{name}:Q_G"),
        S_A=tensors[f"{leader}:S_A"],
        S_G=tensors[f"{name}:S_G"],
        Lambda=tensors.get(f"{name}:Lambda"),
    )
