"""The parts of parameter blocks as a table of layers and kinds of maps."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from msif.models.names import layer_of

NAMED = 5  # the strongest blocks


def kind_and_layer(block: str) -> tuple[str, int | None]:
    """ "layers.2.attention.query_key_value:k5" -> ("attention k", 2), "h.3.mlp.c_fc" -> ("mlp.c_fc", 3)."""
    module, _, label = block.partition(":")
    parts = module.split(".")
    parent = [part for part in parts[-2:-1] if not part.isdigit()]
    role = re.sub(r"\d+$", "", label)
    return (" ".join([*parent, role]) if role else ".".join([*parent, parts[-1]])), layer_of(module)


def kinds_and_layers(blocks: Mapping[str, float]) -> tuple[list[str], list[int | None]]:
    """The rows of the table, the maps of one module together, and its columns; what is in no layer goes first."""
    places = [kind_and_layer(name) for name in blocks]
    kinds = sorted({kind for kind, _ in places}, key=_in_order)
    layers = sorted({layer for _, layer in places}, key=lambda layer: -1 if layer is None else layer)
    return kinds, layers


def _in_order(kind: str) -> tuple[str, int, str]:
    """The maps of one module together, its q, k and v first."""
    parent = re.split(r"[ .]", kind)[0]
    return parent, "qkv".find(kind[-1]) if " " in kind else 3, kind


def cells(
    blocks: Mapping[str, float], kinds: list[str], layers: list[int | None], unit: float
) -> list[list[float | None]]:
    """Parts in ``unit``, a row for each kind and a column for each layer; heads of one role are added up."""
    sums: dict[tuple[str, int | None], float] = {}
    for name, part in blocks.items():
        place = kind_and_layer(name)
        sums[place] = sums.get(place, 0.0) + part
    return [[_whole(sums.get((kind, layer)), unit) for layer in layers] for kind in kinds]


def strongest_blocks(blocks: Mapping[str, float], unit: float) -> list[Any]:
    """(name, part) of the strongest, in ``unit``."""
    ordered = sorted(blocks.items(), key=lambda block: -abs(block[1]))[:NAMED]
    return [[name, _whole(part, unit)] for name, part in ordered]


def _whole(part: float | None, unit: float) -> int | None:
    return None if part is None or not math.isfinite(part / unit) else round(part / unit)
