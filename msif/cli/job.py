"""A run of the influence command, loaded and checked."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from msif.attribution.estimate import describe_scoring
from msif.attribution.partial import PARTIAL, PartialScores
from msif.attribution.scorers import PairScorer
from msif.candidates.build import build_selector
from msif.candidates.selection import parse_candidates
from msif.cli.models import label2id, positions
from msif.cli.parsing import configuration
from msif.curvature.store import read_manifest
from msif.data.batching import TokenBatches, batches_of
from msif.data.corpus import Corpus
from msif.data.documents import Batch
from msif.data.format import Format
from msif.data.queries import Query, encode_queries
from msif.models.answers import greedy_completion, predicted_label
from msif.models.loading import LoadedModel
from msif.models.objectives import SequenceClassification


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

    def documents(self, rows: Sequence[int]) -> TokenBatches:
        """The named rows of the corpus as batches."""
        args = self.args
        limits = {"max_length": args.max_length, "batch_tokens": args.batch_tokens}
        return TokenBatches(self.corpus, self.format, self.candidate_model.tokenizer, indices=rows, **limits)

    @property
    def rank_errors(self) -> Any:
        """What --query-rank left out of the query vectors; None where all of them was kept."""
        return getattr(self.scorer, "rank_errors", None)

    def answered(self) -> list[Query]:
        """The queries, with the model's own answers where they have none."""
        model, args = self.answering_model, self.args
        return [_answered(query, model, args) for query in tqdm(self.queries, desc="answers", disable=None)]

    def encoded(self, queries: Sequence[Query]) -> list[Batch]:
        """Queries with answers as batches, numbered as in the list."""
        classifies = isinstance(self.scorer.query_side.objective, SequenceClassification)
        task = "classification" if classifies else "lm"
        names = label2id(self.query_model, task)
        limits = {"max_length": self.args.max_length, "task": task, "label2id": names}
        return batches_of(encode_queries(queries, self.query_model.tokenizer, **limits), self.args.batch_tokens)

    def select(self, queries: Sequence[Query]) -> list[np.ndarray]:
        """Each query's candidates, row numbers."""
        spec = parse_candidates(self.args.candidates)
        if spec.all:
            return [np.arange(len(self.corpus))] * len(queries)
        selector = build_selector(spec, embedding_model=self.args.embedding_model, progress=not self.args.quiet)
        return selector.select([query.text for query in queries], self.format.texts(self.corpus))

    def partial_scores(self, rows: Sequence[int], queries: Sequence[Query]) -> PartialScores:
        """What an interrupted run of the same job has scored; in memory only without an output folder."""
        if not self.args.output:
            return PartialScores()
        return PartialScores(Path(self.args.output) / PARTIAL, lambda: self._identity(rows, queries))

    def _identity(self, rows: Sequence[int], queries: Sequence[Query]) -> dict[str, Any]:
        """All that scores depend on."""
        folders = (self.args.pretrained_factors, self.args.finetuned_factors)
        return {
            "config": configuration(self.args),
            "weights": self.weights,
            "factors": [read_manifest(Path(folder))["run"] for folder in folders if folder],
            "corpus": self.corpus.fingerprint_of(rows, self.format.columns),
            "index": self.index and self.index.identity(),
            "queries": [vars(query) for query in queries],
            "rows": [int(row) for row in rows],
        }

    def describe(self) -> str:
        """What a run would take, from one batch of candidates."""
        spec = parse_candidates(self.args.candidates)
        asked = len(self.queries) * sum(count for _, count in spec.parts)
        candidates = len(self.corpus) if spec.all else min(len(self.corpus), asked)
        batch = next(iter(self.documents(range(min(len(self.corpus), 64)))))
        factors = [self.args.pretrained_factors, self.args.finetuned_factors]
        index = 0 if self.index is None else self.index.size or 0
        return describe_scoring(self.scorer, batch, len(self.queries), candidates, factors, index)


def _answered(query: Query, last: LoadedModel, args: argparse.Namespace) -> Query:
    """A query without an answer gets the model's own."""
    if args.task == "classification" and query.label is None:
        return replace(query, label=predicted_label(last.model, last.tokenizer, query.prompt, args.max_length))
    if args.task == "lm" and query.completion is None:
        answer = greedy_completion(last.model, last.tokenizer, query.prompt, args.max_new_tokens, positions(last))
        return replace(query, completion=answer)
    return query
