"""Blocks of an index: consecutive layers together, attention apart from the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from msif.errors import MsifError
from msif.models.blocks import TrackedModule
from msif.models.names import in_attention
from msif.models.select import decoder_layers, track_modules


@dataclass(frozen=True)
class Pools:
    """
    Attributes:
        names: of the blocks, in order.
        of: module name -> number of its block.
    """

    names: tuple[str, ...]
    of: dict[str, int]


def indexed_modules(model: nn.Module, modules: str, tied: bool) -> list[TrackedModule]:
    """What an index takes gradients of: with "everything" all parameters but the embedding of tokens.

    Heads are not split, for blocks of an index are groups of layers. An unembedding that is tied to the embedding takes
    part, with both of its uses, where ``tied`` says so, or where ``modules`` names it.

    Raises:
        MsifError: nothing is left; see ``track_modules``.
    """
    tracked = track_modules(model, modules, split_heads=False)
    if modules != "everything":
        return tracked
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    kept = [m for m in tracked if model.get_submodule(m.path) is not embedding or (tied and m.mixed)]
    if not kept:
        raise MsifError("nothing is left to index but the embedding of tokens: give --modules.")
    return kept


def pools_of(model: nn.Module, tracked: Sequence[TrackedModule], blocks: int) -> Pools:
    """As many groups of consecutive layers as asked, or as there are layers; two blocks each.

    What comes before the layers goes with the first group, what comes after with the last, both with its MLPs.
    """
    layers = layer_numbers(model, tracked)
    depth = max((number for number in layers.values() if number is not None), default=0) + 1
    count = min(blocks, depth)
    inside = False
    of: dict[str, int] = {}
    for module in tracked:
        number = layers[module.name]
        inside |= number is not None
        number = number if number is not None else depth - 1 if inside else 0
        of[module.name] = 2 * (number * count // depth) + (0 if in_attention(module.name) else 1)
    names = []
    for group in range(count):
        own = [number for number in range(depth) if number * count // depth == group]
        span = f"{own[0]}" if len(own) == 1 else f"{own[0]}-{own[-1]}"
        names += [f"layers {span} attention", f"layers {span} mlp"]
    return _without_empty(names, of)


def layer_numbers(model: nn.Module, tracked: Sequence[TrackedModule]) -> dict[str, int | None]:
    """The decoder layer of each module, from 0; None outside of them."""
    lists = decoder_layers(model)
    starts, total = {}, 0
    for path in lists:
        starts[path] = total
        total += len(model.get_submodule(path))  # type: ignore[arg-type]
    found: dict[str, int | None] = {}
    for module in tracked:
        found[module.name] = None
        for path, start in starts.items():
            if module.path.startswith(f"{path}."):
                found[module.name] = start + int(module.path[len(path) + 1 :].split(".")[0])
    return found


def _without_empty(names: Sequence[str], of: dict[str, int]) -> Pools:
    used = sorted(set(of.values()))
    places = {number: place for place, number in enumerate(used)}
    return Pools(tuple(names[number] for number in used), {name: places[number] for name, number in of.items()})
