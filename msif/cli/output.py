"""What the influence command leaves: files in a folder, tables on the terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from msif import distributed
from msif.atomic import missing_folders, remove_empty, write_json, write_json_lines
from msif.attribution.partial import PARTIAL, partial_files
from msif.attribution.results import Ranking, Shown, write_scores, write_shown
from msif.data.labels import describe_label
from msif.errors import MsifError, is_out_of_memory, one_line
from msif.job import Job
from msif.reporting.page import PAGE, write_page
from msif.reporting.terminal import print_query
from msif.result import MANIFEST, QUERIES, SCORES, TOP, explained, provenance_of, shown_documents
from msif.saved import CONFIG

log = logging.getLogger(__name__)

PRINTED_QUERIES = 20
AGAIN = "run the same command again for the rest, which scores nothing twice"


@contextmanager
def new_or_unchanged(path: Path) -> Iterator[None]:
    """A folder that was new or empty goes when the block fails before there are scores, whole or in part.

    So do the folders above it that were made for it.
    """
    new = missing_folders(path)
    is_new = bool(new) or not any(path.iterdir())
    try:
        yield
    except BaseException:
        if is_new and not partial_files(path) and not (path / SCORES).exists():
            (path / CONFIG).unlink(missing_ok=True)
            remove_empty(new)
        raise


@contextmanager
def not_lost(kept: Path, then: str) -> Iterator[None]:
    """What fails inside is told together with where the scores are, and how to go on.

    Raises:
        MsifError: whatever failed.
    """
    try:
        yield
    except BaseException as error:
        safe = f"The scores are safe in {kept}: {then}." if kept.exists() else ""
        if not isinstance(error, Exception) or is_out_of_memory(error):  # which are told elsewhere
            log.warning("%s", safe)
            raise
        told = isinstance(error, MsifError)
        what = str(error) if told else f"{type(error).__name__} after scoring: {one_line(error)}."
        raise MsifError(f"{what} {safe}") from error


def score_into(path: Path, job: Job) -> None:
    """Fills a folder: scores.parquet first, then what explains them and page.html, each whole or not at all."""
    began = time.monotonic()
    scored = job.score()
    if not distributed.leads():
        explained(job, scored)  # passes that all take part in where weights are shared out
        return
    seconds = {"answers, candidates and scores": time.monotonic() - began}
    with not_lost(next(iter(partial_files(path)), path / PARTIAL), AGAIN):
        provenance = provenance_of(job, scored)
        write_scores(path / SCORES, scored.rankings, scored.ids, provenance)
    with not_lost(path / SCORES, AGAIN):
        if scored.anew:  # what earlier scores showed
            for name in (TOP, PAGE, QUERIES):
                (path / name).unlink(missing_ok=True)
        write_json(path / MANIFEST, provenance)
        began = time.monotonic()
        shown, told = explained(job, scored)
        seconds["parts of the scores that are shown"] = time.monotonic() - began
        write_json_lines(path / QUERIES, told)
        write_shown(path / TOP, shown)
        write_json(path / MANIFEST, {**provenance, "seconds": seconds})
    with not_lost(path / SCORES, f"python -m msif.page {path} makes the page that is missing"):
        write_page(path)
    with not_lost(path / SCORES, "only these tables are missing"):
        print(f"results are in {path}")
        report(scored.rankings, shown)
    for file in partial_files(path):
        file.unlink(missing_ok=True)


def score_and_report(job: Job) -> None:
    """The tables alone."""
    scored = job.score()
    shown = shown_documents(job, scored)
    if distributed.leads():
        report(scored.rankings, shown)


def report(rankings: Sequence[Ranking], shown: Sequence[Shown]) -> None:
    """A table of proponents and one of opponents for each query."""
    for ranking in rankings[:PRINTED_QUERIES]:
        query = ranking.query
        answer = query.completion or "" if query.label is None else describe_label(query.label)
        print_query(query.prompt, answer, [document for document in shown if document.query_id == query.id])
    if len(rankings) > PRINTED_QUERIES:
        print(f"\n... and {len(rankings) - PRINTED_QUERIES} more queries, in the files of --output")
