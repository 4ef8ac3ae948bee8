"""Which words of a document carry which token of an answer: scores split once more, by the answer's tokens."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from msif import distributed
from msif.attribution.chunks import chunks_of
from msif.attribution.scorers import InfluenceScorer
from msif.data.documents import Document
from msif.errors import MsifError
from msif.job import Job, Scored

log = logging.getLogger(__name__)

LONGEST = 32  # tokens of an answer that is split
ALWAYS = 256  # gradients that are worth it in any case

Parts = Mapping[int, list[list[float]]]
"""Row number -> for each token of the answer its parts of the document's tokens."""


def answer_parts(job: Job, scored: Scored) -> dict[int, Parts]:
    """The place of a query -> the parts of what is shown for it; of answers of several tokens only.

    What is measured of an answer is a sum over its tokens (its loss, margin or logit), so its gradient, the query's
    vector and the score are. Each token takes a vector of its own, and what is shown one more pass. Nothing is split
    where that would be more work than the scores were, by the number of gradients, nor where a score is no such sum:
    over the norm of its vector, of a low rank, or by an inverse that is solved for.
    """
    if not _splits(job):
        return {}
    queries = [ranking.query for ranking in scored.rankings]
    shown = [[int(one.rows[place]) for _, place in one.shown(job.options.top_k)] for one in scored.rankings]
    asked = {place: _one_by_one(document) for place, document in enumerate(job.encoded(queries))}
    split = {place: own for place, own in asked.items() if shown[place] and 1 < len(own) <= LONGEST}
    work = sum(len(own) + len(shown[place]) for place, own in split.items())
    if work > max(ALWAYS, len(scored.ids)):
        log.info("scores are not split by the answers' tokens: it would take longer than they did")
        return {}
    return {place: _parts_for(job, own, shown[place]) for place, own in split.items()}


def _splits(job: Job) -> bool:
    scorer = job.scorer
    return (
        type(scorer) is InfluenceScorer
        and job.asked.task == "lm"
        and isinstance(scorer.measurement, str)
        and scorer.normalize != "both"
        and scorer.query_rank is None
        and all(preconditioner.blockwise for preconditioner in scorer.preconditioners)
    )


def _one_by_one(document: Document) -> list[Document]:
    """For each token of the answer a document in which it alone counts."""
    places = np.flatnonzero(document.supervised)
    alone = np.eye(len(document), dtype=bool)[places]
    return [replace(document, index=number, supervised=mask) for number, mask in enumerate(alone)]


def _parts_for(job: Job, tokens: Sequence[Document], rows: Sequence[int]) -> Parts:
    scorer = job.scorer
    assert isinstance(scorer, InfluenceScorer)
    found: dict[int, list[list[float]]] = {row: [] for row in rows}
    try:
        chunks = chunks_of(tokens, scorer.cost(), job.room, job.options.batch_tokens)
    except MsifError:  # one vector fitted while the scores were made; there is no room beside it
        return {}
    for _, batches in chunks:
        vectors = distributed.computed(lambda batches=batches: scorer.query_vectors(batches))  # type: ignore[misc]
        for parts in scorer.explain(vectors, job.documents(sorted(set(rows)))):
            found[parts.index] += [[float(f"{value:.4g}") for value in own] for own in parts.tokens.tolist()]
    return found
