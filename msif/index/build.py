"""Building an index: one pass over documents, whose features are written shard by shard."""

from __future__ import annotations

import json
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msif import distributed
from msif.atomic import missing_folders
from msif.attribution.features import GradientProjector
from msif.attribution.gradients import Side
from msif.curvature.store import save_tensors
from msif.data.batching import TokenBatches, spread
from msif.data.ids import written_ids
from msif.errors import MsifError
from msif.index.plan import Plan, digest_of
from msif.index.rounding import SAMPLE, rounding_error
from msif.index.scaling import ESTIMATED_FROM, estimate_moments
from msif.index.settings import MOMENTS
from msif.index.storage import MOMENTS_FILE, GradientIndex, encoded, read_manifest
from msif.index.writing import ShardWriter, known_hashes, open_or_create, remove_if_nothing_done, settle
from msif.models.training.files import TrainingUnknown
from msif.models.training.moments import SecondMoments, second_moments, to_tensors
from msif.progress import progress

log = logging.getLogger(__name__)

SHARD_BYTES = 2**28


@dataclass(frozen=True)
class Share:
    """Which documents a process takes: by their content, about every ``of``-th; numbers count from 0."""

    number: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of:
            raise MsifError(f"--shard {self.number + 1}/{self.of} is none: give I/N with I from 1 to N.")

    def takes(self, digest: bytes) -> bool:
        """Whatever is there already, so that processes need not know of each other."""
        return int.from_bytes(digest[:8], "little") % self.of == self.number


def build_index(
    plan: Plan,
    batches: TokenBatches,
    path: str | Path,
    *,
    identity: dict[str, Any],
    provenance: dict[str, Any] | None = None,
    share: Share | None = None,
    checkpoint_every: float = 600.0,
    shard_bytes: int = SHARD_BYTES,
) -> GradientIndex | None:
    """The index of these documents, made, gone on with, or added to; None where other processes are not done.

    Documents that are there, by their content, are skipped. A shard is whole or not there; what interrupts the pass,
    but a kill, writes what is done.

    Args:
        identity: of the model, its tokenizer and how documents are read, beside the plan's own.
        checkpoint_every: a shard is closed after so many seconds at most.

    Raises:
        MsifError: the folder holds an index of other settings or something else, or cannot be written to.
    """
    path, share = Path(path), share or Share(distributed.rank(), distributed.processes())
    if distributed.active() and share.of != distributed.processes():
        raise MsifError("torchrun's processes take shares of their own: leave --shard out.")
    fresh = {
        "provenance": {**(provenance or {}), "shares": share.of},
        "columns": [[one.start, one.stop] for one in plan.columns],
        "blocks": list(plan.pools.names),
    }
    made = missing_folders(path)
    is_new = distributed.same(lambda: open_or_create(path, {**plan.identity, **identity}, fresh))
    if plan.moments is not None and distributed.leads() and not (path / MOMENTS_FILE).is_file():
        save_tensors(path / MOMENTS_FILE, plan.moment_tensors())
    builder = _Builder(plan, batches, ShardWriter(path, share.number, share.of), share, checkpoint_every, shard_bytes)
    try:
        builder.run()
    except BaseException:
        if is_new and share.of == 1:
            remove_if_nothing_done(path, made)
        raise
    if builder.others and not distributed.active() and builder.others - known_hashes(path):
        return None  # other shares were complete before these documents came
    distributed.wait()
    if distributed.leads():
        settle(path, share.of)
    distributed.wait()
    try:
        return GradientIndex.open(path)
    except MsifError:
        if share.of > 1:
            return None
        raise


