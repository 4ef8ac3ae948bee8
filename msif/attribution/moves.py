"""Models that a displacement moves, which have all else in common with those that they were moved from."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

from torch import nn

from msif.attribution.gradients import Side
from msif.curvature.vectors import Vectors
from msif.models.blocks import moved_parameters


def moved_side(side: Side, change: Vectors) -> Side:
    """A side of a model of its own with W̄ + change of each module in the place of W̄, and all else in common."""
    (own,) = apart(side)
    move(own, change)
    return own


def apart(*sides: Side) -> list[Side]:
    """Sides of models of their own, which have all tensors in common with these until they are moved."""
    models = {id(side.model): _sharing(side.model) for side in sides}
    return [replace(side, model=models[id(side.model)]) for side in sides]


def move(side: Side, change: Vectors) -> None:
    """W̄ + change of each module in the place of W̄, wherever the model has it."""
    moved = [pair for module in side.tracked for pair in moved_parameters(side.model, module, change[module.name])]
    new = {id(own): value for own, value in moved}
    for module in side.model.modules():
        for key, own in module._parameters.items():
            module._parameters[key] = new.get(id(own), own)


def of_half(displacements: Vectors, number: int) -> Vectors:
    """The displacement of one half, module name -> (d_out, d), of those of all, (K, d_out, d)."""
    return {name: V[number] for name, V in displacements.items()}


def _sharing(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model, {id(t): t for t in itertools.chain(model.parameters(), model.buffers())})
