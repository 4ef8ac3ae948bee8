"""Scores of every method and member, kept as they are made."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import numpy as np

from experiments.common.cache import Cache, hashed
from experiments.common.methods import Method
from experiments.common.parallel import spread
from experiments.digits.engine import stacked
from experiments.digits.images import Parts
from experiments.digits.members import Group, Member, Members
from experiments.digits.network import new_networks
from experiments.digits.settings import Settings
from experiments.digits.unrolled import unrolled_scores

Scored = dict[str, np.ndarray]
"""Name of a method -> scores (K, Q, N), K the members that it was asked of; of one member (Q, N)."""
Methods = Callable[[], list[Method]]


def score_all(
    methods: Methods, settings: Settings, parts: Parts, cache: Cache, group: Group, processes: int = 1
) -> Scored:
    """Every method on every member; those that are dear on the first few only."""
    members = Members(settings, parts, cache, group)  # trained here, and read by the processes
    work = partial(score_member, methods, settings, parts, cache, group)
    each = spread(work, range(len(members)), processes, f"scoring {group.name}")
    return {method.name: np.stack([one[method.name] for one in each if method.name in one]) for method in methods()}


def score_member(methods: Methods, settings: Settings, parts: Parts, cache: Cache, group: Group, number: int) -> Scored:
    """One member's scores by all methods that are asked of it, kept family by family."""
    families: dict[str, list[Method]] = {}
    for method in methods():
        if number < settings.few or not method.dear:
            families.setdefault(method.family, []).append(method)
    member = Members(settings, parts, cache, group)[number]  # holds its curvature for as long as it is used
    scored: Scored = {}
    for name, family in families.items():
        slug = re.sub(r"\W+", "-", name).strip("-").lower()
        keys = hashed([method.key for method in family])[:8]
        name = f"{group.name}/scores/{number:02d}-{slug}-{keys}"
        scored |= cache.arrays(name, partial(_score, family, member, parts))
    return scored


def _score(family: list[Method], member: Member, parts: Parts) -> Scored:
    return {m.name: m.build(member).score([parts.queries], [parts.pretraining]).values for m in family}


def unrolled_of(settings: Settings, parts: Parts, cache: Cache, number: int) -> np.ndarray:
    """One member's scores by the exact derivative, (Q, N)."""

    def compute() -> Scored:
        first, head = new_networks(settings.first_member + number)
        return {"scores": unrolled_scores(settings, parts, stacked([first]), stacked([head])[-2:])}

    return cache.arrays(f"scores/{number:02d}-unrolled", compute)["scores"]
