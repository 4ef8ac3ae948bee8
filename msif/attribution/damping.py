"""λ of the stages and α of the last one: numbers, or multiples of the natural scale of a stage's training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

from torch import Tensor

from msif.curvature.filters import DampedInverse, Scale
from msif.errors import MsifError

Tau = Mapping[str, Tensor]
"""Module name -> τ of each block, (nb,); see ``msif.natural_tau``."""


LARGEST = 1e12
_TOO_LARGE = (
    f"so large that scores would be those of the dot product, or underflow: give at most {LARGEST:g}, or use gdp"
)


AUTO, EVIDENCE = "auto", "evidence"
"""Names of 1/τ: as files tell it or else the evidence; and as the evidence tells it."""


def times_natural(text: str) -> tuple[str, float]:
    """A name of 1/τ, and X of "NAME:X", which stands for X/τ; 1 of the name alone.

    Raises:
        MsifError: another text, or an X that is not above 0 or far too large.
    """
    kind, colon, number = text.partition(":")
    try:
        times = float(number) if colon else 1.0
    except ValueError:
        times = math.nan
    if kind in (AUTO, EVIDENCE) and times > LARGEST:
        raise MsifError(f"'{text}' is {_TOO_LARGE}.")
    if kind not in (AUTO, EVIDENCE) or not 0 < times < math.inf:
        raise MsifError(
            f"'{text}' is no damping: write a number of 0 or more, auto or evidence for 1/τ, or auto:X with X above 0 "
            "for X/τ."
        )
    return kind, times


@dataclass(frozen=True)
class Damping:
    """λ of the stages and α of the last one (docs/method.md).

    Attributes:
        damping: λ, absolute, for every stage; "auto": 1/τ in the first stage, and none beside a positive α in the last;
            "auto:X": X times that. "evidence" and "evidence:X" are the same with a τ that no file has a say in.
        damping_scale: λ relative to the mean of a block's Λ, where no damping is given.
        alpha: pull of fine-tuning towards the pre-trained parameters; "auto" is 1/τ of the fine-tuning stage, "auto:X"
            X times that, and likewise "evidence". None is zero, but as damping where that is a text: here, unlike on
            the command line, no training is looked for unasked.

    Raises:
        MsifError: a value that is none of these, or so large that scores underflow.
    """

    damping: float | str | None = None
    damping_scale: float = 0.1
    alpha: float | str | None = None

    def __post_init__(self) -> None:
        for name, optional in (("damping", True), ("damping_scale", False), ("alpha", True)):
            value = getattr(self, name)
            if optional and isinstance(value, str):
                times_natural(value)
            elif value is None and optional:
                continue
            elif isinstance(value, (str, bool)) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
                kinds = "a number of 0 or more" + (", 'auto', 'evidence', 'auto:X' or None" if optional else "")
                raise MsifError(f"{name} is {value!r}: give {kinds}.")
            elif float(value) > LARGEST:
                raise MsifError(f"{name} is {value!r}, {_TOO_LARGE}.")

    @property
    def is_natural(self) -> bool:
        """Whether λ is a multiple of 1/τ."""
        return isinstance(self.damping, str)

    def first(self, tau: Tau | None) -> DampedInverse:
        """The filter of a stage that starts from nothing, whose training has this τ."""
        return DampedInverse(None if self.damping is None else _scale(self.damping, tau), self.damping_scale)

    def later(self, tau: Tau | None) -> DampedInverse:
        """The filter of a stage that starts from another's parameters."""
        if not isinstance(self.damping, str):
            return DampedInverse(self.damping, self.damping_scale, _scale(self.alpha or 0.0, tau))
        # once: as α, or where α is given as zero as λ
        if self.alpha == 0:
            return DampedInverse(_scale(self.damping, tau))
        return DampedInverse(0.0, alpha=_scale(self.damping if self.alpha is None else self.alpha, tau))

    def pull(self, tau: Tau | None) -> Scale | None:
        """α of an adapter's parameters; of λ the hop of an adapter has none."""
        return None if self.alpha is None else _scale(self.alpha, tau)

    def scale_of(self, later: bool) -> str | None:
        """By which name a stage's τ must be known, "auto" or "evidence"; None where no τ is read."""
        read = self.alpha if later and (self.alpha or not self.is_natural) else self.damping
        return times_natural(read)[0] if isinstance(read, str) else None


def _scale(value: float | str, tau: Tau | None) -> Scale:
    """X/τ of every block, or the number itself."""
    if not isinstance(value, str):
        return value
    if tau is None:
        raise MsifError(f"damping '{value}' needs τ of the stage's training: give --learning-rate-sum, or a number.")
    _, times = times_natural(value)
    return {name: times / each for name, each in tau.items()}
