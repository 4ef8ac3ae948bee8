"""Influence at the models themselves, and averaged over models that a step moves towards trainings on halves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from experiments.common.methods import Method
from experiments.retraining.methods import UNIT, staged
from experiments.retraining.refitted import with_own_factors
from experiments.retraining.study import REFERENCE
from msif.attribution.damping import Damping
from msif.attribution.halves import Halves

ONE, TWO = "single-stage", "multi-stage"
STEP = 0.3
USUAL = Halves(4, STEP)
REFITTED = Halves(4, 1.0)
"""Where each half's model has factors of its own; a whole step is then the best of .3, 1, 2."""
NOISE, BOTH = Halves(4, 0.0, noise=1.0), Halves(4, STEP, noise=1.0)
SWEEP = (
    *(Halves(count, STEP) for count in (1, 2, 4, 8, 16)),
    *(Halves(4, step) for step in (0.1, 0.5, 1.0)),
    *(NOISE, Halves(4, STEP, noise=0.5), BOTH, Halves(1, 0.0, noise=1.0), Halves(1, STEP, noise=1.0)),
)
"""Of the defaults: numbers at the usual step, then other steps, and noise of first weights, alone and beside a step."""
REFITS = (REFITTED, NOISE, BOTH, Halves(4, 1.0, noise=1.0), Halves(8, 1.0, noise=1.0))
"""Of the defaults: also moved by noise of first weights, alone and beside the step."""


def with_halves(name: str, halves: Halves = USUAL) -> str:
    return f"{name}, halves {halves}"


def with_factors(name: str, halves: Halves = REFITTED) -> str:
    return f"{with_halves(name, halves)}, own factors"


REMOVED = (
    *(REFERENCE, with_halves(REFERENCE), with_halves(REFERENCE, BOTH), with_halves(UNIT)),
    *(with_factors(REFERENCE, halves) for halves in (BOTH, REFITS[-1])),
)
"""Methods whose top documents are left out."""


@dataclass(frozen=True)
class Near:
    """
    Attributes:
        family: of methods that differ by halves alone; the first of them has none.
        halves: None asks the models themselves.
        own_factors: whether curvature is that of the moved models.
    """

    family: str
    halves: Halves | None
    method: Method
    own_factors: bool = False

    @property
    def cells(self) -> list[Any]:
        """Number and step, with what stands beside it."""
        if self.halves is None:
            return [None, None]
        noise = f", noise {self.halves.noise:g}" if self.halves.noise else ""
        return [self.halves.count, f"{self.halves.step:g}{noise}" + ", own factors" * self.own_factors]


def one_stage() -> list[Near]:
    """Of the pre-trained model."""
    return [
        *_family(ONE, "EK-FAC, damping 0.1 mean", Damping(), SWEEP, refits=REFITS),
        *_family(ONE, "EK-FAC, unit documents", Damping(), refits=(REFITTED,), normalize="unit"),
        *_family(ONE, "EK-FAC, damping 1/τ", Damping("auto")),
    ]


def two_stages() -> list[Near]:
    """Of both."""
    usual, pulled = Damping(alpha="auto"), Damping(damping_scale=1.0, alpha="auto:10")
    return [
        *_family(TWO, REFERENCE, usual, SWEEP, refits=REFITS),
        *_family(TWO, UNIT, usual, normalize="unit"),
        *_family(TWO, "multi-stage EK-FAC, λ = 1 mean, α = 10/τ", pulled),
        *_family(TWO, "multi-stage EK-FAC, prior bm25:0.5", usual, prior=0.5),
        *_family(
            TWO, "multi-stage EK-FAC, unit norm, prior bm25:0.5", usual, prior=0.5, refits=(REFITTED,), normalize="unit"
        ),
    ]


def _family(
    method: str,
    name: str,
    damping: Damping,
    sweep: tuple[Halves, ...] = (USUAL,),
    prior: float | None = None,
    refits: tuple[Halves, ...] = (),
    **options: Any,
) -> Iterator[Near]:
    for halves in (None, *sweep):
        near = {} if halves is None else {"halves": halves}
        scorer = staged(method, damping, **near, **options)
        shown = name if halves is None else with_halves(name, halves)
        settings = {} if halves is None else halves.told()
        yield Near(name, halves, Method(shown, scorer=scorer, prior=prior, settings=settings))
    for halves in refits:
        scorer = with_own_factors(method, damping, halves, **options)
        shown = with_factors(name, halves)
        yield Near(name, halves, Method(shown, scorer=scorer, prior=prior, settings=halves.told()), True)
