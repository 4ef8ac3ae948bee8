"""The page of one influence run, or of several side by side: ``python -m msif.page DIR ...``."""

from __future__ import annotations

from collections.abc import Sequence

from msif.cli.parsing import Parser, run, set_up_logging
from msif.errors import MsifError
from msif.reporting.page import write_page
from msif.reporting.runs import open_run
from msif.reporting.trackstar import write_trackstar
from msif.reporting.truth import check_meets, read_truth


def parser() -> Parser:
    p = Parser(prog="python -m msif.page", description=__doc__)
    p.add_argument(
        "folders",
        metavar="DIR",
        nargs="+",
        help="what msif.influence --output wrote; several are shown side by side. A FILE.jsonl with the fields of the "
        "TrackStar viewer will do, too",
    )
    p.add_argument(
        "--output", "--page", metavar="FILE", help="where the page goes (default page.html in the first folder)"
    )
    p.add_argument(
        "--truth",
        metavar="FILE",
        nargs="+",
        default=[],
        help="JSON Lines of what is true: id (a query's, or the value of one of its fields), and any of sources "
        "(ids of documents), answer, correct",
    )
    p.add_argument(
        "--export", metavar="FILE.jsonl", help="write the shown documents for the TrackStar viewer, and no page"
    )
    return p


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse(arguments)
    set_up_logging(quiet=False)
    if not args.export:
        print(f"the page is {write_page(args.folders, args.output, args.truth)}")
        return
    if len(args.folders) > 1 or args.output:
        raise MsifError("--export writes one run and no page: give one folder, and leave --output out.")
    found = open_run(args.folders[0])
    known = read_truth(*args.truth)
    check_meets(known, [found])
    print(f"the rankings are in {write_trackstar(args.export, found, known)}")


if __name__ == "__main__":
    run(main)
