"""Which parameter of a model each number in an optimizer's state belongs to.

An optimizer numbers its parameters and forgets their names. What is left is their order within each group, and their
shapes. A frozen parameter has no number, so that a group is a part of what it would be if all were trained.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

WRAPPERS = re.compile(r"(^|\.)(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")


class Misfit(Exception):
    """Why an optimizer cannot have trained a model."""


class Unclear(Exception):
    """It can, but of several sets of parameters it is not clear which."""


@dataclass(frozen=True)
class Numbered:
    """A parameter as an optimizer knows it: its group, its number, and shape and name where these are kept."""

    group: int
    number: Any
    shape: torch.Size | None
    name: str | None = None


Placed = dict[str, Numbered | None]
Order = list[tuple[Sequence[Numbered], list[str]]]  # numbered parameters, and the names that they are a part of


def match_parameters(groups: Sequence[Sequence[Numbered]], model: nn.Module, wanted: Collection[str]) -> Placed:
    """Name -> what the optimizer has of each wanted parameter; None of one that was frozen.

    Raises:
        Misfit: no order that is known fits the model.
        Unclear: several do, and say different things of what is wanted.
    """
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    numbered = [one for group in groups for one in group]
    if all(one.name for one in numbered):
        return _by_name(numbered, shapes, wanted)
    if len(numbered) > len(shapes):
        raise Misfit(f"{len(numbered)} parameters where the model has {len(shapes)}")
    foreign = {one.shape for one in numbered if one.shape is not None}.difference(shapes.values())
    if foreign:
        raise Misfit(f"a parameter of shape {tuple(min(foreign))}, which none of the model has")
    fits: list[Placed] = []
    for order in _orders(groups, model, list(shapes)):
        matches = [_placed(ones, names, shapes, wanted) for ones, names in order]
        if None not in matches:
            fits.append({name: one for match in matches if match for name, one in match.items()})
    if not fits:
        raise Misfit("the shapes of its parameters are in no order of the model's that is known")
    if any(placed != fits[0] or UNSURE in placed.values() for placed in fits):
        raise Unclear(f"{len(numbered)} of the model's {len(shapes)} parameters")
    return fits[0]


UNSURE = Numbered(-1, None, None)


def _by_name(numbered: Sequence[Numbered], shapes: Mapping[str, torch.Size], wanted: Collection[str]) -> Placed:
    named = {WRAPPERS.sub("", one.name or "").lstrip("."): one for one in numbered}
    for name, one in named.items():
        if name not in shapes or one.shape not in (None, shapes[name]):
            raise Misfit(f"it has a parameter {name}, which the model has not" + (" in that shape" * (name in shapes)))
    return {name: named.get(name) for name in wanted}


def _placed(
    ones: Sequence[Numbered], names: Sequence[str], shapes: Mapping[str, torch.Size], wanted: Collection[str]
) -> Placed | None:
    """The wanted of these names, if the numbered parameters are a part of them in this order; None if they are not.

    A parameter that may be at one place only is there, and a name that none may be at was frozen.
    """
    first = _earliest(ones, [shapes[name] for name in names])
    backwards = _earliest(ones[::-1], [shapes[name] for name in reversed(names)])
    if first is None or backwards is None:
        return None
    last = [len(names) - 1 - place for place in reversed(backwards)]
    placed: Placed = {name: None for name in names if name in wanted}
    for one, low, high in zip(ones, first, last, strict=True):
        for name in names[low : high + 1]:
            if name in placed and one.shape in (None, shapes[name]):
                placed[name] = one if low == high else UNSURE
    return placed


def _earliest(ones: Sequence[Numbered], shapes: Sequence[torch.Size]) -> list[int] | None:
    """The first places, in order, that parameters of these shapes can have."""
    places: list[int] = []
    for one in ones:
        start = places[-1] + 1 if places else 0
        place = next((i for i in range(start, len(shapes)) if one.shape in (None, shapes[i])), None)
        if place is None:
            return None
        places.append(place)
    return places


def _orders(groups: Sequence[Sequence[Numbered]], model: nn.Module, names: list[str]) -> Iterator[Order]:
    """In which optimizers get parameters: group after group, forwards or backwards; those with weight decay and those
    without, as by the Trainer; both of each layer."""
    for ordered in {tuple(map(tuple, groups)), tuple(map(tuple, reversed(groups)))}:
        yield [([one for group in ordered for one in group], names)]
    for decayed in _decayed(model):
        if len(groups) == 2:
            yield from (list(zip(both, _split(names, decayed), strict=True)) for both in (groups, groups[::-1]))
        elif len(groups) % 2 == 0 and sum(map(len, groups)) == len(names):
            pairs = [groups[place : place + 2] for place in range(0, len(groups), 2)]
            for forwards, decayed_first in ((True, True), (True, False), (False, True), (False, False)):
                yield _layers(pairs if forwards else pairs[::-1], names, decayed, decayed_first)


def _layers(
    pairs: Sequence[Sequence[Sequence[Numbered]]], names: list[str], decayed: Collection[str], decayed_first: bool
) -> Order:
    order: Order = []
    start = 0
    for pair in pairs:
        stop = start + sum(map(len, pair))
        order += zip(pair, _split(names[start:stop], decayed)[:: 1 if decayed_first else -1], strict=True)
        start = stop
    return order


def _split(names: list[str], decayed: Collection[str]) -> list[list[str]]:
    return [[name for name in names if (name in decayed) == inside] for inside in (True, False)]


def _decayed(model: nn.Module) -> list[frozenset[str]]:
    """The parameters with weight decay: by the Trainer's rule today, its earlier ones, and those of common scripts."""
    from transformers.trainer_pt_utils import get_parameter_names

    today = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    parameters = dict(model.named_parameters())
    norms = [nn.LayerNorm, *{type(module) for module in model.modules() if "RMSNorm" in type(module).__name__}]
    rules = [
        get_parameter_names(model, [nn.LayerNorm], today),
        [name for name in get_parameter_names(model, [nn.LayerNorm]) if "bias" not in name],
        [name for name in get_parameter_names(model, norms) if "bias" not in name],
        [name for name, parameter in parameters.items() if parameter.dim() > 1],
        [name for name in parameters if not re.search(r"bias|LayerNorm\.weight|layer_norm\.weight", name)],
    ]
    return list(dict.fromkeys(frozenset(rule).intersection(parameters) for rule in rules))
