"""A run of the influence command, loaded and checked."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from msif.attribution.chunks import chunks_of
from msif.attribution.partial import PartialScores, partial_file
from msif.attribution.scorers import PairScorer
from msif.candidates.build import build_selector
from msif.candidates.selection import parse_candidates
from msif.cli.parsing import NOT_RESULTS, configuration
from msif.curvature.residency import room_beside
from msif.curvature.store import read_manifest
from msif.data.batching import TokenBatches
from msif.data.corpus import Corpus
from msif.data.documents import Batch, Document
from msif.data.encoding import fingerprint_tokenizer
from msif.data.format import Format
from msif.data.queries import Query, ask, encode_queries
from msif.errors import MsifError, UnusableError
from msif.models.answers import greedy_completion, predicted_label
from msif.models.loading import LoadedModel
from msif.models.objectives import DocumentHead
from msif.models.roles import label_arguments, positions
from msif.models.vocabulary import embedding_rows, refuse_unknown

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """Everything loaded and checked, nothing computed yet.

    Attributes:
        queries: in the order of the file, some still without an answer.
        candidate_model: the model whose gradients the candidates give; its tokenizer reads them.
        query_model: the model on which queries are measured.
        answering_model: the model that answers where no answer is given.
        weights: fingerprints of the models that take part.
        index: what the method's own curvature is taken from, if it has one.
        solved: the stages' own data, where their inverses are solved for on it.
    """

    args: argparse.Namespace
    corpus: Corpus
    format: Format
    queries: list[Query]
    candidate_model: LoadedModel
    query_model: LoadedModel
    answering_model: LoadedModel
    scorer: PairScorer
    weights: list[str]
    index: TokenBatches | None = None
    solved: Sequence[TokenBatches] = ()

    def documents(self, rows: Sequence[int]) -> TokenBatches:
        """The named rows of the corpus as batches."""
        args = self.args
        limits = {"max_length": args.max_length, "batch_tokens": args.batch_tokens}
        return TokenBatches(self.corpus, self.format, self.candidate_model.tokenizer, indices=rows, **limits)

    @property
    def rank_errors(self) -> Any:
        """What --query-rank left out of the query vectors; None where all of them was kept."""
        return getattr(self.scorer, "rank_errors", None)

    def checked(self) -> Job:
        """Without the queries that are seen, before any work, to be impossible to explain; they are named.

        Raises:
            MsifError: a query's label or messages are wrong, or no query is left.
        """
        return replace(self, queries=_usable(self.queries, self._check))

    def answered(self) -> list[Query]:
        """The queries, with the model's own answers where they have none; those that get none are left out, and named.

        Raises:
            MsifError: no query is left.
        """
        queries = _usable(self.queries, self._answer, desc="answers")
        given = {query.id for query in self.queries if query.answered}
        again = [query for query in queries if query.id not in given and query.completion and not query.completion_ids]
        if again:
            log.warning(
                "%d answers are tokenised again, by the tokenizer of the model they are measured on", len(again)
            )
        return queries

    def _check(self, query: Query) -> Query:
        if query.answered:
            self.encoded([query])
        elif self.args.task == "lm":
            count, limit = len(ask(query, self.answering_model.tokenizer)), self.args.max_length
            if count >= limit:
                raise UnusableError(
                    f"the prompt has {count} tokens, and --max-length {limit} leaves no room for an answer: raise it, "
                    "or shorten the query."
                )
        return query

    def _answer(self, query: Query) -> Query:
        """A query without an answer gets the model's own."""
        if query.answered:
            return query
        answered = self._ask(query)
        self.encoded([answered])
        return answered

    def _ask(self, query: Query) -> Query:
        last, args = self.answering_model, self.args
        if args.task == "classification":
            return replace(query, label=predicted_label(last.model, last.tokenizer, query.prompt, args.max_length))
        given = tuple(ask(query, last.tokenizer))
        answer = greedy_completion(last.model, last.tokenizer, given, args.max_new_tokens, positions(last))
        if _same_tokens(last.tokenizer, self.query_model.tokenizer, [*given, *answer.ids]):
            return replace(query, completion=answer.text, prompt_ids=given, completion_ids=answer.ids)
        turn = {"role": "assistant", "content": answer.text}
        messages = query.messages and [*query.messages, turn]
        return replace(query, completion=answer.text, messages=messages)

    def chunks(self, queries: Sequence[Query]) -> list[tuple[range, list[Batch]]]:
        """For each pass over candidates its queries and their batches, as many as fit into memory.

        Raises:
            MsifError: not one fits.
        """
        return chunks_of(self.encoded(queries), self.scorer.cost(), self.room(), self.args.batch_tokens)

    def room(self) -> int:
        """Bytes for query vectors.

        Raises:
            MsifError: not enough for one.
        """
        models = [model.model for model in (self.candidate_model, self.query_model, self.answering_model)]
        width = max(model.config.get_text_config().vocab_size for model in models)
        return room_beside(models, width * self.args.batch_tokens, self.args.memory)

    def encoded(self, queries: Sequence[Query]) -> list[Document]:
        """Queries with answers as documents, numbered as in the list."""
        classifies = isinstance(self.scorer.query_side.objective, DocumentHead)
        task = "classification" if classifies else "lm"
        labels = label_arguments(self.query_model, task)
        limits = {"max_length": self.args.max_length, "task": task, **labels}
        tokenizer, rows = self.query_model.tokenizer, embedding_rows(self.query_model.model)
        documents = encode_queries(queries, tokenizer, **limits)
        for document in documents:
            refuse_unknown(document.input_ids, rows, tokenizer, f"query '{queries[document.index].id}'")
        return documents

    def select(self, queries: Sequence[Query]) -> list[np.ndarray]:
        """Each query's candidates, row numbers; rows without a text are no candidates."""
        spec = parse_candidates(self.args.candidates)
        if spec.all:
            return [np.arange(len(self.corpus))] * len(queries)
        texts = self.format.texts(self.corpus)
        rows = np.flatnonzero([bool(text.strip()) for text in texts])
        if len(rows) < len(texts):
            first = next(row for row, text in enumerate(texts) if not text.strip())
            count, name = len(texts) - len(rows), self.corpus.name
            log.warning("%d empty rows of '%s' are no candidates; the first is row %d", count, name, first)
        selector = build_selector(spec, embedding_model=self.args.embedding_model, progress=not self.args.quiet)
        chosen = selector.select([query.text for query in queries], [texts[row] for row in rows])
        return [rows[places] for places in chosen]

    def partial_scores(self, rows: Sequence[int], queries: Sequence[Query], number: int) -> PartialScores:
        """What an interrupted run of the same job has scored in a pass; in memory only without an output folder."""
        if not self.args.output:
            return PartialScores()
        return PartialScores(Path(self.args.output) / partial_file(number), lambda: self._identity(rows, queries))

    def _identity(self, rows: Sequence[int], queries: Sequence[Query]) -> dict[str, Any]:
        """All that scores depend on."""
        folders = (self.args.pretrained_factors, self.args.finetuned_factors)
        return {
            "config": {key: value for key, value in configuration(self.args).items() if key not in NOT_RESULTS},
            "weights": self.weights,
            "tokenizers": [
                fingerprint_tokenizer(model.tokenizer) for model in (self.candidate_model, self.query_model)
            ],
            "factors": [read_manifest(Path(folder))["run"] for folder in folders if folder],
            "corpus": self.corpus.fingerprint_of(rows, self.format.columns),
            "index": self.index and {**self.index.identity(), "batch_tokens": None},
            "queries": [vars(query) for query in queries],
            "rows": [int(row) for row in rows],
        }


def _usable(queries: Sequence[Query], take: Callable[[Query], Query], desc: str | None = None) -> list[Query]:
    """What becomes of the queries, without those that cannot be explained; these are named, if any other is left."""
    kept: list[Query] = []
    reasons: list[tuple[str, UnusableError]] = []
    for query in tqdm(queries, desc=desc, disable=None if desc else True):
        try:
            kept.append(take(query))
        except UnusableError as reason:
            reasons.append((query.id, reason))
    if not kept:
        first, why = reasons[0]
        if len(reasons) == 1:
            raise why
        raise MsifError(f"None of the {len(reasons)} queries can be explained; of the first, '{first}': {why}")
    for id, why in reasons:
        log.warning("query '%s' is left out: %s", id, why)
    return kept


def _same_tokens(one: Any, other: Any, ids: list[int]) -> bool:
    """Whether two tokenizers mean the same by some ids."""
    return one is other or one.convert_ids_to_tokens(ids) == other.convert_ids_to_tokens(ids)
