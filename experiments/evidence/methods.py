"""Influence with τ of the optimizer's state, and with τ of the evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.common.evidence import by_evidence
from experiments.common.methods import Method
from experiments.retraining.members import Member
from msif.attribution.damping import Damping
from msif.attribution.scorers import Scorer
from msif.attribution.stages import build_scorer

STATE, EVIDENCE, NOTHING = "the optimizer's state", "the evidence", "nothing, α = 0"
TWO, USUAL = "multi-stage", Damping(alpha="auto")


@dataclass(frozen=True)
class Told:
    """
    Attributes:
        family: of methods that differ in what tells τ; of the first it is the optimizer's state.
    """

    family: str
    by: str
    method: Method

    @property
    def cells(self) -> Sequence[Any]:
        return [self.by]


def one_stage() -> list[Told]:
    """Of the pre-trained model."""
    return [
        *_family("single-stage", "EK-FAC, λ = 1/τ", Damping("auto")),
        *_family("single-stage", "EK-FAC, λ = 0.1 mean, 4 halves", Damping(), halves=4),
    ]


def two_stages() -> list[Told]:
    """Of both."""
    usual = "multi-stage EK-FAC, λ = 0.1 mean, α = 1/τ"
    none = Method(f"{usual}, {NOTHING}", scorer=_scorer(TWO, Damping(alpha=0.0), STATE))
    return [
        *_family(TWO, usual, USUAL),
        Told(usual, NOTHING, none),
        *_family(TWO, f"{usual}, 4 halves", USUAL, halves=4),
        *_family(TWO, "multi-stage EK-FAC, λ = 1/τ, α = 1/τ", Damping("auto")),
        *_family("source", "multi-stage EK-FAC, SOURCE filters", None),
    ]


def _family(method: str, name: str, damping: Damping | None, **options: Any) -> Iterator[Told]:
    for by in (STATE, EVIDENCE):
        yield Told(name, by, Method(f"{name}, {by}", scorer=_scorer(method, damping, by, **options)))


def _scorer(method: str, damping: Damping | None, by: str, **options: Any) -> Callable[[Member], Scorer]:
    def scorer(m: Member) -> Scorer:
        first, last = m.pretrained.stage, None if method == "single-stage" else m.finetuned.stage
        if by == EVIDENCE:
            first, last = by_evidence(first), last and by_evidence(last, first)
        return build_scorer(method, first, last, damping, **options)

    return scorer
