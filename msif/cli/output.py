"""What the influence command leaves: tables on the terminal, files in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from msif.atomic import write_json
from msif.attribution.partial import PARTIAL
from msif.attribution.results import write_scores, write_shown
from msif.cli.explain import Explanation
from msif.cli.job import Job
from msif.cli.models import versions
from msif.cli.parsing import configuration
from msif.data.labels import describe_label
from msif.reporting.page import PAGE, write_page
from msif.reporting.terminal import print_query

PRINTED_QUERIES = 20


@contextmanager
def new_or_unchanged(path: Path) -> Iterator[None]:
    """What was written to a new or empty folder goes when the block fails, but for what a next run can go on from."""
    was_there = path.exists()
    is_new = not was_there or not any(path.iterdir())
    try:
        yield
    except BaseException:
        if is_new:
            kept = ["config.yaml", PARTIAL] if (path / PARTIAL).exists() else []
            for name in {"config.yaml", "manifest.json", "scores.parquet", "top.jsonl", PAGE}.difference(kept):
                (path / name).unlink(missing_ok=True)
            if not was_there:
                with suppress(OSError):  # something is kept
                    path.rmdir()
        raise


def write(path: Path, job: Job, result: Explanation) -> None:
    """scores.parquet, top.jsonl, manifest.json and page.html, each whole or not at all."""
    rows = sorted({int(row) for ranking in result.rankings for row in ranking.rows})
    ids = dict(zip(rows, job.corpus.ids(rows), strict=True))
    errors = job.rank_errors
    provenance = {
        "config": configuration(job.args),
        "versions": versions(),
        "weights": job.weights,
        "modules": [module.name for module in job.scorer.candidate_side.tracked],
        "left_out": job.scorer.left_out,
        "rank_errors": None if errors is None else errors.tolist(),
    }
    write_json(path / "manifest.json", provenance)
    write_scores(path / "scores.parquet", result.rankings, ids, provenance)
    write_shown(path / "top.jsonl", result.shown)
    write_page(path)
    (path / PARTIAL).unlink(missing_ok=True)
    print(f"results are in {path}")


def report(result: Explanation) -> None:
    """A table of proponents and one of opponents for each query."""
    for ranking in result.rankings[:PRINTED_QUERIES]:
        query = ranking.query
        answer = query.completion or "" if query.label is None else describe_label(query.label)
        print_query(query.prompt, answer, [document for document in result.shown if document.query_id == query.id])
    if len(result.rankings) > PRINTED_QUERIES:
        print(f"\n... and {len(result.rankings) - PRINTED_QUERIES} more queries, in the files of --output")
