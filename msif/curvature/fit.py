"""Fitting EK-FAC factors: covariance pass, eigenvectors, Λ pass; resumable after a kill at any moment."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from tqdm import tqdm

from msif.curvature.convergence import Convergence
from msif.curvature.covariance import CovariancePass
from msif.curvature.eigenvalues import LambdaPass
from msif.curvature.factors import held
from msif.curvature.inputs import check_all_run, device_and_dtype, find_input_groups
from msif.curvature.store import (
    FactorStore,
    files_of,
    load_tensors,
    open_or_create,
    remove_if_nothing_done,
    save_tensors,
)
from msif.curvature.sums import RunningSums
from msif.data.documents import batches_after, batches_identity
from msif.errors import MsifError
from msif.models.blocks import TrackedModule
from msif.models.capture import Capture, Cotangent
from msif.models.fingerprint import fingerprint_config, fingerprint_weights
from msif.models.objectives import Objective, generators_for

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
) -> FactorStore:
    """Fits EK-FAC factors of a model over a dataset into a folder (George et al. 2018; Grosse et al. 2023).

    Two passes over ``batches``, which must give the same batches each time it is iterated over. A run that was
    interrupted resumes from its last checkpoint when called again, and ends with the same result.

    Args:
        output: the folder; a finished one with the same settings is returned as it is.
        identity: what must be equal for two runs to be one, beside the settings; stored. "model" and "data" are
            filled in where they are not given: fingerprints of the weights and of the batches (an ``identity()`` of
            theirs, or a hash of their tensors).
        provenance: what is worth knowing (names, versions); stored, never compared.
        checkpoint_every: seconds between checkpoints within a pass.

    Raises:
        MsifError: the folder holds other things or other settings, there is no data or it is not the same the second
            time, or NaN or infinity appears.
    """
    settings = settings or FitSettings()
    path = Path(output)
    if iter(batches) is batches:
        raise MsifError("the data is gone over twice: give a list of batches or a TokenBatches, not an iterator.")
    first = next(iter(batches), None)
    if first is None:
        raise MsifError("there is no data to fit on: the dataset gives no batch.")
    device, dtype = device_and_dtype(model)
    groups = find_input_groups(model, tracked, objective, first.to(device))
    check_all_run(tracked, groups)
    run = {**(identity or {}), "settings": asdict(settings), "compute_dtype": str(dtype).removeprefix("torch.")}
    if "model" not in run:
        run["model"] = {"config": fingerprint_config(model), "weights": fingerprint_weights(model)}
    if "data" not in run:
        run["data"] = batches_identity(batches)
    store = open_or_create(path, run, tracked, groups, provenance or {})
    fit = _Fit(model, tracked, objective, batches, settings, store, checkpoint_every)
    parts = store.manifest["parts"]
    try:
        if not parts["eigenvectors"]:
            fit.eigenvectors()
        if not parts["lambda"]:
            fit.eigenvalues()
    except BaseException:
        remove_if_nothing_done(store)
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

    def eigenvectors(self) -> None:
        device, dtype = device_and_dtype(self.model)
        samples = self.settings.label_samples
        covariances = CovariancePass(self.tracked, self.store.groups, device, dtype, samples)
        self._run("covariance", covariances)
        files = files_of(self.store.groups)
        for file, names in tqdm(files.items(), desc="eigenvectors", unit="layer", disable=None):
            if not (self.store.path / file).exists():
                self.store.save_layer(file, covariances.decompose(names))
        self._finish("eigenvectors")

    def eigenvalues(self) -> None:
        device, dtype = device_and_dtype(self.model)
        factors = held(self.store.load_all(), device, dtype)
        second_moments = LambdaPass(
            self.tracked, self.store.groups, factors, device, dtype, self.settings.label_samples
        )
        self._run("lambda", second_moments)
        for file, names in files_of(self.store.groups).items():
            complete = {name: replace(factors[name], Lambda=second_moments.Lambda(name)) for name in names}
            self.store.save_layer(file, complete)
        self._finish("lambda")

    def _finish(self, part: str) -> None:
        self.store.manifest["parts"][part] = True
        self.store.save_manifest()
        self.remove_checkpoint()

    def remove_checkpoint(self) -> None:
        (self.store.path / "checkpoint.safetensors").unlink(missing_ok=True)

    def _run(self, part: str, consumer: RunningSums) -> None:
        """Sends all batches through a pass, from its last checkpoint on; leaves a checkpoint that holds all of it."""
        convergence = Convergence()
        done = self._load_checkpoint(part, consumer, convergence)
        cotangents = self.settings.cotangents(self.objective, consumer.stream)
        device, _ = device_and_dtype(self.model)
        progress = tqdm(
            desc=f"{part} pass", unit="seq", initial=consumer.counts["sequences"], total=self._total(), disable=None
        )
        last = time.monotonic()
        with Capture(self.model, self.tracked, consumer) as capture, progress:
            for batch in batches_after(self.batches, done):
                capture.run(self.objective, batch.to(device), cotangents)
                done += 1
                progress.update(len(batch))
                convergence.observe(consumer.counts["sequences"], consumer.estimates)
                if time.monotonic() - last >= self.checkpoint_every:
                    self._save_checkpoint(part, consumer, convergence, done)
                    last = time.monotonic()
        if part == "lambda":
            self._check_counts(consumer.counts)
        self._save_checkpoint(part, consumer, convergence, done)
        changes = convergence.changes(consumer.counts["sequences"], consumer.estimates())
        self.store.manifest["convergence"].update(changes)
        self.store.manifest["counts"].update(consumer.counts)
        if part == "covariance":
            self.store.manifest["parts"]["covariance"] = True
        self.store.save_manifest()

    def _check_counts(self, counts: Mapping[str, int]) -> None:
        """Before the Λ pass is believed: it must have read what the covariance pass read."""
        first = self.store.manifest["counts"]
        odd = [name for name in counts if name in first and first[name] != counts[name]]
        if odd:
            self.remove_checkpoint()  # its sums are over other data
            raise MsifError(
                f"the data gave {first[odd[0]]} {NAMED[odd[0]]} in the covariance pass and {counts[odd[0]]} in the Λ "
                "pass: give batches that are the same each time they are gone over."
            )

    def _total(self) -> int | None:
        return getattr(self.batches, "size", None)

    def _save_checkpoint(self, part: str, consumer: RunningSums, convergence: Convergence, done: int) -> None:
        snapshots, counts = convergence.state()
        metadata = {"part": part, "batches": str(done), "counts": json.dumps(consumer.counts), "snapshots": counts}
        save_tensors(self.store.path / "checkpoint.safetensors", {**consumer.state(), **snapshots}, metadata)

    def _load_checkpoint(self, part: str, consumer: RunningSums, convergence: Convergence) -> int:
        path = self.store.path / "checkpoint.safetensors"
        if not path.exists():
            return 0
        tensors, metadata = load_tensors(path)
        if metadata.get("part") != part:  # the kill came after a part's end and before its checkpoint was removed
            return 0
        consumer.load_state(tensors)
        consumer.counts.update(json.loads(metadata["counts"]))
        convergence.load_state(tensors, metadata["snapshots"])
        log.info("resuming the %s pass after %s batches", part, metadata["batches"])
        return int(metadata["batches"])
