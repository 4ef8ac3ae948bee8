"""How far a model may be moved before what a step foretells is worth nothing."""

from __future__ import annotations

import itertools
import logging
import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from msif.attribution.gradients import Side
from msif.attribution.moves import moved_side, of_half
from msif.curvature.inputs import device_and_dtype
from msif.curvature.vectors import Vectors, dot
from msif.models.blocks import matrix_of
from msif.models.capture import frozen
from msif.models.objectives.categorical import Categorical

log = logging.getLogger(__name__)

FARTHEST = 0.6
"""Of the weights' norm. The models of docs/nearby.md are moved by less than half of it, and the demo's by a third."""
BORNE = 0.3
"""Of the loss of a guess by chance. Models of docs/nearby.md and docs/fact-tracing.md lose at most half as much by the
usual step, as much by noise beside it, which serves them, and twice as much by steps that do not."""
SAMPLED, HALVINGS = 2, 12
"""Batches whose loss is looked at; how often a move is halved at most."""


def shorten(side: Side, batches: Iterable[Any], displacements: Vectors) -> None:
    """Halves the displacements, in place, until the first of the moved models loses at most ``BORNE`` more of the
    stage's data than the model itself; those of other halves lose about as much."""
    if not isinstance(side.objective, Categorical):
        return  # no loss is that of a guess
    sample = list(itertools.islice(batches, SAMPLED))
    own, chance = loss_and_chance(side, sample)

    def lost(halvings: int) -> float:
        change = {name: V * 2**-halvings for name, V in of_half(displacements, 0).items()}
        return loss_and_chance(moved_side(side, change), sample)[0]

    most = own + BORNE * chance
    if lost(0) <= most:  # not so of nan
        return
    borne = 1 + bisect_left(range(1, HALVINGS), True, key=lambda halvings: lost(halvings) <= most)
    for V in displacements.values():
        V *= 2**-borne
    log.warning(
        "models bear %.2g of the step towards halves: their loss is %.3g nats a token, and %.3g at the model itself; "
        "are these all the data of its training?",
        *(2**-borne, lost(0), own),
    )


def tell_far(side: Side, noise: float, displacements: Vectors, shorter: str) -> float:
    """The share of the weights' norm by which models are moved; warns where that is too far, or too little for dtype.

    Args:
        noise: how much of first weights' moves them; what is foretold of noise is at most as long as noise is.
        shorter: what to ask for instead.
    """
    weights = {module.name: matrix_of(side.model, module)[None] for module in side.tracked}
    share = float((dot(displacements, displacements).mean() / dot(weights, weights)[0]).sqrt())
    dtype = next(side.model.parameters()).dtype
    if share > math.hypot(FARTHEST, noise):
        log.warning("that is further than one step foretells: give a smaller one, such as %s", shorter)
    if share < torch.finfo(dtype).eps:
        wider = "use --dtype float32" if dtype.itemsize < 4 else "is τ of the training right (--learning-rate-sum)?"
        log.warning("weights of %s hold little of so small a move: %s", dtype, wider)
    return share


def tell_lost(moved: Sequence[Side], last: Side, queries: Sequence[Any]) -> None:
    """Whether models were moved so far that they know less of the answers than who guesses."""
    if not isinstance(last.objective, Categorical):
        return
    own, chance = loss_and_chance(last, queries)
    worst = max(loss_and_chance(side, queries)[0] for side in moved)
    if worst > max(chance, 2 * own):
        log.warning(
            "answers are less likely than by chance at the moved models: %.3g nats a token, %.3g by chance and %.3g at "
            "the model itself; give --halves a smaller step or less noise",
            *(worst, chance, own),
        )


def loss_and_chance(side: Side, batches: Sequence[Any]) -> tuple[float, float]:
    """Mean loss of a supervised prediction, in nats, and that of a uniform guess."""
    device, _ = device_and_dtype(side.model)
    total, count, classes = 0.0, 0, 1
    with frozen(side.model), torch.no_grad():
        for batch in (one.to(device) for one in batches):
            outputs = side.objective.outputs(side.model, batch)
            total += float(side.objective.losses(outputs, batch).sum())
            count += int(side.objective.supervised_counts(batch).sum())
            classes = outputs.shape[-1]
    return total / max(1, count), math.log(classes)
