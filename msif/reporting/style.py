"""How plots look: told apart by colour vision of any kind, and in grey.

Colours are those of Okabe and Ito, neighbours of different lightness; lines differ in dashes and marks, bars in
hatches, too. Blue is for proponents and what is better, orange for opponents, as on the page.
"""

from __future__ import annotations

from typing import Any

COLOURS = ("#000000", "#0072B2", "#E69F00", "#D55E00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442")
DASHES = ("-", "--", "-.", ":")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", "*")
HATCHES = ("", "//", "xx", "\\\\", "--", "++", "||")
LEVEL, GREY = "#555555", "#9aa7b5"
DPI = 120


def line(number: int) -> dict[str, Any]:
    """Colour, dashes and mark of a plot's line by its number; no two of the first 72 are the same."""
    round_ = number // len(COLOURS)
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": DASHES[(number + round_) % len(DASHES)],
        "marker": MARKS[number % len(MARKS)],
        "markersize": 4,
        "linewidth": 1.2,
    }


def bar(number: int) -> dict[str, Any]:
    """Colour and hatch of a plot's bars by their number; black is left to lines."""
    colours = COLOURS[1:]
    return {
        "color": colours[number % len(colours)],
        "hatch": HATCHES[number % len(HATCHES)],
        "edgecolor": "white",
        "linewidth": 0.5,
    }


def style() -> Any:
    """Settings for ``matplotlib.rc_context``."""
    from cycler import cycler

    dashes = [DASHES[place % len(DASHES)] for place in range(len(COLOURS))]
    return {
        "axes.prop_cycle": cycler(color=COLOURS, linestyle=dashes),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e2e2e2",
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "axes.titlesize": "medium",
        "font.size": 10,
        "hatch.linewidth": 0.7,
        "legend.frameon": False,
        "legend.fontsize": "small",
        "savefig.dpi": DPI,
        # the same file from the same numbers
        "svg.hashsalt": "msif",
    }