@dataclass
class _Builder:
    plan: Plan
    batches: TokenBatches
    writer: ShardWriter
    share: Share
    every: float
    shard_bytes: int
    held: list[dict[str, Tensor]] = field(default_factory=list)
    documents: dict[str, list[Any]] = field(default_factory=dict)
    sample: list[Tensor] = field(default_factory=list)
    others: set[bytes] = field(default_factory=set)  # documents that other shares have still to take

    def run(self) -> None:
        rows, hashes = self._new()
        said = f"; {len(self.writer.known)} are there" if self.writer.known else ""
        log.info("%d documents to index%s", len(rows), said)
        todo = replace(self.batches, indices=rows)
        self.hashes, self.done = hashes, set[int]()
        self.ids = dict(zip(rows, written_ids(self.batches.corpus.ids(rows)), strict=True))
        if rows:
            try:
                self._pass(todo)
            except BaseException:
                with suppress(MsifError):
                    self._flush()
                raise
            self._flush()
        self.writer.skipped |= {hashes[row] for row in rows if row not in self.done}
        self.writer.save(complete=True)

    def _new(self) -> tuple[list[int], dict[int, bytes]]:
        """Rows of this process that are not indexed, and their hashes; of equal ones the first."""
        seen, rows, hashes = set(self.writer.known), [], {}
        for row, digest in self.batches.corpus.hashes(self.batches.format.columns):
            if digest not in seen and self.share.takes(digest):
                hashes[row] = digest
                rows.append(row)
            elif digest not in seen:
                self.others.add(digest)
            seen.add(digest)
        return rows, hashes

    def _pass(self, todo: TokenBatches) -> None:
        plan, started = self.plan, time.monotonic()
        with (
            GradientProjector(plan.side, plan.features, [plan.cotangent]) as project,
            progress(desc="indexing", unit="doc", total=len(todo.indices or ())) as bar,
        ):
            for batch in todo:
                features = project(batch)[0].float().cpu()
                self._take(batch, features)
                bar.update(len(batch))
                full = sum(part["gradients"].nbytes for part in self.held) >= self.shard_bytes
                if full or time.monotonic() - started >= self.every:
                    self._flush()
                    started = time.monotonic()

    def _take(self, batch: Any, features: Tensor) -> None:
        stored = encoded(features, self.plan.columns, self.plan.settings.dtype)
        if self.writer.rounding is None and sum(map(len, self.sample)) < SAMPLE:
            self.sample.append(features)
        rows = batch.indices.tolist()
        taken = {
            "hash": [self.hashes[row] for row in rows],
            "row": rows,
            "id": [json.dumps(self.ids[row]) for row in rows],
            "source": [self.batches.corpus.name] * len(rows),
            "tokens": self.plan.side.objective.supervised_counts(batch).tolist(),
        }
        self.held.append(stored)
        for name, values in taken.items():
            self.documents.setdefault(name, []).extend(values)

    def _flush(self) -> None:
        """Writes what is held, as a shard."""
        if not self.held:
            return
        held, documents = self.held, self.documents
        self.held, self.documents = [], {}
        if self.sample and self.plan.settings.dtype != "float32":
            sample, self.sample = torch.cat(self.sample), []
            stored = encoded(sample, self.plan.columns, self.plan.settings.dtype)
            self.writer.rounding = rounding_error(sample, stored, self.plan.columns)
        tensors = {name: torch.cat([part[name] for part in held]) for name in held[0]}
        self.writer.write(tensors, documents)
        self.done.update(documents["row"])


def moments_for(
    kind: str, side: Side, folder: str | Path, batches: TokenBatches, index: Path
) -> tuple[dict[str, SecondMoments] | None, str]:
    """V of a new index, or of one that is there; and where it is from.

    Args:
        kind: "none"; "optimizer", "adam" or "adafactor": the state beside the model; "estimate", from the documents;
            "auto": the state where there is one of use; or the name of a folder or file, see ``second_moments``.
        folder: of the model.

    Raises:
        MsifError: there is no state where it was asked for, it does not fit the model, or the index that is there was
            built with another V.
    """
    if (index / "manifest.json").is_file():
        _check_asked(kind, side, folder, index)
    if kind == "none":
        return None, "none"
    if (index / MOMENTS_FILE).is_file():
        return second_moments(index / MOMENTS_FILE, side.model, side.tracked), "the index"
    if kind != "estimate":
        try:
            return _state(kind, side, folder)
        except TrainingUnknown as error:
            if kind != "auto":
                raise
            log.info("second moments are estimated from the documents, for %s", error.reason)
    return distributed.same(lambda: estimate_moments(side, spread(batches, ESTIMATED_FROM))), "estimate"


def _check_asked(kind: str, side: Side, folder: str | Path, index: Path) -> None:
    """Documents join under the V that is there only where it is what was asked for; "auto" asks for any."""
    manifest = read_manifest(index)
    run, source = manifest["run"], manifest["provenance"].get("moments")
    if run["curvature"] is not None or (kind == "auto" and run["moments"] is not None):
        return
    if run["moments"] is None or kind in ("none", "estimate"):
        is_same = kind == (source if run["moments"] is not None else "none")
    else:
        tensors = to_tensors(side.model, side.tracked, _state(kind, side, folder)[0])
        is_same = digest_of(tensors) == run["moments"]
    if not is_same:
        built = "none" if run["moments"] is None else source
        raise MsifError(
            f"the index in {index} was built with second moments from '{built}', and --second-moments {kind} are "
            "others: give those, or choose another --output."
        )


def _state(kind: str, side: Side, folder: str | Path) -> tuple[dict[str, SecondMoments], str]:
    """V of an optimizer's state beside the model, or in a named folder or file."""
    if kind not in MOMENTS:
        return second_moments(kind, side.model, side.tracked), kind
    found = second_moments(folder, side.model, side.tracked)
    is_factored = any(isinstance(one.weight, tuple) for one in found.values())
    if kind in ("adam", "adafactor") and is_factored != (kind == "adafactor"):
        raise MsifError(f"the optimizer's state is not of {kind}: give --second-moments optimizer.")
    return found, str(folder)
