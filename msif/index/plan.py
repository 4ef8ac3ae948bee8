"""What decides a document's features: a model, its modules, their blocks, and how gradients are scaled."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from msif.attribution.gradients import Side
from msif.attribution.trak import document_cotangent
from msif.curvature.filters import DampedInverse
from msif.curvature.store import FactorStore, differences, module_to_json
from msif.errors import MsifError
from msif.index.features import IndexFeatures
from msif.index.pools import Pools, pools_of
from msif.index.settings import IndexSettings
from msif.index.storage import MOMENTS_FILE, GradientIndex
from msif.models.capture import Cotangent
from msif.models.training.moments import SecondMoments, second_moments, to_tensors


@dataclass(frozen=True)
class Plan:
    """
    Attributes:
        side: the documents' model, with the modules that are indexed, and its objective.
        moments: V by module; None where gradients are not scaled by them.
        store, damping: EK-FAC factors and the λ of H^(−1/2), for multi-stage influence.
    """

    side: Side
    settings: IndexSettings
    moments: Mapping[str, SecondMoments] | None = None
    store: FactorStore | None = None
    damping: DampedInverse | None = None

    def __post_init__(self) -> None:
        if self.settings.basis == "leading" and self.store is None:
            raise MsifError("leading entries are those of EK-FAC's eigenbasis: give --factors, or a random basis.")
        _ = self.cotangent  # says what the objective has not

    @cached_property
    def pools(self) -> Pools:
        return pools_of(self.side.model, self.side.tracked, self.settings.blocks)

    @cached_property
    def features(self) -> IndexFeatures:
        settings = self.settings
        width = len(self.pools.names) * settings.projection**2
        return IndexFeatures(
            self.pools,
            settings.projection,
            settings.seed,
            self.moments,
            self.store,
            self.damping or (DampedInverse() if self.store is not None else None),
            width if settings.basis == "leading" else None,
        )

    @property
    def cotangent(self) -> Cotangent:
        """What documents' gradients are of."""
        return document_cotangent(self.side.objective, self.settings.measurement, self.settings.weighting)

    @property
    def columns(self) -> list[slice]:
        return self.features.columns(self.side.tracked)

    def moment_tensors(self) -> dict[str, Tensor]:
        """V as a file of it holds it; empty where there is none."""
        return {} if self.moments is None else to_tensors(self.side.model, self.side.tracked, self.moments)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What must be equal for two plans to give the same features, beside model and data."""
        curvature = None
        if self.store is not None:
            damping = self.features.filter
            assert isinstance(damping, DampedInverse)
            curvature = {"factors": self.store.manifest["run"], "damping": _plain(damping.damping)}
            curvature |= {"damping_scale": damping.damping_scale}
        return {
            "settings": self.settings.to_json(),
            "modules": {module.name: module_to_json(module, module.name) for module in self.side.tracked},
            "moments": digest_of(self.moment_tensors()),
            "curvature": curvature,
        }


def plan_of(index: GradientIndex, side: Side, store: FactorStore | None = None) -> Plan:
    """The plan by which an index was made, for the same model, so that a query's features are like its documents'.

    Args:
        side: with all modules that the index has.
        store: the factors that it was made with, if it was.

    Raises:
        MsifError: another model's modules, or factors that are missing, others, or of no use.
    """
    run = index.manifest["run"]
    names = list(run["modules"])
    side = side.restricted(names)
    missing = set(names) - {module.name for module in side.tracked}
    if missing:
        raise MsifError(f"the index in {index.path} is of another model, which has a module '{min(missing)}'.")
    moments = second_moments(index.path / MOMENTS_FILE, side.model, side.tracked) if run["moments"] else None
    damping = None
    if run["curvature"]:
        if store is None:
            raise MsifError(f"the index in {index.path} was made with factors: give them with --pretrained-factors.")
        damping = DampedInverse(run["curvature"]["damping"], run["curvature"]["damping_scale"])
    elif store is not None:
        raise MsifError(
            f"the index in {index.path} was made without factors: build one with --factors for multi-stage influence."
        )
    plan = Plan(side, index.settings, moments, store, damping)
    for key, here, there in differences(plan.identity, {name: run[name] for name in plan.identity}):
        raise MsifError(
            f"the index in {index.path} was made for another model or other factors ({key} is {there!s:.60} there and "
            f"{here!s:.60} now): give those, or build it again."
        )
    return plan


def digest_of(tensors: Mapping[str, Tensor]) -> str | None:
    """By which V is known again; None of no V."""
    if not tensors:
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _plain(value: Any) -> float | None:
    if isinstance(value, Mapping):
        raise MsifError("an index takes a number for --damping: damping 'auto' is not kept in it.")
    return None if value is None else float(value)
