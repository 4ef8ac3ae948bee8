"""The self-influence of the documents that a run shows."""

from __future__ import annotations

from collections.abc import Sequence

from msif import distributed
from msif.attribution.chunks import capacities
from msif.attribution.self_influence import SelfScorer
from msif.data.batching import batches_anew
from msif.data.documents import Document
from msif.job import Job, Scored
from msif.progress import progress

SOLVED = "self-influence is not there: the inverse is solved for, and each document would take a run of the solver"


def without_self_influence(job: Job) -> str | None:
    """Why a method that has an inverse has no self-influence here; None where it has, or the method has no inverse."""
    return SOLVED if isinstance(job.scorer, SelfScorer) and job.scorer.solves else None


def self_influences(job: Job, scored: Scored) -> dict[int, float]:
    """Row number -> self-influence of each document that is shown; empty of methods that have none, or solve for it.

    One forward and one backward pass over what is shown, and for each document what a query's vector takes.
    """
    if not isinstance(job.scorer, SelfScorer) or job.scorer.solves:
        return {}
    top = job.options.top_k
    rows = {int(one.rows[place]) for one in scored.rankings for _, place in one.shown(top)}
    if not rows:
        return {}
    documents = list(job.documents(sorted(rows)).documents())
    at_once, _ = capacities(job.scorer.cost(), job.room)
    found: dict[int, float] = {}
    for start in progress(range(0, len(documents), at_once), desc="self-influence", unit="chunk"):
        chunk = documents[start : start + at_once]
        values = distributed.computed(lambda chunk=chunk: _of(job, chunk))  # type: ignore[misc]
        found |= {document.index: value for document, value in zip(chunk, values, strict=True)}
    return found


def _of(job: Job, documents: Sequence[Document]) -> list[float]:
    assert isinstance(job.scorer, SelfScorer)
    return job.scorer.self_influence(batches_anew(documents, job.options.batch_tokens)).tolist()
