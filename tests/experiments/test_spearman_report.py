"""Points, claims and reports of the comparison of estimators, against values worked out by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest

from experiments.common.cache import Cache
from experiments.spearman import plots, points, report
from experiments.spearman.claims import claims, products
from experiments.spearman.configuration import TINY
from experiments.spearman.points import Point
from experiments.spearman.results import Results
from experiments.spearman.truth import TRUTH


def point(method, scores, budget=None, damping="1e-2", **more):
    options = {"overhead": 0.5, "query": 0.1, "residual": [0.5, 0.25], "held_out_residual": [1.0, 2.0], **more}
    return Point(method, damping, budget, np.asarray(scores, float), **options)


def test_points_come_back(tmp_path):
    some = [point("CG", [[1.0, 2.0]], 3, memory=5), point("GDP", [[0.1, -7.0]], residual=None)]
    again = points.points_of(Cache(tmp_path / "points", {}).arrays("cg 1e-2", lambda: points.arrays_of(some)))
    for before, after in zip(some, again, strict=True):
        assert np.array_equal(before.scores, after.scores)
        assert {**vars(before), "scores": 0} == {**vars(after), "scores": 0}


def test_the_frontier_by_hand():
    pairs = [(3.0, 0.5), (1.0, 0.2), (2.0, 0.1), (1.0, 0.3), (4.0, 0.5), (5.0, 0.9)]
    assert plots.frontier(pairs) == [(1.0, 0.3), (3.0, 0.5), (5.0, 0.9)]
    assert plots.frontier([]) == []


TRUE = np.array([[1.0, 2, 3, 4, 5], [5, 1, 4, 2, 3]])
# one exchange of neighbours: Spearman 0.9; of two pairs: 0.8
NEARLY, LESS = TRUE.copy(), TRUE.copy()
NEARLY[:, [0, 1]] = [[2, 1], [4, 1]]
LESS[:, [0, 1, 2, 3]] = [[2, 1, 4, 3], [4, 2, 5, 1]]


@pytest.fixture
def by_hand():
    c = replace(TINY, dampings=("1e-2",), detailed="1e-2")
    curve = [point("CG", LESS, 10, passes=10.0), point("CG", TRUE, 60, passes=60.0)]
    own = [point("EK-FAC-CG", LESS, 0), point("EK-FAC-CG", NEARLY, 4, passes=5.0)]
    own += [point("EK-FAC-CG", TRUE, 12, passes=13.0)]
    rest = [point("EK-FAC", LESS), point("GDP", -TRUE), point("TRAK, 2 models", NEARLY)]
    return [point(TRUTH, TRUE), *curve, *own, *rest], c


def test_reports_say_what_the_points_are_worth(by_hand, tmp_path):
    found, c = by_hand
    report.report(found, c, tmp_path, {"device": "cuda"})
    tables = json.loads((tmp_path / "spearman.json").read_text())["tables"]
    (rows,) = [table["rows"] for table in tables if table["title"].startswith("Damping 1e-2")]
    worth = {(row["method"], row["iterations"]): row for row in rows}
    assert worth["CG", 60]["Spearman"] == worth["CG", 60]["Pearson"] == pytest.approx(1)
    assert worth["GDP", None]["Spearman"] == pytest.approx(-1) and worth["GDP", None]["sd"] == pytest.approx(0)
    assert worth["CG", 10]["residual"] == 0.375 and worth["CG", 10]["held-out residual"] == 1.5
    assert worth["CG", 10]["a query, seconds"] == 0.1  # on a GPU they are not the CPU's
    assert [row["method"] for row in rows] == sorted(row["method"] for row in rows)


def test_claims_by_hand(by_hand):
    results = Results(*by_hand)
    said = {row["claim"]: (row["measured"], row["holds"]) for row in claims(results).records()}
    level = results.mean(results.last("EK-FAC", "1e-2"))
    assert said["EK-FAC, Spearman at least 0.65"] == (f"{level:.3f}", "yes")
    rivals = said["EK-FAC above GDP, CKA, Arnoldi and TRAK"]
    assert rivals[1] == "no" and rivals[0].endswith("(TRAK, 2 models)")
    assert said["EK-FAC-CG: Spearman at least 0.90 after 12 iterations"] == ("1.000", "yes")
    assert said["EK-FAC-CG: Spearman at least 0.95 after 20 iterations"] == ("–", "not measured")
    tenth = "EK-FAC-CG: Spearman 0.99 in at most a tenth of the products of CG"
    assert said[tenth] == ("13 against 60", "no")
    needed = {row["Spearman"]: (row["CG"], row["EK-FAC-CG"]) for row in products(results).records()}
    assert needed[0.99] == ("60", "13")
    found, c = by_hand
    fewer = [one for one in found if one.method != "CG" or one.budget == 10]
    for passes, expected in (
        (100.0, ("13 against more than 100", "not decided")),
        (130.0, ("13 against more than 130", "yes")),
    ):
        last = replace(fewer[1], passes=passes)
        rows = claims(Results([fewer[0], last, *fewer[2:]], c)).records()
        assert [(row["measured"], row["holds"]) for row in rows if row["claim"] == tenth] == [expected]
    rows = claims(Results([one for one in found if one.method != "EK-FAC-CG" or one.budget == 0], c)).records()
    reached = [(row["measured"], row["holds"]) for row in rows if row["claim"] == tenth]
    assert reached == [("more than 0 against 60", "not reached")]
