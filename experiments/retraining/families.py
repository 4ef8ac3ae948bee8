"""Methods in families: each is set against the first of its own, on the same retrainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from experiments.common.judging import Judge
from experiments.common.methods import Method
from msif.reporting.tables import Table

OWN, PROPONENTS, TOGETHER = "each model by its own", "proponents alone", "mean scores, mean losses"


class Variant(Protocol):
    """
    Attributes:
        family: of methods that differ in one thing alone.
        cells: that thing, as tables show it.
    """

    @property
    def family(self) -> str: ...

    @property
    def method(self) -> Method: ...

    @property
    def cells(self) -> Sequence[Any]: ...


Part = tuple[str, Judge, Sequence[Variant], Mapping[str, np.ndarray]]
"""What is asked, what judges, and the scores (S, Q, N) of each method by its name."""


def family_table(parts: Sequence[Part], differ: Sequence[str], gain: str, title: str) -> Table:
    """In the order of the methods.

    Args:
        differ: names of the cells in which methods of a family differ.
        gain: name of the difference to the first.
    """
    lines = [_line(*part, variant) for part in parts for variant in part[2]]
    first = parts[0][1]
    return Table(
        ("asked", "method", *differ, OWN, gain, PROPONENTS, TOGETHER),
        lines,
        f"Linear datamodelling score {title}: {len(first.masks)} halves that judge, "
        f"{first.losses.shape[1]} models, {first.masks.shape[1]} documents, "
        + " and ".join(f"{judge.measured.shape[1]} {asked}" for asked, judge, *_ in parts)
        + "; 95 % intervals draw halves and queries again",
        dict.fromkeys((PROPONENTS, TOGETHER), ".3f"),
    )


def _line(
    asked: str, judge: Judge, variants: Sequence[Variant], scores: Mapping[str, np.ndarray], variant: Variant
) -> list[Any]:
    own = scores[variant.method.name]
    first = next(one for one in variants if one.family == variant.family)
    gain = None if variant is first else f"{judge.own_difference(own, scores[first.method.name]):+.3f}"
    proponents, together = judge.own(np.maximum(own, 0)).mean, judge.score(own.mean(0))
    return [asked, variant.family, *variant.cells, f"{judge.own(own):.3f}", gain, proponents, together]
