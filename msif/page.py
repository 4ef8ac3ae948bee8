"""The page of an influence run, made again or elsewhere: ``python -m msif.page DIR``."""

from __future__ import annotations

from collections.abc import Sequence

from msif.cli.parsing import Parser, run, set_up_logging
from msif.reporting.page import write_page


def parser() -> Parser:
    p = Parser(prog="python -m msif.page", description=__doc__)
    p.add_argument("folder", metavar="DIR", help="what msif.influence --output wrote")
    p.add_argument("--page", metavar="FILE", help="where the page goes (default DIR/page.html)")
    return p


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse(arguments)
    set_up_logging(quiet=False)
    print(f"the page is {write_page(args.folder, args.page)}")


if __name__ == "__main__":
    run(main)
