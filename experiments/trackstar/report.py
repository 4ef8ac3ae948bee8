"""Tables of a run: how well sources are found, what a step on proponents teaches, and what proponents are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.trackstar.scoring import Run, Scores
from experiments.trackstar.world import CLASSES, classify
from msif.evaluation.intervals import bootstrap
from msif.evaluation.retrieval import recall_at, reciprocal_rank
from msif.reporting.tables import Table

TOP = 10
Patched = Mapping[str, Sequence[np.ndarray]]


def measures(run: Run, scores: Scores) -> np.ndarray:
    """(Q, 2): reciprocal rank and recall among ten."""
    return np.array(
        [
            (reciprocal_rank(row, run.world.relevant(known)), recall_at(row, run.world.relevant(known), TOP))
            for row, known in zip(scores, run.facts, strict=True)
        ]
    )


def patch_mean(changes: Sequence[np.ndarray], top: int) -> np.ndarray:
    """Of each query over its first proponents, in per cent of probability, (Q,)."""
    return 100 * np.array([own[:top].mean() for own in changes])


def method_table(run: Run, scores: Mapping[str, Scores], patched: Patched, title: str, reference: str) -> Table:
    """MRR, recall and tail-patch with 95 % intervals over facts, and the tail-patch less a reference's."""
    rows = []
    least = patch_mean(patched[reference], TOP)
    for name, own in scores.items():
        found, change = measures(run, own), patch_mean(patched[name], TOP)
        gain = None if name == reference else bootstrap(change - least)
        rows.append((name, bootstrap(found[:, 0]), bootstrap(found[:, 1]), bootstrap(change), gain))
    rows.sort(key=lambda row: -row[3].mean)
    columns = ("method", "MRR", "recall@10", "tail-patch, %", f"less {reference}")
    return Table(columns, rows, title, {"MRR": ".3f", "recall@10": ".3f", columns[3]: "+.2f", columns[4]: "+.2f"})


def top_table(run: Run, patched: Patched) -> Table:
    """Tail-patch by how many proponents it is averaged over."""
    columns = ("method", *(f"first {top}" for top in run.sizes.top))
    rows = [
        (name, *(bootstrap(patch_mean(changes, top)) for top in run.sizes.top)) for name, changes in patched.items()
    ]
    return Table(columns, rows, "Tail-patch, %, by the number of proponents", dict.fromkeys(columns[1:], "+.2f"))


def right_table(run: Run, scores: Mapping[str, Scores], patched: Patched) -> Table:
    """Facts that the model gets right, and those that it gets wrong."""
    right = np.array([known.right for known in run.facts])
    rows = []
    for name, own in scores.items():
        found, change = measures(run, own)[:, 0], patch_mean(patched[name], TOP)
        row: list[Any] = [name]
        for which in (right, ~right):
            row += [bootstrap(found[which]), bootstrap(change[which])] if which.any() else [None, None]
        rows.append(row)
    columns = ("method", "MRR, right", "tail-patch, right", "MRR, wrong", "tail-patch, wrong")
    formats = {name: "+.2f" if "patch" in name else ".3f" for name in columns[1:]}
    return Table(columns, rows, f"{right.sum()} facts that the model says rightly, {(~right).sum()} wrongly", formats)


def class_table(run: Run, scores: Mapping[str, Scores], bins: Sequence[tuple[int, int]]) -> Table:
    """What the first ten proponents are, by how many sentences state the fact."""
    rows = []
    for name, own in scores.items():
        for low, high in bins:
            inside = [q for q, known in enumerate(run.facts) if low <= len(known.fact.sources) <= high]
            if inside:
                shares = _shares(run, own, inside)
                rows.append((name, f"{low}" if low == high else f"{low} to {high}", len(inside), *shares))
    columns = ("method", "sentences that state it", "facts", *CLASSES)
    return Table(columns, rows, "What the first ten proponents are, shares", dict.fromkeys(CLASSES, ".2f"))


def _shares(run: Run, scores: Scores, inside: Sequence[int]) -> list[float]:
    counts = dict.fromkeys(CLASSES, 0)
    for q in inside:
        for row in np.argsort(-scores[q], kind="stable")[:TOP]:
            counts[classify(run.world.texts[row], int(row), run.facts[q])] += 1
    total = sum(counts.values())
    return [counts[name] / total for name in CLASSES]
