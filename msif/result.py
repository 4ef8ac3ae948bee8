"""What came out of a run: rankings, the documents that are shown, files and a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from msif import distributed
from msif.answer_parts import Parts, answer_parts
from msif.atomic import write_json, write_json_lines
from msif.attribution.contributions import Contributions, block_names
from msif.attribution.results import Ranking, Shown, write_scores, write_shown
from msif.data.tokens import pieces
from msif.errors import MsifError, refuse_empty
from msif.job import Job, Scored
from msif.provenance import fingerprint_documents, versions
from msif.reporting.lexical import Overlap
from msif.scales import stage_scales
from msif.self_influence import self_influences, without_self_influence
from msif.told import short_fields, told_of

SCORES, TOP, MANIFEST, QUERIES = "scores.parquet", "top.jsonl", "manifest.json", "queries.jsonl"


@dataclass(frozen=True)
class Result:
    """Scores of queries × candidates, positive for a proponent, and the documents that are shown for each query.

    In a notebook it shows itself as the page that ``save`` writes.

    Attributes:
        rankings: of each query, all its candidates, best first.
        shown: the strongest proponents and opponents of each query, with their texts and the parts of their scores.
        ids: row number of the corpus -> what a candidate is called.
        provenance: configuration, versions, fingerprints, what was left out and why.
        told: what is known of each query beside its ranking (``msif.told``).
    """

    rankings: Sequence[Ranking]
    shown: Sequence[Shown]
    ids: Mapping[int, int | str]
    provenance: Mapping[str, Any]
    told: Sequence[Mapping[str, Any]] = ()

    def top(self, query: int | str = 0, k: int = 10, kind: str = "proponent") -> list[Shown]:
        """The first k documents that are shown for a query.

        Args:
            query: its number or id.
            kind: "proponent" or "opponent".

        Raises:
            MsifError: there is no such query or kind.
        """
        ranking = self._ranking(query)
        if k < 1:
            raise MsifError(f"k is {k}: ask for 1 document or more.")
        if kind not in ("proponent", "opponent"):
            raise MsifError(f"there is no kind '{kind}': ask for proponent or opponent.")
        return [one for one in self.shown if one.query_id == ranking.query.id and one.kind == kind][:k]

    def scores(self, query: int | str = 0) -> dict[int, float]:
        """Row number -> score, best first."""
        ranking = self._ranking(query)
        return dict(zip(ranking.rows.tolist(), ranking.scores.tolist(), strict=True))

    def _ranking(self, query: int | str) -> Ranking:
        if isinstance(query, int) and -len(self.rankings) <= query < len(self.rankings):
            return self.rankings[query]
        for ranking in self.rankings:
            if ranking.query.id == query:
                return ranking
        raise MsifError(f"there is no query {query!r}: there are {len(self.rankings)}, the first '{self._first}'.")

    @property
    def _first(self) -> str:
        return self.rankings[0].query.id

    def to_pandas(self) -> Any:
        """A tidy table, one row for each query and candidate: query_id, candidate_id, row, score, rank (from 1),
        share (of all scores of its sign), self_influence (NaN of what is not shown), prompt, answer.
        """
        import pandas

        own = {one.candidate_id: one.self_influence for one in self.shown if one.self_influence is not None}
        frames = [pandas.DataFrame(_columns(one, self.ids, own)) for one in self.rankings]
        return pandas.concat(frames, ignore_index=True)

    def save(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Writes scores.parquet, manifest.json, queries.jsonl, top.jsonl and page.html, each whole or not at all.

        Args:
            folder: a new one, or that of results with the same settings, queries and candidates.
            overwrite: whether it may be that of other results, which these then replace.

        Raises:
            MsifError: the folder holds other results or something else, or a file cannot be written.
        """
        from msif.reporting.page import write_page
        from msif.saved import check_folder, remove_what_tells_of_another

        refuse_empty(folder=folder)
        folder = Path(folder)
        check_folder(folder, self.provenance, self.rankings, self.ids, overwrite)
        remove_what_tells_of_another(folder)
        write_scores(folder / SCORES, self.rankings, self.ids, self.provenance)
        write_json(folder / MANIFEST, dict(self.provenance))
        write_json_lines(folder / QUERIES, self.told)
        write_shown(folder / TOP, self.shown)
        write_page(folder)
        return folder

    def _repr_html_(self) -> str:
        import html

        with TemporaryDirectory() as folder:
            page = (self.save(folder) / "page.html").read_text(encoding="utf-8")
        # in a frame that may run the page's own script and reach nothing else
        frame = 'sandbox="allow-scripts" title="Influence" style="width:100%;height:80vh;border:0"'
        return f'<iframe {frame} srcdoc="{html.escape(page)}"></iframe>'

    def __repr__(self) -> str:
        counts = {len(ranking.rows) for ranking in self.rankings}
        among = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
        return f"Result({len(self.rankings)} queries × {among} candidates, {len(self.shown)} documents shown)"


