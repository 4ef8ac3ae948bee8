"""Which words of a document carry which token of an answer: scores split once more, by the answer's tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from msif import distributed
from msif.attribution.chunks import capacities
from msif.attribution.scorers import Explainer
from msif.attribution.splitting import Splittable, frames_of, split_vectors, why_not_split
from msif.data.batching import batches_anew
from msif.data.documents import Document
from msif.job import Job, Scored

LONGEST = 32  # tokens of an answer that is split
ALWAYS = 256  # gradients that are worth it in any case

Parts = Mapping[int, list[list[float]]]
"""Row number -> for each token of the answer its parts of the document's tokens."""


@dataclass(frozen=True)
class Split:
    """
    Attributes:
        parts: the place of a query -> the parts of what is shown for it.
        reasons: the place of a query -> why there are none.
    """

    parts: Mapping[int, Parts] = field(default_factory=dict)
    reasons: Mapping[int, str] = field(default_factory=dict)


def answer_parts(job: Job, scored: Scored) -> Split:
    """Of all queries whose answers have several tokens, and whose scores are sums over words.

    What is measured of an answer is a sum over its tokens (its loss, margin or logit), so its gradient, the query's
    vector and the score are (``msif.attribution.splitting``). Each token takes a vector of its own, and what is shown
    one more pass. Nothing is split where that would be more work than the scores were, by the number of gradients, nor
    by an inverse that is solved for: a token's vector would take what the query's did.
    """
    if job.asked.task != "lm" or not isinstance(job.scorer, Explainer):
        return Split()
    shown = [[int(one.rows[place]) for _, place in one.shown(job.options.top_k)] for one in scored.rankings]
    wholes = job.encoded([ranking.query for ranking in scored.rankings])
    asked = {place: whole for place, whole in enumerate(wholes) if shown[place] and whole.supervised.sum() > 1}
    if reason := why_not_split(job.scorer):
        return Split(reasons=dict.fromkeys(asked, reason))
    reasons = {
        place: f"the answer has {count} tokens, and those of up to {LONGEST} are split"
        for place, whole in asked.items()
        if (count := int(whole.supervised.sum())) > LONGEST
    }
    split = {place: whole for place, whole in asked.items() if place not in reasons}
    work = sum(int(whole.supervised.sum()) + len(shown[place]) for place, whole in split.items())
    if work > max(ALWAYS, len(scored.ids)):
        return Split(reasons=reasons | dict.fromkeys(split, "it would take longer than all scores did"))
    return Split({place: _parts_for(job, whole, shown[place]) for place, whole in split.items()}, reasons)


def _one_by_one(document: Document) -> list[Document]:
    """For each token of the answer a document in which it alone counts."""
    places = np.flatnonzero(document.supervised)
    alone = np.eye(len(document), dtype=bool)[places]
    return [replace(document, supervised=mask) for mask in alone]


def _parts_for(job: Job, whole: Document, rows: Sequence[int]) -> Parts:
    scorer, tokens, size = job.scorer, _one_by_one(whole), job.options.batch_tokens
    assert isinstance(scorer, Splittable)
    found: dict[int, list[list[float]]] = {row: [] for row in rows}
    frames = distributed.computed(lambda: frames_of(scorer, batches_anew([whole], size)))
    at_once, _ = capacities(scorer.cost(), job.room)
    for start in range(0, len(tokens), at_once):
        chunk = tokens[start : start + at_once]
        split = partial(split_vectors, scorer, batches_anew(chunk, size), frames)
        for parts in scorer.explain(distributed.computed(split), job.documents(sorted(set(rows)))):
            found[parts.index] += [[float(f"{value:.4g}") for value in own] for own in parts.tokens.tolist()]
    return found
