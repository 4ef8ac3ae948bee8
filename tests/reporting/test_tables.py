"""Tables and plots as files."""

import json
from itertools import pairwise

import pytest

from msif.errors import MsifError
from msif.evaluation.intervals import Interval
from msif.reporting.plots import figure
from msif.reporting.style import COLOURS, bar, line
from msif.reporting.tables import Table, write_results

TABLE = Table(
    ["method", "MRR", "interval"],
    [["a|b", 0.123456, Interval(0.5, 0.25, 0.75)], ["c", None, None]],
    "Methods",
    {"MRR": ".3f", "interval": ".2f"},
)


def test_a_table_is_aligned_markdown():
    assert TABLE.markdown().splitlines() == [
        "**Methods**",
        "",
        "| method |   MRR |          interval |",
        "| ------ | ----: | ----------------: |",
        "| a\\|b   | 0.123 | 0.50 [0.25, 0.75] |",
        "| c      |     – |                 – |",
    ]
    with pytest.raises(MsifError, match="row of 2"):
        Table(["one"], [[1, 2]])


def test_results_hold_values_configuration_and_versions(tmp_path):
    write_results(tmp_path / "new", "mrr", TABLE, {"seed": 3})
    found = json.loads((tmp_path / "new" / "mrr.json").read_text())
    assert found["configuration"] == {"seed": 3} and "torch" in found["versions"]
    assert found["tables"][0]["rows"][0] == {
        "method": "a|b",
        "MRR": 0.123456,
        "interval": {"mean": 0.5, "low": 0.25, "high": 0.75},
    }
    assert (tmp_path / "new" / "mrr.md").read_text() == TABLE.markdown()
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["mrr.json", "mrr.md"]


def labelled(axes):
    axes.set(xlabel="documents (number)", ylabel="loss (nats)")


def test_a_figure_is_saved_whole_or_not_at_all(tmp_path):
    with figure(tmp_path / "plot", columns=2) as axes:
        axes[0].plot([1, 2], [3, 4])
        for panel in axes:
            labelled(panel)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ZeroDivisionError), figure(tmp_path / "other.png"):
        raise ZeroDivisionError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plot.png", "plot.svg"]


def test_a_figure_is_the_same_file_from_the_same_numbers(tmp_path):
    for name in ("one", "two"):
        with figure(tmp_path / f"{name}.png") as axes:
            axes.plot([1, 2], [3, 4])
            axes.plot([1, 2], [4, 3])
            labelled(axes)
    for kind in ("png", "svg"):
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()
    with pytest.raises(MsifError, match=r"cannot be written as '\.jpg'"), figure(tmp_path / "x.jpg"):
        pass


@pytest.mark.parametrize(("axis", "label"), [("x", ""), ("y", ""), ("y", "loss"), ("x", "share of (the) loss")])
def test_an_axis_of_numbers_without_a_unit_is_refused(tmp_path, axis, label):
    with (
        pytest.raises(MsifError, match=rf"the {axis} axis of the plot"),
        figure(tmp_path / "plot") as axes,
    ):
        axes.plot([1, 2], [3, 4])
        labelled(axes)
        axes.set(**{f"{axis}label": label})
    assert not list(tmp_path.iterdir())


def test_an_axis_of_names_needs_no_label_and_of_shared_ones_one_is_enough(tmp_path):
    with figure(tmp_path / "bars", columns=2, sharey=True) as (first, second):
        first.bar(["BM25", "EK-FAC"], [1, 2])
        second.bar([0, 1], [1, 2])
        second.set_xticks([0, 1], ["BM25", "EK-FAC"])
        first.set(ylabel="MRR (ratio)")
    with pytest.raises(MsifError, match="the x axis"), figure(tmp_path / "sizes") as axes:
        axes.plot([1, 2], [3, 4])
        axes.set(ylabel="loss (nats)")
        axes.set_xticks([1, 2], ["1", "2"])  # text, but of numbers


def test_lines_and_bars_are_told_apart_without_colour():
    for look, several in ((line, 72), (bar, 7)):
        looks = [tuple(value for key, value in look(number).items() if key != "color") for number in range(several)]
        assert len({(look(n)["color"], *other) for n, other in enumerate(looks)}) == several
        assert all(one != other for one, other in pairwise(looks))


def test_colours_that_follow_each_other_differ_in_grey():
    greys = [sum(w * int(c[i : i + 2], 16) for w, i in ((0.299, 1), (0.587, 3), (0.114, 5))) for c in COLOURS]
    assert all(abs(one - other) > 20 for one, other in pairwise(greys))
