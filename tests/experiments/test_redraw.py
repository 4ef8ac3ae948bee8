"""Committed plots are of committed tables."""

import shutil
from pathlib import Path

from experiments.common.tables import read_tables, spread
from experiments.redraw import DRAWN
from msif.evaluation.intervals import Interval
from msif.reporting.tables import Table, write_results

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
PLOTS = {name: sorted(file.stem for file in (RESULTS / name).glob("*.svg")) for name in DRAWN}


def test_intervals_come_back(tmp_path):
    rows = [["a", Interval(0.5, 0.25, 1.0), "-0.5 [-1.0, +0.25]", None]]
    write_results(tmp_path, "one", Table(["name", "kept", "text", "none"], rows, "Title"), {})
    (record,) = read_tables(tmp_path / "one.json")["Title"]
    assert record == {"name": "a", "kept": rows[0][1], "text": Interval(-0.5, -1.0, 0.25), "none": None}
    assert spread([rows[0][1]]) == [[0.25], [0.5]]


def test_each_committed_plot_that_can_be_redrawn_is_there_in_both_forms():
    for name, plots in PLOTS.items():
        assert plots and plots == sorted(file.stem for file in (RESULTS / name).glob("*.png"))


def test_plots_are_drawn_from_tables_alone(tmp_path):
    name = "trackstar"  # others are drawn by the tests of their runs
    shutil.copytree(RESULTS / name, tmp_path / name, ignore=shutil.ignore_patterns("*.png", "*.svg"))
    DRAWN[name](tmp_path / name)
    assert sorted(file.stem for file in (tmp_path / name).glob("*.svg")) == PLOTS[name]
