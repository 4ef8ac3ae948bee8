"""Σ η of a training from the few learning rates that it left: by the schedule that they fit, or by lines between them.

A scheduler counts steps from 0: step k = 0, ..., N−1 is taken at rate(k). Schedules are those that
``transformers.get_scheduler`` makes for M ≥ N steps: peak · k/w within a warm-up of w steps, then peak · shape(k).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

EXACT, ROUGH = 1e-6, 1e-2  # how far a rate may be from a schedule, by the peak
LONG = 0.3  # of M: a longer warm-up is believed only of two rates within it
ENOUGH = 5  # rates for lines between them
MOST = 24  # rates that schedules are held against, and schedules that are summed

Shape = Callable[[np.ndarray, np.ndarray, int], np.ndarray]  # k (K), w (W, 1), M -> (W, K) for k ≥ w


@dataclass(frozen=True)
class Rates:
    """What is known of the learning rates of N steps.

    Attributes:
        steps: N.
        planned: M.
        logged: rate by the number of steps taken when it was logged, 1 to N. Today's Trainer logs the rate of the step
            that was just taken, earlier versions that of the next ("late").
        peak: where the schedule falls from.
        final: rate(N), of the step after the last.
    """

    steps: int
    planned: int
    logged: Mapping[int, float]
    peak: float | None = None
    final: float | None = None

    def points(self, late: bool) -> dict[int, float]:
        """k -> rate(k), ordered."""
        points = {step if late else step - 1: self.logged[step] for step in sorted(self.logged)}
        return points if self.final is None else {**points, self.steps: self.final}


@dataclass(frozen=True)
class RateSum:
    """Σ η, what it may be at least and at most, and what it rests on."""

    value: float
    low: float
    high: float
    basis: str


def by_schedule(rates: Rates, tolerance: float) -> RateSum | None:
    """Σ η of the simplest schedules that all rates are on, within a share of the peak; None if none is known.

    Of schedules that are equally simple none is preferred; a warm-up that no rate shows widens the bounds.
    """
    for parameters in range(4):
        fits = list(_fits(rates, parameters, tolerance))
        if fits:
            sums = [fit.sum(rates.steps) for fit in _some(fits)]
            labels = {fit.family.label for fit in fits}
            warmer = [fit for fit in _fits(rates, parameters + 1, tolerance) if fit.family.label in labels]
            bounds = [*sums, *(fit.sum(rates.steps) for fit in _some(warmer))]
            bounds += [fit.sum(rates.steps) - fit.peak * fit.hidden(rates) / 2 for fit in _some(fits)]
            return RateSum((min(sums) * max(sums)) ** 0.5, min(bounds), max(bounds), _named(fits))
    return None


def by_lines(rates: Rates) -> RateSum | None:
    """Σ η by the trapezoidal rule; None with too few rates.

    Bounds: between two known rates the others are taken to be, too, but that the peak may hide beside the highest.
    """
    if len(rates.logged) < min(ENOUGH, rates.steps):
        return None
    *_, before_last, last_logged = [None, *(rates.logged[step] for step in sorted(rates.logged))]
    late = rates.steps in rates.logged and last_logged == rates.final != before_last
    known = [(k, rate, rate, rate) for k, rate in rates.points(late).items()]
    first, last, top = known[0][1], known[-1][1], max(rate for _, rate, *_ in known)
    start = (-1, first, first / 2, max(first, rates.peak or 2 * first))
    value = low = high = 0.0
    for (a, at_a, low_a, high_a), (b, at_b, low_b, high_b) in itertools.pairwise(
        [start, *known, (rates.steps, last, 0.0, last)]
    ):
        gap = max(b - a - 1, 0)
        value += gap * (at_a + at_b) / 2
        low += gap * min(low_a, low_b)
        high += gap * max(high_a, high_b, rates.peak or 0.0 if top in (at_a, at_b) else 0.0)
        if 0 <= a < rates.steps:
            value, low, high = value + at_a, low + at_a, high + at_a
    return RateSum(value, low, high, "joined by lines")


def _share(k: np.ndarray, w: np.ndarray, planned: int) -> np.ndarray:
    """How much is over of what follows step w."""
    return ((k - w) / np.maximum(planned - w, 1)).clip(0, 1)


def _power(exponent: float) -> Shape:
    return lambda k, w, planned: (1 - _share(k, w, planned)) ** exponent


def _waves(count: int) -> Shape:
    def shape(k: np.ndarray, w: np.ndarray, planned: int) -> np.ndarray:
        x = _share(k, w, planned)
        return np.where(x < 1, (1 + np.cos(np.pi * (count * x % 1))) / 2, 0.0)

    return shape


def _inverse_root(k: np.ndarray, w: np.ndarray, planned: int) -> np.ndarray:
    scale = np.where(w > 0, w, 10_000)
    return np.sqrt(scale / (np.maximum(k - w, 0) + scale))


@dataclass(frozen=True)
class _Family:
    """Schedules of one shape.

    Attributes:
        parameters: that it has besides a warm-up.
        flat: there is no warm-up: until step w the rate stays at the peak.
        floored: it may also end above zero, at one more parameter.
    """

    label: str
    shape: Shape
    parameters: int = 0
    flat: bool = False
    floored: bool = False

    def values(self, k: np.ndarray, w: np.ndarray, planned: int) -> np.ndarray:
        """By the peak, (W, K)."""
        return np.where(k < w, 1.0 if self.flat else k / np.maximum(w, 1), self.shape(k, w, planned))


FAMILIES = [
    _Family("constant", lambda k, w, planned: np.ones((len(w), len(k)))),
    _Family("linear", _power(1), floored=True),
    _Family("cosine", _waves(1), floored=True),
    _Family("inverse square root", _inverse_root),
    *(_Family(f"polynomial (power {exponent:g})", _power(exponent), 1) for exponent in (0.5, 2, 3)),
    *(_Family(f"cosine with {count} cycles", _waves(count), 2) for count in range(2, 9)),  # logs may meet their peaks
    _Family("constant, then linear", _power(1), 1, flat=True),
    _Family("constant, then cosine", _waves(1), 1, flat=True),
]


@dataclass(frozen=True)
class _Fit:
    family: _Family
    planned: int
    w: int
    floor: float
    peak: float

    def at(self, k: np.ndarray) -> np.ndarray:
        """rate(k), (K,)."""
        values = self.family.values(k, np.array([[self.w]]), self.planned)[0]
        return self.peak * (values + self.floor * np.where(k < self.w, 0, 1 - values))

    def sum(self, steps: int) -> float:
        """Over k = 0, ..., steps − 1; of a long training by evenly spread ones."""
        return float(self.at(np.linspace(0, steps - 1, min(steps, 20_000))).mean() * steps)

    def passes(self, points: Sequence[tuple[int, float]], tolerance: float) -> bool:
        """Through all of them."""
        k, rate = np.array(points).T
        return len(points) <= MOST or bool((np.abs(self.at(k) - rate) <= 2 * tolerance * self.peak).all())

    def hidden(self, rates: Rates) -> float:
        """Steps of a warm-up that a constant start may have had before the first known rate."""
        first = min((step for step in rates.logged if step > 1), default=rates.steps)
        return min(first, self.w, LONG * self.planned) if self.family.flat and 1 not in rates.logged else 0.0


def _fits(rates: Rates, parameters: int, tolerance: float) -> Iterator[_Fit]:
    """The schedules with so many parameters, the warm-up among them, that pass through all rates."""
    for late in (False, True) if rates.logged else (False,):
        points = list(rates.points(late).items())
        k, rate = np.array(_some(points)).T
        end = rates.logged.get(rates.steps, rate[-1])
        if late and abs(end - rate[-1]) > tolerance * (rates.peak or rate.max()):
            continue  # what is logged late after the last step is the final rate
        if not rates.peak and len(rate) < (2 if rate.min() == rate.max() else 3 + parameters):
            continue  # nearly anything would do
        for family, floored in itertools.product(FAMILIES, (False, True)):
            free = parameters - family.parameters - floored
            if free in (family.flat, 1) and (not floored or (family.floored and rates.peak)):
                w = _lengths(rates.planned, k, family.flat) if free else np.zeros((1, 1), int)
                found = _passing(family, rates, k, rate, w, floored, tolerance)
                yield from (fit for fit in found if fit.passes(points, tolerance))


def _some(items: Sequence) -> list:
    """At most so many of them, evenly, with the first and the last."""
    return [items[place] for place in sorted({round(x) for x in np.linspace(0, len(items) - 1, MOST)})] if items else []


def _lengths(planned: int, k: np.ndarray, flat: bool) -> np.ndarray:
    """Lengths of a warm-up, (W, 1): all, and of a long training what can be told apart."""
    lengths = np.arange(1, planned) if planned <= 20_000 else np.unique(np.geomspace(1, planned, 20_000).astype(int))
    second = min(sorted(k[k > 0])[1:2], default=planned)
    return lengths[flat | (lengths <= LONG * planned) | (lengths >= second)][:, None]


def _passing(
    family: _Family, rates: Rates, k: np.ndarray, rate: np.ndarray, w: np.ndarray, floored: bool, tolerance: float
) -> Iterator[_Fit]:
    if rates.peak and not floored:  # a few rates rule most lengths out
        few = [0, len(k) // 3, len(k) - 1]
        w = w[np.abs(family.values(k[few], w, rates.planned) - rate[few] / rates.peak).max(1) <= tolerance]
    values, floor = family.values(k, w, rates.planned), np.zeros(len(w))
    with np.errstate(divide="ignore", invalid="ignore"):
        if floored:  # the best one, by least squares
            above = np.where(k < w, 0, 1 - values)
            floor = (above * (rate / rates.peak - values)).sum(1) / (above**2).sum(1)
            values = values + floor[:, None] * above
        peak = np.full(len(w), rates.peak) if rates.peak else values @ rate / (values**2).sum(1)
        passes = np.abs(values - rate / peak[:, None]).max(1) <= tolerance
    for place in np.flatnonzero(passes & ((floor > 0) & (floor < 1) if floored else True)):
        yield _Fit(family, rates.planned, int(w[place, 0]), float(floor[place]), float(peak[place]))


def _named(fits: Sequence[_Fit]) -> str:
    """In words."""
    names = []
    for label in dict.fromkeys(fit.family.label for fit in fits):
        own = [fit for fit in fits if fit.family.label == label]
        lengths = sorted({fit.w for fit in own if fit.w and not fit.family.flat})
        several = f" to {lengths[-1]}" if len(lengths) > 1 else ""
        names.append(f"{label} after a warm-up of {lengths[0]}{several} steps" if lengths else label)
    return f"schedule: {' or '.join(names)}"
