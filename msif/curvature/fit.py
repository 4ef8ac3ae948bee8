"""Fitting EK-FAC factors: covariance pass, eigenvectors, Λ pass; resumable after a kill at any moment."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from msif import distributed
from msif.atomic import missing_folders
from msif.curvature.convergence import Convergence
from msif.curvature.covariance import CovariancePass
from msif.curvature.eigenvalues import LambdaPass
from msif.curvature.factors import held
from msif.curvature.inputs import device_and_dtype, probe_inputs, those_that_run
from msif.curvature.residency import Residency, room_beside
from msif.curvature.store import (
    FactorStore,
    checkpoint_file,
    files_of,
    load_metadata,
    load_tensors,
    open_or_create,
    remove_if_nothing_done,
    save_tensors,
)
from msif.curvature.sums import RunningSums
from msif.data.documents import batches_identity
from msif.errors import MsifError
from msif.models.blocks import TrackedModule
from msif.models.capture import Cotangent
from msif.models.check import CheckedCapture, check_once
from msif.models.fingerprint import fingerprint_config, fingerprint_weights
from msif.models.objectives import Objective, generators_for
from msif.progress import progress

log = logging.getLogger(__name__)

NAMED = {"sequences": "sequences", "positions": "live positions", "supervised": "supervised tokens"}


@dataclass(frozen=True)
class FitSettings:
    """How factors are fitted.

    Attributes:
        fisher: "sampled" draws labels from the model (the GGN); "empirical" takes the data's own.
        label_samples: label draws a sequence and pass.
        seed: of the label draws; the same seed gives the same factors.
    """

    fisher: Literal["sampled", "empirical"] = "sampled"
    label_samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.fisher not in ("sampled", "empirical"):
            raise MsifError(f"fisher is '{self.fisher}': choose 'sampled' or 'empirical'.")
        if self.label_samples < 1 or (self.fisher == "empirical" and self.label_samples > 1):
            raise MsifError("label samples must be 1 or more, and 1 with the empirical Fisher, which draws none.")

    def cotangents(self, objective: Objective, stream: int) -> list[Cotangent]:
        """One gradient with respect to the outputs for each label draw of a pass."""
        if self.fisher == "empirical":
            return [objective.loss_gradient]

        def draw(number: int) -> Cotangent:
            def cotangent(outputs: Tensor, batch: Any) -> Tensor:
                generators = generators_for(self.seed, stream, batch.indices, number)
                return objective.sampled_loss_gradient(outputs, batch, generators)

            return cotangent

        return [draw(number) for number in range(self.label_samples)]


def fit(
    model: nn.Module,
    tracked: Sequence[TrackedModule],
    objective: Objective,
    batches: Iterable[Any],
    output: str | Path,
    settings: FitSettings | None = None,
    *,
    identity: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    checkpoint_every: float = 600.0,
    memory: int | None = None,
) -> FactorStore:
    """Fits EK-FAC factors of a model over a dataset into a folder (George et al. 2018; Grosse et al. 2023).

    Two passes over ``batches``, which must give the same batches each time it is iterated over; more of either where
    not all sums, or all factors, fit into memory at once, with the same result. A run that was interrupted resumes
    from its last checkpoint when called again, and ends with the same result.

    Args:
        output: the folder; a finished one with the same settings is returned as it is.
        identity: what must be equal for two runs to be one, beside the settings; stored. "model" and "data" are
            filled in where they are not given: fingerprints of the weights and of the batches (an ``identity()`` of
            theirs, or a hash of their tensors).
        provenance: what is worth knowing (names, versions); stored, never compared.
        checkpoint_every: seconds between checkpoints within a pass.
        memory: bytes of the device that the fit may take, with the model; by default most of what is free.

    Raises:
        MsifError: the folder holds other things or other settings, there is no data, no supervised token in it, or it
            is not the same the second time, NaN or infinity appears, or one layer alone does not fit into memory.
    """
    settings = settings or FitSettings()
    path = Path(output)
    if iter(batches) is batches:
        raise MsifError("the data is gone over twice: give a list of batches or a TokenBatches, not an iterator.")
    first = next(iter(batches), None)
    if first is None:
        raise MsifError("there is no data to fit on: the dataset gives no batch.")
    device, dtype = device_and_dtype(model)
    groups, outputs = probe_inputs(model, tracked, objective, first.to(device))
    tracked = those_that_run(tracked, groups)
    room = room_beside([model], outputs, memory)
    run = {**(identity or {}), "settings": asdict(settings), "compute_dtype": str(dtype).removeprefix("torch.")}
    if "model" not in run:
        run["model"] = {"config": fingerprint_config(model), "weights": fingerprint_weights(model)}
    if "data" not in run:
        run["data"] = distributed.same(lambda: batches_identity(batches))
    found = {**(provenance or {}), "processes": distributed.processes()}
    made = missing_folders(path)
    manifest = distributed.same(lambda: open_or_create(path, run, tracked, groups, found).manifest)
    store = FactorStore(path, manifest)
    if not all(store.manifest["parts"].values()):
        store.manifest["provenance"]["processes"] = distributed.processes()
    residency = Residency(tracked, store.groups, objective.live(first).numel(), dtype.itemsize)
    fit = _Fit(model, tracked, objective, batches, settings, store, checkpoint_every, room, residency)
    parts = store.manifest["parts"]
    try:
        for part in (part for part in parts if not parts[part]):
            fit.residents(part)  # what does not fit is told first
        if not all(parts.values()):
            check_once(model, tracked, objective, first.to(device))  # of all layers, not of a group as it comes
        if not parts["eigenvectors"]:
            fit.eigenvectors()
        if not parts["lambda"]:
            fit.eigenvalues()
    except BaseException:
        remove_if_nothing_done(store, made)
        raise
    fit.remove_checkpoint()
    return FactorStore.open(path)


@dataclass
class _Fit:
    """The steps of one fit over one store."""

    model: nn.Module
    tracked: Sequence[TrackedModule]
    objective: Objective
    batches: Iterable[Any]
    settings: FitSettings
    store: FactorStore
    checkpoint_every: float
    room: int
    residency: Residency

    def eigenvectors(self) -> None:
        device, dtype = device_and_dtype(self.model)
        samples, leaders = self.settings.label_samples, self.store.groups
        groups = self.residents("eigenvectors")
        for number, files in enumerate(groups, start=1):
            modules = self._modules(files)
            covariances = CovariancePass(modules, _of(leaders, modules), device, dtype, samples)
            mine = self._run(_Pass("covariance", number, len(groups), files, modules), covariances)
            for file in progress(mine, desc="eigenvectors", unit="layer"):
                if not self.store.has_bases(file):
                    self.store.save_bases(file, covariances.decompose(self._names(file)))
            self.remove_checkpoint()
        self._finish("eigenvectors")

    def eigenvalues(self) -> None:
        device, dtype = device_and_dtype(self.model)
        groups = self.residents("lambda")
        for number, files in enumerate(groups, start=1):
            modules = self._modules(files)
            factors = held(self.store.load_all([module.name for module in modules]), device, dtype)
            leaders, samples = _of(self.store.groups, modules), self.settings.label_samples
            moments = LambdaPass(modules, leaders, factors, device, dtype, samples)
            mine = self._run(_Pass("lambda", number, len(groups), files, modules), moments)
            for file in mine:
                self.store.save_lambda(file, {name: moments.Lambda(name) for name in self._names(file)})
            self.remove_checkpoint()
        self._finish("lambda")

    def residents(self, part: str) -> list[list[str]]:
        """The files that are still to be made, in groups that fit; a pass that was interrupted keeps its group.

        Raises:
            MsifError: one of them alone does not fit.
        """
        return distributed.same(lambda: self._residents(part))

    def _residents(self, part: str) -> list[list[str]]:
        done = self.store.has_bases if part == "eigenvectors" else self.store.has_lambda
        under_way = self._under_way("covariance" if part == "eigenvectors" else "lambda")
        if all(map(done, under_way)):
            under_way = []
        left = {f: n for f, n in files_of(self.store.groups).items() if f not in under_way and not done(f)}
        groups = self.residency.partition(left, part, self.room)
        return [under_way, *groups] if under_way else groups

    def _names(self, file: str) -> list[str]:
        return files_of(self.store.groups)[file]

    def _modules(self, files: Sequence[str]) -> list[TrackedModule]:
        names = {name for file in files for name in self._names(file)}
        return [module for module in self.tracked if module.name in names]

    def _finish(self, part: str) -> None:
        self.store.manifest["parts"][part] = True
        self._save_manifest()

    def _save_manifest(self) -> None:
        if distributed.leads():
            self.store.save_manifest()
        distributed.wait()

    def remove_checkpoint(self) -> None:
        """This process's own, when all have made what is theirs from the sums."""
        distributed.wait()
        self._checkpoint.unlink(missing_ok=True)

    @property
    def _checkpoint(self) -> Path:
        return self.store.path / checkpoint_file(distributed.rank(), distributed.processes())

    def _run(self, step: _Pass, consumer: RunningSums) -> list[str]:
        """Sends all batches through a pass, from its last checkpoint on; leaves a checkpoint that holds all of it.

        Processes share the batches. Each then holds the sums of the files that are its own, which are returned.
        """
        convergence = Convergence()
        done = self._load_checkpoint(step, consumer, convergence)
        cotangents = self.settings.cotangents(self.objective, consumer.stream)
        device, _ = device_and_dtype(self.model)
        bar = progress(desc=step.title, unit="seq", initial=consumer.counts["sequences"], total=self._total())
        last = time.monotonic()
        with CheckedCapture(self.model, step.modules, consumer) as capture, bar:
            for number, batch, mine in distributed.own_batches(self.batches, done):
                if not mine:
                    capture.accompany(self.objective, batch.to(device), cotangents)
                    continue
                convergence.observe(number, consumer.counts["sequences"], consumer.estimates)
                capture.run(self.objective, batch.to(device), cotangents)
                done += 1
                bar.update(len(batch))
                if time.monotonic() - last >= self.checkpoint_every:
                    self._save_checkpoint(step, consumer, convergence, done)
                    last = time.monotonic()
        self._save_checkpoint(step, consumer, convergence, done)
        changes = convergence.changes(consumer.counts["sequences"], consumer.estimates())
        files = {file: self._names(file) for file in step.files}
        part = "eigenvectors" if step.part == "covariance" else "lambda"
        owners, _ = self.residency.owners(files, part, distributed.processes())
        consumer.add_up({name: owners[file] for file, names in files.items() for name in names})
        self._check_counts(consumer.counts)
        self.store.manifest["convergence"].update(changes)
        self.store.manifest["counts"].update(consumer.counts)
        self._save_manifest()
        return [file for file in step.files if owners[file] == distributed.rank()]

    def _check_counts(self, counts: Mapping[str, int]) -> None:
        """Before a pass is believed: it must have read something, and what the first one read."""
        if counts["supervised"] == 0:
            self._checkpoint.unlink(missing_ok=True)
            raise MsifError(
                "the data has no supervised token to take the curvature over: give documents of two tokens or more, "
                "or prompts with completions."
            )
        first = self.store.manifest["counts"]
        odd = [name for name in counts if name in first and first[name] != counts[name]]
        if odd:
            self._checkpoint.unlink(missing_ok=True)  # its sums are over other data
            raise MsifError(
                f"the data gave {first[odd[0]]} {NAMED[odd[0]]} in the first pass and {counts[odd[0]]} in a later one: "
                "give batches that are the same each time they are gone over."
            )

    def _total(self) -> int | None:
        """About as many sequences as this process takes."""
        return distributed.own_count(getattr(self.batches, "size", None))

    def _save_checkpoint(self, step: _Pass, consumer: RunningSums, convergence: Convergence, done: int) -> None:
        snapshots, counts = convergence.state()
        metadata = {"part": step.part, "files": json.dumps(step.files), "batches": str(done)}
        metadata |= {"counts": json.dumps(consumer.counts), "snapshots": counts}
        save_tensors(self._checkpoint, {**consumer.state(), **snapshots}, metadata)

    def _under_way(self, part: str) -> list[str]:
        """The files of an interrupted pass of as many processes; what others left is of no use, and goes."""
        found: list[str] = []
        kept = {checkpoint_file(rank, distributed.processes()) for rank in range(distributed.processes())}
        for path in [self.store.path / checkpoint_file(), *self.store.path.glob(checkpoint_file("*", "*"))]:
            if path.name not in kept:
                path.unlink(missing_ok=True)
                continue
            metadata = load_metadata(path) if path.exists() else {}
            if metadata.get("part") == part:
                found = json.loads(metadata["files"])
        return found

    def _load_checkpoint(self, step: _Pass, consumer: RunningSums, convergence: Convergence) -> int:
        if not self._checkpoint.exists():
            return 0
        tensors, metadata = load_tensors(self._checkpoint)
        # a kill may come after the end of a group or part, and before its checkpoint was removed
        if metadata.get("part") != step.part or json.loads(metadata["files"]) != step.files:
            return 0
        consumer.load_state(tensors)
        consumer.counts.update(json.loads(metadata["counts"]))
        convergence.load_state(tensors, metadata["snapshots"])
        log.info("resuming the %s pass after %s batches", step.part, metadata["batches"])
        return int(metadata["batches"])


@dataclass(frozen=True)
class _Pass:
    """One pass over the data: which of how many, and what it makes."""

    part: str
    number: int
    passes: int
    files: list[str]
    modules: list[TrackedModule]

    @property
    def title(self) -> str:
        return f"{self.part} pass" + (f" {self.number}/{self.passes}" if self.passes > 1 else "")


def _of(leaders: Mapping[str, str], modules: Sequence[TrackedModule]) -> dict[str, str]:
    return {module.name: leaders[module.name] for module in modules}
