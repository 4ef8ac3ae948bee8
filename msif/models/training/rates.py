"""Σ η of a training, and of each group of its optimizer, from the files that it left."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from msif.models.training.files import SCHEDULER, STATE, SUM, TrainingUnknown, scheduler_state, trainer_state
from msif.models.training.optimizers import Group, Unusable
from msif.models.training.schedulers import is_ordinary, played
from msif.models.training.schedules import EXACT, ROUGH, Rates, RateSum, by_lines, by_schedule

log = logging.getLogger(__name__)

NARROW, WIDE = 1.05, 2.0  # by how much Σ η may be uncertain without a warning, and at all
ALIKE = 0.05  # how far the rates of two groups may be apart on one schedule, by their peaks


def group_shares(groups: Sequence[Group]) -> list[float]:
    """Each group's Σ η by that of the first group which learns.

    Raises:
        Unusable: the groups have no rates, or not one schedule.
    """
    if any(group["lr"] is None for group in groups):
        raise Unusable("has no learning rate, but relative steps")
    scheduled = all("initial_lr" in group for group in groups)
    peaks = [float(group["initial_lr" if scheduled else "lr"]) for group in groups]
    if len(set(peaks)) == 1:
        return [1.0] * len(groups)
    last = [float(group["lr"]) / peak for group, peak in zip(groups, peaks, strict=True) if peak > 0]
    if max(last) - min(last) > ALIKE:
        raise Unusable("has groups of parameters with schedules of their own")
    first = next(peak for peak in peaks if peak > 0)
    return [peak / first for peak in peaks]


def learning_rates_summed(folder: Path, groups: Sequence[Group], place: int) -> float:
    """Σ η of the group at a place; it is said what it rests on.

    Raises:
        TrainingUnknown: the files do not tell it, or only within a factor of two.
    """
    steps, logged, found = _found(folder, groups, place)
    if found is None:
        lack = f"logs {logged} learning rates in {steps} steps" if logged else "logs no learning_rate"
        raise TrainingUnknown(f"{folder / STATE} {lack}, which tells too little of its schedule", SUM)
    basis = f"{logged or 'no'} logged {'rate' if logged == 1 else 'rates'} in {steps} steps, {found.basis}"
    if found.high > WIDE * found.low:
        bounds = f"from {found.low:.3g} to {found.high:.3g}"
        raise TrainingUnknown(f"the learning rates of {folder} may sum to anything {bounds} ({basis})", SUM)
    if found.high > NARROW * found.low or (not logged and found.high > found.low):
        log.warning(
            "the learning rates of %s are taken to sum to %.4g, which may be %.3g to %.3g (%s): "
            "give --learning-rate-sum if you know it",
            *(folder, found.value, found.low, found.high, basis),
        )
    else:
        log.info("the learning rates of %s sum to %.4g (%s)", folder, found.value, basis)
    return found.value


def _found(folder: Path, groups: Sequence[Group], place: int) -> tuple[int, int, RateSum | None]:
    """Steps, logged rates, and what these and the files of optimizer and scheduler come to."""
    left, scheduler, group = trainer_state(folder), scheduler_state(folder), groups[place]
    logged = dict(left.logged) if place == 0 else {}  # the Trainer logs the first group's
    final, bases = float(group["lr"]), (scheduler or {}).get("base_lrs") or []
    peak = group.get("initial_lr", bases[place] if place < len(bases) else None)
    if peak is None:  # its rate was set by hand, and last for the last step
        return left.steps, len(logged), _summed(Rates(left.steps, left.planned, {left.steps: final, **logged}))
    highest = max(final, *logged.values(), 0.0)
    believed = float(peak) if highest <= float(peak) * (1 + EXACT) else None
    known = Rates(left.steps, left.planned, logged, believed, final)
    if is_ordinary(scheduler) and "max_lr" not in group:
        return left.steps, len(logged), _summed(known)
    rates = played(scheduler or {}, left.steps, place)
    if rates is not None and _agree(known, rates):
        total = sum(rates[: left.steps])
        return left.steps, len(logged), RateSum(total, total, total, f"schedule: that of {SCHEDULER}")
    return left.steps, len(logged), by_lines(known)


def _summed(known: Rates) -> RateSum | None:
    """The surest: of a schedule that fits exactly, of lines, of a schedule that fits roughly."""
    found: list[RateSum] = []
    for how in (partial(by_schedule, tolerance=EXACT), by_lines, partial(by_schedule, tolerance=ROUGH)):
        one = how(known)
        if one is not None and one.high <= NARROW * one.low:
            return one
        found += [one] if one is not None else []
    return min(found, key=lambda one: one.high / one.low if one.low else 1.0, default=None)


def _agree(known: Rates, rates: Sequence[float]) -> bool:
    """Whether all known rates are those of a scheduler, logged in time or late."""
    return any(
        all(abs(rates[k] - rate) <= ROUGH * max(rates) for k, rate in known.points(late).items())
        for late in (False, True)
    )
