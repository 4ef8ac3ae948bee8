"""An index of a stage's documents: what ``msif.make_index`` and the command ``msif.build_index`` do."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from msif.attribution.cost import feature_work
from msif.attribution.gradients import Side
from msif.attribution.stages import check_factors
from msif.curvature.estimate import human_bytes, human_seconds
from msif.curvature.filters import DampedInverse
from msif.curvature.probe import measure
from msif.curvature.residency import weight_bytes
from msif.curvature.store import FactorStore
from msif.data.encoding import fingerprint_tokenizer
from msif.data.format import check_rows
from msif.data.sample import foretell
from msif.errors import MsifError, refuse_empty
from msif.index.build import SHARD_BYTES, Share, build_index, moments_for
from msif.index.plan import Plan, plan_of
from msif.index.pools import indexed_modules
from msif.index.settings import DTYPES, MOMENTS, IndexSettings
from msif.index.storage import GradientIndex, read_manifest, read_parts
from msif.models.blocks import TrackedModule
from msif.models.training.files import TrainingUnknown
from msif.models.training.moments import second_moments as moments_of
from msif.provenance import versions
from msif.stage import Stage

log = logging.getLogger(__name__)


def make_index(
    stage: Stage,
    output: str | Path,
    settings: IndexSettings | None = None,
    *,
    second_moments: str = "auto",
    factors: str | Path | None = None,
    damping: float | None = None,
    damping_scale: float = 0.1,
    share: Share | None = None,
    checkpoint_every: float = 600.0,
) -> GradientIndex | None:
    """Computes the features of a stage's documents and keeps them in a folder; goes on with what is there.

    Args:
        stage: a model, and as its ``data`` the documents; ``modules`` is "everything" where nothing is said, which here
            leaves out the embedding of tokens.
        second_moments: what gradients are divided by the roots of, see ``moments_for``; not with factors.
        factors: of the same model: the index is of H^(−1/2) ∇L, for multi-stage influence.
        damping, damping_scale: λ of H, see ``DampedInverse``.
        share: the documents that this process takes, of several.

    Returns:
        the index, or None where other processes have still to add their share.

    Raises:
        MsifError: the first thing found wrong; see ``build_index``.
    """
    refuse_empty(output=output, factors=factors)
    settings, path = settings or IndexSettings(basis=usual_basis(factors)), Path(output)
    check_share(path, share)
    loaded = stage.loaded
    batches = stage.batches
    check_rows(batches.corpus, stage.format)
    store = None if factors is None else FactorStore.open(factors)
    if store is not None and second_moments not in ("auto", "none"):
        raise MsifError("an index of H^(−1/2) ∇ takes no second moments: leave --second-moments or --factors out.")
    tracked = _tracked(stage, settings, store)
    side = Side(loaded.model, tracked, stage.objective)
    identity = {
        "model": stage.identity["model"],
        "task": stage.task,
        "tokenizer": fingerprint_tokenizer(loaded.tokenizer),
        "max_length": stage.max_length,
    }
    source = "none"
    if store is None:
        _ = Plan(side, settings)  # says what is wrong with the settings before second moments are estimated
        moments, source = moments_for(second_moments, side, loaded.name, batches, path)
        plan = Plan(side, settings, moments)
    else:
        plan = Plan(side, settings, store=store, damping=DampedInverse(damping, damping_scale))
    provenance: dict[str, Any] = {**stage.named, "device": stage.device, "moments": source, "versions": versions()}
    return build_index(
        plan,
        batches,
        path,
        identity=identity,
        provenance=provenance,
        share=share,
        checkpoint_every=checkpoint_every,
    )


def check_share(path: Path, share: Share | None) -> None:
    """Shares of two splits would take some documents twice.

    Raises:
        MsifError: the folder holds a part of an index whose other shares are not there, and this is none of them.
    """
    if share is None or share.of == 1 or not (path / "manifest.json").is_file():
        return
    parts = read_parts(path)
    unfinished = {of for _, of in parts if not all(parts.get((n, of), {}).get("complete") for n in range(of))}
    if not parts:  # the first share is at work
        unfinished = {read_manifest(path)["provenance"].get("shares", 1)}
    others = sorted(unfinished - {1})
    if others and share.of not in others:
        raise MsifError(
            f"the index in {path} is being made in {others[0]} shares, not in {share.of}: give --shard I/{others[0]} "
            "for those that are missing, or leave --shard out, which finishes it alone."
        )


def usual_basis(factors: str | Path | None) -> str:
    """By retraining, leading entries keep far more of a score than random projections (docs/counterfactual.md)."""
    return "random" if factors is None else "leading"


def describe_index(
    stage: Stage,
    settings: IndexSettings,
    *,
    second_moments: str = "auto",
    factors: str | Path | None = None,
    bakes: bool = False,
) -> str:
    """Sizes and time of a build, from a sample of its documents and one small batch of them.

    Args:
        bakes: whether baked vectors, of the same size, are written too.
    """
    loaded, batches = stage.loaded, stage.batches
    tracked = _tracked(stage, settings, None if factors is None else FactorStore.open(factors))
    side = Side(loaded.model, tracked, stage.objective)
    plan, sample = Plan(side, replace(settings, basis="random")), foretell(batches)
    whole = factors is not None or _are_whole(second_moments, side, loaded.name)
    width = plan.features.width(tracked)
    speed = measure(loaded.model, tracked, side.objective, sample, {"documents": side.objective.loss_gradient})
    seconds = speed.passes(sample, "documents") + sample.reading
    seconds += speed.over(sample, lambda B, T: feature_work(tracked, settings.projection, B, T, whole))
    more = ", and as much again for baked vectors" if bakes else ""
    held = sample.documents * width * DTYPES[settings.dtype].itemsize
    parameters = sum(module.d_out * module.shape[1] for module in tracked)
    return "\n".join(
        [
            f"features    {width} of {len(plan.pools.names)} blocks",
            f"modules     {len(tracked)}, of {parameters:,} parameters",
            f"on disk     {human_bytes(held)} for {sample.documents:.0f} documents{more}",
            f"memory      about {human_bytes(weight_bytes([loaded.model]) + SHARD_BYTES)} (weights, and a shard)",
            f"time        about {human_seconds(seconds)}",
        ]
    )


def _are_whole(kind: str, side: Side, folder: str) -> bool:
    """Whether each gradient is scaled by a matrix of its own, not by rows and columns."""
    if kind in ("none", "estimate"):
        return False
    try:
        found = moments_of(folder if kind in MOMENTS else kind, side.model, side.tracked)
    except TrainingUnknown:
        if kind != "auto":
            raise
        return False
    return any(not isinstance(one.weight, tuple) for one in found.values())


def _tracked(stage: Stage, settings: IndexSettings, store: FactorStore | None) -> list[TrackedModule]:
    if store is None:
        return indexed_modules(stage.loaded.model, stage.modules or "everything", settings.tied)
    return check_factors(store, stage.loaded)


def opened_plan(index: GradientIndex, stage: Stage, factors: str | Path | None = None) -> Plan:
    """The plan of an index for the model of a stage, after a check that it was made for this very model.

    Raises:
        MsifError: another model, tokenizer, or other factors.
    """
    run, loaded = index.manifest["run"], stage.loaded
    if run["model"] != stage.identity["model"]:
        source = index.manifest["provenance"].get("model", "another model")
        raise MsifError(
            f"the index in {index.path} was built with another model ({source}) than {loaded.name}, or its weights "
            "have changed since: give that model, or build an index for this one."
        )
    if run["tokenizer"] != fingerprint_tokenizer(loaded.tokenizer):
        raise MsifError(f"the index in {index.path} was built with another tokenizer than {loaded.name} has now.")
    store = None if factors is None else FactorStore.open(factors)
    tracked = _tracked(stage, index.settings, store)
    return plan_of(index, Side(loaded.model, tracked, stage.objective), store)
