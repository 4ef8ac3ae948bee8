"""Baked vectors: ψ(z) = W φ(z) / ‖W φ(z)‖ beside the raw features of an index, for an R that no query takes part in.

index/NAME/baked-R/baked.json                 of which R they are, and which shards are done, rewritten after each
index/NAME/baked-R/P-of-N.00000.safetensors   ψ as features are stored: gradients (n, D), norms (n,), scales (n, blocks)

A cosine of corrected features is then one product of vectors that stay the same, which is what faiss can search.
R of "train" changes when documents join: vectors of the R before are stale, are not used, and are baked again.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from msif.atomic import write_json
from msif.curvature.store import save_tensors
from msif.errors import MsifError
from msif.index.correction import Correction, RSettings, correction_of
from msif.index.storage import GradientIndex, Shard, encoded
from msif.progress import progress

log = logging.getLogger(__name__)

# R that does not depend on queries
BAKED = ("none", "train")
FILE = "baked.json"


def bake(index: GradientIndex, r: str = "train") -> GradientIndex:
    """Writes ψ of all documents; shards that are done, of the same R, are kept.

    Args:
        r: "none" or "train".

    Returns:
        the baked vectors, in the places of their documents.

    Raises:
        MsifError: another R, no document to take R from, or a disk that is full; shards before it are kept.
    """
    if r not in BAKED:
        raise MsifError(f"R '{r}' cannot be baked, for it depends on the queries: give none or train.")
    if not len(index):
        raise MsifError(f"the index in {index.path} holds no document to bake: build it on some.")
    correction = correction_of(index, RSettings(r), torch.zeros(0, index.width))
    baked, identity = index.beside(baked_folder(index, r)), _identity(index, correction)
    done = {shard.name for shard in _done(baked, identity) if _is_whole(baked, shard)}
    todo = [shard for shard in index.shards if shard.name not in done]
    if done:
        log.info("%d of %d shards are baked", len(done), len(index.shards))
    with progress(desc="baking", unit="doc", total=sum(shard.rows for shard in todo)) as bar:
        for shard in todo:
            if not done:  # what was there is of another R: from here on nothing of it counts
                write_json(baked.path / FILE, {**identity, "shards": {}})
            parts: list[dict[str, Tensor]] = []
            for own, features in index.shard(shard).chunks():
                unit = _unit(correction.apply(features))
                parts.append(encoded(unit, index.columns, index.settings.dtype))
                bar.update(len(own))
            tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            save_tensors(baked.path / f"{shard.name}.safetensors", tensors)
            done.add(shard.name)
            rows = {one.name: one.rows for one in index.shards if one.name in done}
            write_json(baked.path / FILE, {**identity, "shards": rows})
    return baked


def baked_vectors(index: GradientIndex, r: RSettings, correction: Correction) -> GradientIndex | None:
    """ψ of all documents by this very W; None where they were not baked, not all of them, or by another R.

    Raises:
        MsifError: a file of them is missing or damaged.
    """
    if r not in [RSettings(kind) for kind in BAKED]:  # another W of an equal R would not go with theirs
        return None
    baked = index.beside(baked_folder(index, r.kind))
    if not (baked.path / FILE).is_file():
        return None
    if len(_done(baked, _identity(index, correction))) < len(index.shards):
        log.info("%s is of fewer documents or another R, and is not used: bake it again", baked.path)
        return None
    for shard in baked.shards:
        baked.check(shard)
    return baked


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features, dim=1, eps=torch.finfo(features.dtype).tiny)


def baked_folder(index: GradientIndex, kind: str) -> Path:
    return index.path / f"baked-{kind}"


def _identity(index: GradientIndex, correction: Correction) -> dict[str, Any]:
    """What must be equal for vectors to be the same, as JSON; R of documents that join is another."""
    R = None
    if correction.roots is not None:
        R = {"documents": len(index), "trace": f"{correction.trace:.6e}"}
    return {"kind": "baked", "run": index.manifest["run"], "R": R}


def _done(baked: GradientIndex, identity: dict[str, Any]) -> list[Shard]:
    """The shards that were baked and are of this identity."""
    try:
        said = json.loads((baked.path / FILE).read_text(encoding="utf-8"))
        rows = dict(said.pop("shards"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []  # they are made again
    return [shard for shard in baked.shards if rows.get(shard.name) == shard.rows] if said == identity else []


def _is_whole(baked: GradientIndex, shard: Shard) -> bool:
    try:
        baked.check(shard)
    except MsifError:
        return False
    return True
