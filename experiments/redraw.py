"""Draws the plots of committed tables again, without running an experiment: python -m experiments.redraw.

The plots of retraining (counterfactual and replaced_head) show more than their tables hold, and are drawn by their runs
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.digits import plots as digits
from experiments.fact_tracing import plots as fact_tracing
from experiments.nearby import plots as nearby
from experiments.peers import plots as peers
from experiments.proximity import plots as proximity
from experiments.spearman import plots as spearman
from experiments.trackstar import plots as trackstar
from msif.cli.parsing import Parser, run

RESULTS = Path("docs/results")
DRAWN: dict[str, Callable[[Path], None]] = {
    "digits": digits.draw,
    "fact_tracing": fact_tracing.draw,
    "fact_tracing/full": fact_tracing.draw,
    "nearby": nearby.draw,
    "peers": peers.draw,
    "proximity": proximity.draw,
    "proximity/trex": proximity.draw,
    "spearman": spearman.draw,
    "trackstar": trackstar.draw,
}


def parser() -> Parser:
    flags = Parser(prog="python -m experiments.redraw", description=__doc__)
    flags.add_argument("--results", type=Path, default=RESULTS, help="folder of tables (default: %(default)s)")
    return flags


def main(arguments: Sequence[str] | None = None) -> None:
    results = parser().parse(arguments).results
    for name, draw in DRAWN.items():
        draw(results / name)


if __name__ == "__main__":
    run(main)
