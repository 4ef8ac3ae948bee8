"""How good the classifier is, and how often the documents that methods find share the query's label."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.counterfactual.study import REFERENCE, Study
from experiments.replaced_head.setting import LabelSetting
from msif.evaluation.intervals import bootstrap
from msif.reporting.tables import Table

TOP = 10


def accuracy_table(setting: LabelSetting, study: Study) -> Table:
    right = setting.predicted(study.members).argmax(2) == setting.truth
    counts = np.bincount(setting.truth)
    rows: list[list[Any]] = [
        ["one pair", right.mean(), right.mean(1).min(), right.mean(1).max()],
        ["pairs' mean", (setting.predicted(study.members).mean(0).argmax(1) == setting.truth).mean(), None, None],
        ["the best constant answer", counts.max() / counts.sum(), None, None],
    ]
    title = f"Accuracy on {len(setting.truth)} sentences that are held out, {len(setting.world.head.classes)} classes"
    formats = dict.fromkeys(("right", "least", "most"), ".0%")
    return Table(["classifier", "right", "least", "most"], rows, title, formats)


def label_table(setting: LabelSetting, study: Study) -> Table:
    """The share of each query's first documents that have its label, by each method; chance is their share in all."""
    asked = setting.chosen()
    said, truth = np.array([label for _, label in study.asked.examples]), setting.truth[asked]
    names = [m.name for m in study.methods if not m.dear]
    shares = {name: _shares(study.scores[name].mean(0), setting.labels, said) for name in names}
    rows: list[list[Any]] = []
    for name, share in shares.items():
        true = _shares(study.scores[name].mean(0), setting.labels, truth)
        ahead = None if name == REFERENCE else f"{bootstrap(shares[REFERENCE] - share):+.2f}"
        rows.append([name, f"{bootstrap(share):.2f}", true.mean(), ahead])
    rows.sort(key=lambda row: -shares[row[0]].mean())
    chance = np.mean([(setting.labels == label).mean() for label in said])
    title = f"Share of the first {TOP} documents with the query's label, {len(said)} queries; chance {chance:.2f}"
    columns = ["method", "predicted label", "true label", f"{REFERENCE}, less this"]
    return Table(columns, rows, title, {"true label": ".2f"})


def _shares(scores: np.ndarray, labels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    first = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    return (labels[first] == wanted[:, None]).mean(1)
