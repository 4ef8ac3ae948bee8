"""How plots look: told apart by colour vision of any kind, and in grey.

Colours are those of Okabe and Ito, neighbours of different lightness; lines differ in their dashes, too. Blue
is for proponents and what is better, orange for opponents, as on the page.
"""

from __future__ import annotations

from typing import Any

COLOURS = ("#000000", "#0072B2", "#E69F00", "#D55E00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442")
DASHES = ("-", "--", "-.", ":")
DPI = 120


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
        "legend.frameon": False,
        "legend.fontsize": "small",
        "savefig.dpi": DPI,
        # the same file from the same numbers
        "svg.hashsalt": "msif",
    }
