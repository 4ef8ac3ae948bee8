"""Influence at models nearby: the mean over models that one step moves towards trainings on random halves of the data.

A linear datamodel's weight of a document is what it changes on average over trainings on random halves of the others
(docs/method.md). Where nobody trains on halves, such a training is foretold: without the sequences outside S the
parameters are about

    θ_S = θ + δ_S,    δ_S = (H + 1/τ)⁻¹ (step · (1/N) Σ_{z ∉ S} ∇L(z; θ) + (1/τ) ξ)

with N the supervised tokens of all. ξ is noise of other first weights (``msif.attribution.first_weights``). Fine-tuning
is taken to keep the displacement, so its model is moved by the same δ_S.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msif.attribution.composite import CompositeScorer, PartVectors
from msif.attribution.cost import Cost
from msif.attribution.damping import AUTO, Damping, Tau
from msif.attribution.first_weights import bearable_noise, pulls_of_noise
from msif.attribution.gradients import Side
from msif.attribution.inverses import IHVP
from msif.attribution.moves import move, of_half
from msif.attribution.scorers import InfluenceScorer
from msif.attribution.trust import shorten, tell_far, tell_lost
from msif.curvature.factors import Factors
from msif.curvature.mean_gradient import mean_gradients
from msif.curvature.preconditioners import consume
from msif.curvature.vectors import Vectors
from msif.draws import generator
from msif.errors import MsifError
from msif.models.blocks import stored
from msif.models.sharding import held_bytes

log = logging.getLogger(__name__)

HALVES_STREAM = 9
STEP = 0.3
"""Of the damped one; a whole one overshoots, for the loss is no quadratic (docs/nearby.md)."""


@dataclass(frozen=True)
class Halves:
    """Which halves, and how far towards them.

    Attributes:
        count: of halves, every two of which share out all sequences; 1 is one model in the middle of all halves, moved
            by the mean of what moves these, half of the step of all sequences.
        step: of the way that the damped curvature foretells. "auto" is ``STEP``, or less where the loss of the moved
            models shows that they do not bear it (``shorten``), as where the data are few of a training's.
        seed: of the halves, and of noise.
        noise: of first weights, in standard deviations of each module's weights; with a step of 0 nothing else moves.
            "auto" is 1, or less where a deep model would not bear it; see ``bearable_noise``.

    Raises:
        MsifError: no even count nor 1, a step or noise below 0 or none of both, or a seed below 0.
    """

    count: int = 4
    step: float | str = AUTO
    seed: int = 0
    noise: float | str = 0.0

    def __post_init__(self) -> None:
        whole = all(isinstance(n, Integral) and not isinstance(n, bool) for n in (self.count, self.seed))
        if not whole or self.seed < 0:
            raise MsifError(f"halves are {self.count!r} of seed {self.seed!r}: give integers, and a seed of 0 or more.")
        if self.count != 1 and (self.count < 2 or self.count % 2):
            raise MsifError(f"there are {self.count} halves: they come in twos, so give 2, 4 ... (or 1, their middle).")
        moved = [1.0 if by == AUTO else by for by in (self.step, self.noise)]
        if any(isinstance(by, str) or not 0 <= by < math.inf for by in moved) or not any(moved):
            raise MsifError(
                f"the step towards halves is {self.step}, and noise {self.noise}: give a step above 0, such as 0.3, or "
                "noise alone, such as 0:1."
            )

    def __str__(self) -> str:
        """As ``as_halves`` reads it."""
        numbers = [self.step, self.noise] if self.noise else [self.step]
        return ":".join([str(self.count), *(by if isinstance(by, str) else f"{by:g}" for by in numbers)])

    def told(self) -> dict[str, float | str]:
        """As records have it; those without noise are as they were before there was any."""
        return {key: value for key, value in asdict(self).items() if key != "noise" or value}

    def left_out(self, indices: Tensor) -> Tensor:
        """Whether each of B sequences is outside each half, bool (K, B), by its row number alone; all are of one."""
        if self.count == 1:
            return torch.ones(1, len(indices), dtype=torch.bool)
        draws = [generator(self.seed, HALVES_STREAM, number=row).random(self.count // 2) for row in indices.tolist()]
        first = torch.from_numpy(np.stack(draws, axis=1) < 0.5)
        return torch.stack([first, ~first], dim=1).flatten(0, 1)


def as_halves(given: Halves | int | str) -> Halves:
    """
    Args:
        given: halves, their count K, or "K", "K:STEP" or "K:STEP:NOISE", of which STEP and NOISE may be "auto".

    Raises:
        MsifError: it is something else; see ``Halves``.
    """
    if isinstance(given, Halves):
        return given
    count, *numbers = str(given).split(":")
    usual = [str(Halves.step), str(Halves.noise)]
    try:
        step, noise = [by if by == AUTO else float(by) for by in [*numbers, *usual[len(numbers) :]]]
        return Halves(int(count), step, noise=noise)
    except ValueError:
        raise MsifError(
            f"halves are '{given}': write how many, such as 4, or 4:0.5 with the step towards them, or 4:0.5:1 or "
            "4:0.5:auto with noise of first weights."
        ) from None


def foretold(
    side: Side, factors: Factors, tau: Tau, batches: Iterable[Any], halves: Halves, ihvp: IHVP | None = None
) -> Vectors:
    """δ_S of each half: module name -> (K, d_out, d).

    Args:
        side: of the first stage, as are factors, τ and data.
        ihvp: how (H + 1/τ)⁻¹ is applied; EK-FAC by default.

    Raises:
        MsifError: see ``mean_gradients``, and ``IHVP.build``.
    """
    noise = bearable_noise(side, factors, tau) if isinstance(halves.noise, str) else halves.noise
    step, shortened = (STEP, True) if isinstance(halves.step, str) else (halves.step, False)
    drawn = pulls_of_noise(side, tau, noise, halves.count, halves.seed) if noise else ()
    pulls: Vectors = {}
    if step:
        pulls = mean_gradients(side.model, side.tracked, side.objective, batches, halves.left_out, halves.count)
        for pull in pulls.values():
            pull *= step / (2 if halves.count == 1 else 1)
    if not shortened:  # one solve is for both
        for name, pull in drawn:
            pulls[name] = pulls[name].add_(pull) if step else pull
    inverse = (ihvp or IHVP()).build(side, factors, Damping("auto").first(tau), batches)
    found = consume(inverse, pulls)
    if shortened:
        shorten(side, batches, found)
    if shortened and noise:
        for name, own in consume(inverse, dict(drawn)).items():
            found[name] += own
    shorter = str(replace(halves, step=float(f"{step / 10:.1g}")))
    log.info("halves %s: weights are moved by %.2g of their norm", halves, tell_far(side, noise, found, shorter))
    return found


class HalvesScorer(CompositeScorer):
    """I(z → q) = (1/K) Σ_S ∇m(q; θ_K + δ_S)ᵀ P_K ⋯ P_1 ∇L(z; θ_1 + δ_S), with EK-FAC of the models themselves; a solver
    solves at the moved models.

    Costs a pass over the stage's data, but for noise alone, and K times the passes over candidates of one model; K
    copies of the weights of the modules that count are in memory.

    Args:
        parts: of each half, on models of its own (``apart``).
        displacements: gives δ_S of each half, module name -> (K, d_out, d), when models are moved; see ``foretold``.
        last: the last model as it is.
    """

    def __init__(self, parts: Sequence[InfluenceScorer], displacements: Callable[[], Vectors], last: Side) -> None:
        self.displacements, self.last = displacements, last
        self.moved = False
        super().__init__(parts, 1 / len(parts))

    def move(self, displacements: Vectors) -> None:
        """Each part's models by its own."""
        assert not self.moved, "models are moved once"
        self.moved = True
        for number, part in enumerate(self.parts):
            sides = {id(side.model): side for side in (part.query_side, part.candidate_side)}
            for side in sides.values():
                move(side, of_half(displacements, number))

    def query_vectors(self, queries: Iterable[Any]) -> PartVectors:
        self._moved()
        batches = list(queries)
        tell_lost([part.query_side for part in self.parts], self.last, batches)
        return super().query_vectors(batches)

    def self_influence(self, documents: Iterable[Any]) -> Tensor:
        """The mean over halves, see ``SelfScorer``."""
        self._moved()
        batches = list(documents)
        return torch.stack([part.self_influence(batches) for part in self.parts]).mean(0)

    def cost(self) -> Cost:
        sides = {id(side.model): side for side in (self.query_side, self.candidate_side)}.values()
        moved = [p for side in sides for module in side.tracked for p in stored(side.model, module) if p is not None]
        return replace(super().cost(), copied=len(self.parts) * sum(map(held_bytes, moved)))

    def _moved(self) -> None:
        if not self.moved:
            self.move(self.displacements())
