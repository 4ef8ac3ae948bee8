"""The mean of several runs of msif.influence: of model pairs that were trained alike from other seeds."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from msif.cli.parsing import Parser, positive_int, run, set_up_logging

log = logging.getLogger(__name__)

EXAMPLE = """example:
  %(prog)s results/seed-0 results/seed-1 results/seed-2 --output results/mean
"""


def parser() -> Parser:
    p = Parser(prog="python -m msif.average", description=__doc__, epilog=EXAMPLE)
    p.add_argument("folders", metavar="DIR", nargs="+", help="what msif.influence --output wrote, of the same queries")
    p.add_argument("--output", metavar="DIR", help="folder for the mean, a result like any other (required)")
    p.add_argument(
        "--top-k",
        type=positive_int,
        default=10,
        metavar="K",
        help="proponents and opponents shown a query, of those that the runs show (default 10)",
    )
    p.need("--output")
    return p


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse(arguments)
    set_up_logging(quiet=False)
    from msif.reporting.averages import average_runs, without_parts

    folder = average_runs(args.folders, args.output, args.top_k)
    lacking, shown = without_parts(folder)
    if lacking:
        log.warning(
            "%d of %d shown documents are without words and layers, which not all runs have of them: run these with a "
            "larger --top-k",
            lacking,
            shown,
        )
    print(f"the mean of {len(args.folders)} runs is in {folder}")


if __name__ == "__main__":
    run(main)
