"""How good the classifier is, and how often the documents that methods find share the query's label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.replaced_head.setting import LabelSetting
from experiments.retraining.study import REFERENCE, Study
from msif.evaluation.intervals import bootstrap
from msif.reporting.tables import Table

TOP = 10


def accuracy_table(setting: LabelSetting, study: Study) -> Table:
    found = setting.predicted(study.all_losses)
    right = found.argmax(2) == setting.truth
    counts = np.bincount(setting.truth)
    rows: list[list[Any]] = [
        ["one pair", right.mean(), right.mean(1).min(), right.mean(1).max()],
        ["pairs' mean", (found.mean(0).argmax(1) == setting.truth).mean(), None, None],
        ["the best constant answer", counts.max() / counts.sum(), None, None],
    ]
    title = f"Accuracy on {len(setting.truth)} texts that are held out, {len(setting.parts.classes)} classes"
    formats = dict.fromkeys(("right", "least", "most"), ".0%")
    return Table(["classifier", "right", "least", "most"], rows, title, formats)


def label_table(setting: LabelSetting, study: Study) -> Table:
    """The share of each query's first documents that have its label, by each method; chance is their share in all.

    Where a query has sources, also the share of these among its first documents.
    """
    places, said = setting.order(), np.array([label for _, label in study.asked.examples])
    truth, sources = setting.truth[places], [setting.parts.sources[place] for place in places]
    first = {m.name: _first(study.scores[m.name].mean(0)) for m in study.methods if not m.dear}
    shares = {name: _shares(setting.labels[rows], said) for name, rows in first.items()}
    rows: list[list[Any]] = []
    for name, share in shares.items():
        ahead = None if name == REFERENCE else f"{bootstrap(shares[REFERENCE] - share):+.2f}"
        true = _shares(setting.labels[first[name]], truth).mean()
        rows.append([name, f"{bootstrap(share):.2f}", ahead, true, _found(first[name], sources)])
    rows.sort(key=lambda row: -shares[row[0]].mean())
    chance = np.mean([(setting.labels == label).mean() for label in said])
    title = f"Share of the first {TOP} documents with the query's label, {len(said)} queries; chance {chance:.2f}"
    columns = ["method", "predicted label", f"{REFERENCE}, less this", "true label", "sources found"]
    return Table(columns, rows, title, {"true label": ".2f", "sources found": ".2f"})


def _first(scores: np.ndarray) -> np.ndarray:
    return np.argsort(-scores, axis=1, kind="stable")[:, :TOP]


def _shares(labels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    return (labels == wanted[:, None]).mean(1)


def _found(first: np.ndarray, sources: Sequence[Sequence[int]]) -> float | None:
    """The mean share of a query's sources among its first documents; None where no query has any."""
    shares = [np.isin(rows, top).mean() for rows, top in zip(sources, first, strict=True) if len(rows)]
    return float(np.mean(shares)) if shares else None
