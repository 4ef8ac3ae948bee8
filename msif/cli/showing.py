"""The documents that are shown for a query, with the parts of their scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tqdm import tqdm

from msif.attribution.contributions import Contributions, block_names
from msif.attribution.results import Ranking, Shown
from msif.cli.explain import Scored
from msif.cli.job import Job
from msif.data.tokens import pieces


def shown_documents(job: Job, scored: Scored) -> list[Shown]:
    """The top k proponents and opponents of each query, with the parts of their scores where the method has them."""
    shown: list[Shown] = []
    for number, ranking in enumerate(tqdm(scored.rankings, desc="explaining", unit="query", disable=None)):
        chosen = ranking.shown(job.args.top_k)
        if chosen:
            rows = [int(ranking.rows[place]) for _, place in chosen]
            shown.extend(_shown_for(job, scored.parts(number, rows), scored.ids, ranking, chosen))
    return shown


def _shown_for(
    job: Job,
    parts: Mapping[int, Contributions],
    ids: Mapping[int, int | str],
    ranking: Ranking,
    chosen: Sequence[tuple[str, int]],
) -> Iterator[Shown]:
    """The chosen documents of one query, and the parts of their scores that are known."""
    rows = [int(ranking.rows[place]) for _, place in chosen]
    tokens, blocks = _by_token(job, parts), _by_block(job, parts)
    texts = {
        row: job.format.text_of(values, f"row {row}")
        for row, values in job.corpus.rows(rows, columns=job.format.columns)
    }
    query = ranking.query
    for row, (kind, place) in zip(rows, chosen, strict=True):
        yield Shown(
            query_id=query.id,
            prompt=query.prompt,
            completion=query.completion,
            label=query.label,
            kind=kind,
            rank=place + 1,
            candidate_id=ids[row],
            score=float(ranking.scores[place]),
            text=texts[row],
            tokens=tokens.get(row, []),
            blocks=blocks.get(row, {}),
        )


def _by_token(job: Job, parts: Mapping[int, Contributions]) -> dict[int, list[tuple[str, float]]]:
    """Row number -> (token, its part) in the order of the text."""
    documents = job.documents(list(parts)).documents() if parts else ()
    result = {}
    for document in documents:
        words = pieces(job.candidate_model.tokenizer, document.input_ids.tolist())
        result[document.index] = list(zip(words, parts[document.index].tokens[0].tolist(), strict=True))
    return result


def _by_block(job: Job, parts: Mapping[int, Contributions]) -> dict[int, dict[str, float]]:
    """Row number -> block's name -> its part, the largest magnitudes first."""
    names = block_names(job.scorer.candidate_side.tracked)
    result = {}
    for row, part in parts.items():
        blocks = zip(names, part.blocks[0].tolist(), strict=True)
        result[row] = dict(sorted(blocks, key=lambda block: -abs(block[1])))
    return result
