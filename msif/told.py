"""What is known of queries beside their rankings: fields of their data, the model's certainty, words in common."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from msif import distributed
from msif.curvature.inputs import device_and_dtype
from msif.data.batching import batches_of
from msif.data.corpus import load_corpus
from msif.data.ids import id_text
from msif.data.queries import Query
from msif.data.tokens import pieces
from msif.errors import MsifError
from msif.job import Job
from msif.models.objectives import CausalLM, SequenceClassification
from msif.reporting.lexical import Overlap

log = logging.getLogger(__name__)

LONGEST = 200  # characters of a field that is kept, and items of a list
OWN = ("id", "prompt", "completion", "messages", "text", "label")


def told_of(
    job: Job, queries: Sequence[Query], overlap: Overlap | None, unsplit: Mapping[int, str]
) -> list[dict[str, Any]]:
    """One entry for each query: id, prompt, completion, label, fields, tokens, unsplit and occurrences.

    ``tokens`` are those of the answer with the logarithms of their probabilities, and ``occurrences`` is the number of
    documents in which the answer stands; each is None where it is not known. ``unsplit`` says why scores are not split
    by the answer's tokens.
    """
    fields = _fields_of_queries(job)
    certain = distributed.computed(lambda: _certainties(job, queries))
    return [
        {
            "id": query.id,
            "prompt": query.prompt,
            "completion": query.completion,
            "label": query.label,
            "fields": fields.get(query.id, {}),
            "tokens": tokens,
            "unsplit": unsplit.get(number),
            "occurrences": None if overlap is None or query.completion is None else overlap.occurrences[number],
            "documents": None if overlap is None else overlap.documents,
        }
        for number, (query, tokens) in enumerate(zip(queries, certain, strict=True))
    ]


def short_fields(row: Mapping[str, Any], left_out: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a row that a line can hold."""
    return {name: value for name, value in row.items() if name not in left_out and _is_short(value)}


def _is_short(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return 0 < len(value) <= LONGEST and all(_is_short(one) and not isinstance(one, (list, tuple)) for one in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, (bool, int)) or (isinstance(value, str) and 0 < len(value) <= LONGEST)


def _fields_of_queries(job: Job) -> dict[str, dict[str, Any]]:
    source = job.settings.get("queries")
    if not isinstance(source, (str, Path)):
        return {}
    try:
        corpus = load_corpus(str(source))
        rows = zip(corpus.rows(), corpus.ids(), strict=True)
        return {id_text(id): short_fields(row, OWN) for (_, row), id in rows}
    except MsifError as error:  # it was there when the run began
        log.warning("the fields of the queries are not shown: %s", error)
        return {}


def _certainties(job: Job, queries: Sequence[Query]) -> list[list[tuple[str, float]] | None]:
    """Of each query (token, log of its probability) of its answer, by the model that is asked."""
    side = job.scorer.query_side
    if not isinstance(side.objective, (CausalLM, SequenceClassification)):
        return [None] * len(queries)
    device, _ = device_and_dtype(side.model)
    found: dict[int, list[float]] = {}
    documents = job.encoded(queries)
    with torch.no_grad():
        for batch in batches_of(documents, job.options.batch_tokens):
            for place, values in _log_probabilities(side, batch.to(device)):
                found[place] = values
    if isinstance(side.objective, SequenceClassification):
        return [[("", found[place][0])] for place in range(len(queries))]
    tokenizer = job.asked.loaded.tokenizer
    certain: list[list[tuple[str, float]] | None] = []
    for place, document in enumerate(documents):
        words = pieces(tokenizer, document.input_ids.tolist())
        said = [word for word, own in zip(words, document.supervised.tolist(), strict=True) if own]
        certain.append(list(zip(said, found[place], strict=True)))
    return certain


def _log_probabilities(side: Any, batch: Any) -> Iterator[tuple[int, list[float]]]:
    """(the query's place, the log of each supervised prediction's probability)."""
    outputs = side.objective.outputs(side.model, batch)
    kept = side.objective.predicting(batch)
    targets = side.objective.targets(batch)
    for row, place in enumerate(batch.indices.tolist()):
        own = kept[row]
        chosen = outputs[row][own] if outputs.dim() == 3 else outputs[row][None]
        wanted = targets[row][own] if outputs.dim() == 3 else targets[row][None]
        log_p = torch.log_softmax(chosen.float(), -1).gather(-1, wanted[:, None])[:, 0]
        yield place, [round(value, 5) for value in log_p.tolist()]