def _columns(ranking: Ranking, ids: Mapping[int, int | str], own: Mapping[int | str, float]) -> dict[str, Any]:
    query, scores = ranking.query, ranking.scores
    totals = np.where(scores > 0, scores[scores > 0].sum(), -scores[scores < 0].sum())
    return {
        "query_id": query.id,
        "candidate_id": [ids[row] for row in ranking.rows.tolist()],
        "row": ranking.rows,
        "score": scores,
        "rank": np.arange(1, len(scores) + 1),
        "share": np.divide(scores, totals, out=np.zeros(len(scores)), where=totals != 0),
        "self_influence": [own.get(ids[row], np.nan) for row in ranking.rows.tolist()],
        "prompt": query.prompt,
        "answer": query.completion if query.label is None else str(query.label),
    }


def result_of(job: Job, scored: Scored) -> Result:
    """With the parts of the scores of what is shown."""
    shown, told = explained(job, scored)
    return Result(scored.rankings, shown, scored.ids, provenance_of(job, scored), told)


def explained(job: Job, scored: Scored) -> tuple[list[Shown], list[dict[str, Any]]]:
    """The documents that are shown, and what is known of the queries."""
    queries = [ranking.query for ranking in scored.rankings]
    overlap = scored.words.to_show() if distributed.leads() else None
    split = answer_parts(job, scored)
    shown = shown_documents(job, scored, overlap, split.parts)
    own = {scored.ids[row]: value for row, value in self_influences(job, scored).items()}
    shown = [replace(one, self_influence=own.get(one.candidate_id)) for one in shown]
    return shown, told_of(job, queries, overlap, split.reasons)


def provenance_of(job: Job, scored: Scored) -> dict[str, Any]:
    errors = job.rank_errors
    rows = np.unique(np.concatenate([ranking.rows for ranking in scored.rankings]))
    return {
        "config": dict(job.settings),
        "versions": versions(),
        "weights": job.weights,
        "documents": fingerprint_documents(job.corpus, job.format, rows.tolist()),
        "modules": [module.name for module in job.scorer.candidate_side.tracked],
        "left_out": job.scorer.left_out,
        "stages": stage_scales(job),
        "no_self_influence": without_self_influence(job),
        "rank_errors": None if errors is None else errors.tolist(),
    }


def shown_documents(
    job: Job, scored: Scored, overlap: Overlap | None = None, split: Mapping[int, Parts] | None = None
) -> list[Shown]:
    """The top k proponents and opponents of each query, with the parts of their scores where the method has them."""
    shown: list[Shown] = []
    for number, ranking in enumerate(scored.rankings):
        chosen = ranking.shown(job.options.top_k)
        if chosen:
            rows = [int(ranking.rows[place]) for _, place in chosen]
            shared = {} if overlap is None else overlap.of(number, rows)
            by_answer = _scaled((split or {}).get(number, {}), ranking.scale)
            for one in _shown_for(job, scored.parts(number, rows), scored.ids, ranking, chosen):
                row = int(ranking.rows[one.rank - 1])
                shown.append(replace(one, lexical=shared.get(row), by_answer=by_answer.get(row, [])))
    return shown


def _scaled(parts: Parts, factor: float) -> Parts:
    if factor == 1.0:
        return parts
    return {row: [[factor * part for part in own] for own in split] for row, split in parts.items()}


def _shown_for(
    job: Job,
    parts: Mapping[int, Contributions],
    ids: Mapping[int, int | str],
    ranking: Ranking,
    chosen: Sequence[tuple[str, int]],
) -> Iterator[Shown]:
    """The chosen documents of one query, and the parts of their scores that are known."""
    rows = [int(ranking.rows[place]) for _, place in chosen]
    parts = {row: part.scaled(ranking.scale) for row, part in parts.items()}
    tokens, blocks = _by_token(job, parts), _by_block(job, parts)
    texts, fields = {}, {}
    for row, values in job.corpus.rows(rows):
        texts[row] = job.format.text_of(values, f"row {row}")
        fields[row] = short_fields(values, ["id", *job.format.columns])
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
            prior=0.0 if ranking.prior is None else float(ranking.prior[place]),
            text=texts[row],
            tokens=tokens.get(row, []),
            blocks=blocks.get(row, {}),
            fields=fields[row],
            norm=parts[row].norm if row in parts else None,
        )


def _by_token(job: Job, parts: Mapping[int, Contributions]) -> dict[int, list[tuple[str, float]]]:
    """Row number -> (token, its part) in the order of the text."""
    documents = job.documents(list(parts)).documents() if parts else ()
    result = {}
    for document in documents:
        words = pieces(job.first.loaded.tokenizer, document.input_ids.tolist())
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
