"""The influence command's work: load and check everything, then select, score and explain."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from msif.attribution.contributions import block_names
from msif.attribution.estimate import describe_scoring
from msif.attribution.partial import PARTIAL, PartialScores
from msif.attribution.results import Ranking, Shown, rank
from msif.attribution.scorers import InfluenceScorer
from msif.attribution.scoring import QueryVectors
from msif.attribution.stages import Damping, build_scorer
from msif.candidates.build import build_selector
from msif.candidates.selection import parse_candidates
from msif.cli.flags import field_arguments
from msif.cli.models import label2id, longest, positions
from msif.cli.parsing import configuration
from msif.cli.stage import ihvp_of, stage_of
from msif.curvature.store import FactorStore, read_manifest
from msif.data.batching import TokenBatches, batches_of
from msif.data.corpus import Corpus, load_corpus
from msif.data.documents import Batch
from msif.data.format import Format, check_rows, choose_format
from msif.data.queries import Query, encode_queries, load_queries
from msif.models.answers import greedy_completion, predicted_label
from msif.models.loading import LoadedModel, load_model, resolve_device
from msif.models.objectives import SequenceClassification

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
    """

    args: argparse.Namespace
    corpus: Corpus
    format: Format
    queries: list[Query]
    candidate_model: LoadedModel
    query_model: LoadedModel
    answering_model: LoadedModel
    scorer: InfluenceScorer
    weights: list[str]

    def documents(self, rows: Sequence[int]) -> TokenBatches:
        """The named rows of the corpus as batches."""
        args = self.args
        limits = {"max_length": args.max_length, "batch_tokens": args.batch_tokens}
        return TokenBatches(self.corpus, self.format, self.candidate_model.tokenizer, indices=rows, **limits)

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
            "corpus": self.corpus.fingerprint(self.format.columns),
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
        return describe_scoring(self.scorer, batch, len(self.queries), candidates, factors)


@dataclass(frozen=True)
class Explanation:
    """The result of a job: each query's ranking, and the documents to show."""

    rankings: list[Ranking]
    shown: list[Shown]


def prepare(args: argparse.Namespace) -> Job:
    """Loads and checks in the order of cost, cheapest first.

    Raises:
        MsifError: the first thing found wrong.
    """
    resolve_device(args.device)
    paths = (args.pretrained_factors, args.finetuned_factors)
    pretrained_store, finetuned_store = (FactorStore.open(path) if path else None for path in paths)
    queries = _queries(args)
    corpus = load_corpus(args.corpus, split=args.split, max_examples=args.max_examples)
    # candidates are a classifier's documents only where no pre-trained model is given
    corpus_task = "lm" if args.pretrained else args.task
    choose_format(corpus, task=corpus_task, **field_arguments(args))
    pretrained = load_model(args.pretrained, "lm", args.dtype, args.device) if args.pretrained else None
    finetuned = load_model(args.finetuned, args.task, args.dtype, args.device) if args.finetuned else None
    first, last = pretrained or finetuned, finetuned or pretrained
    assert first is not None and last is not None
    length = longest(args.max_length, [model for model in (pretrained, finetuned) if model])
    args = argparse.Namespace(**{**vars(args), "max_length": length})  # a copy: the given one is written down
    format = choose_format(corpus, task=corpus_task, label2id=label2id(first, corpus_task), **field_arguments(args))
    check_rows(corpus, format)
    damping = Damping(args.damping, args.damping_scale, args.alpha)
    rates = list(args.learning_rate_sum or [None, None])
    first_stage = stage_of("pretrained", pretrained, pretrained_store, "lm", args, damping.needs_tau(False), rates[0])
    needed = damping.needs_tau(pretrained is not None)
    last_stage = stage_of("finetuned", finetuned, finetuned_store, args.task, args, needed, rates[-1])
    options = {} if args.method == "cosine" else {"normalize": args.normalize}
    options |= {"measurement": args.measurement, "query_rank": args.query_rank}
    scorer = build_scorer(args.method, first_stage, last_stage, damping, ihvp_of(args), **options)
    for name, reason in scorer.left_out.items():
        log.info("left out: %s (%s)", name, reason)
    weights = [model.weights for model in (pretrained, finetuned) if model]
    measured = first if args.method == "single-stage" else last
    job = Job(args, corpus, format, queries, first, measured, last, scorer, weights)
    job.encoded([query for query in queries if query.completion is not None or query.label is not None])
    return job


def _queries(args: argparse.Namespace) -> list[Query]:
    if args.queries:
        return load_queries(args.queries, args.task)
    if args.task == "classification":
        return [Query("0", args.query, label=args.completion)]
    return [Query("0", args.query, args.completion)]


def _answered(query: Query, last: LoadedModel, args: argparse.Namespace) -> Query:
    """A query without an answer gets the model's own."""
    if args.task == "classification" and query.label is None:
        return replace(query, label=predicted_label(last.model, last.tokenizer, query.prompt, args.max_length))
    if args.task == "lm" and query.completion is None:
        answer = greedy_completion(last.model, last.tokenizer, query.prompt, args.max_new_tokens, positions(last))
        return replace(query, completion=answer)
    return query


def explain(job: Job) -> Explanation:
    """Candidates, scores, and the parts of the scores of those that will be shown."""
    queries = job.answered()
    query_batches = job.encoded(queries)
    candidates = job.select(queries)
    rows = sorted({int(row) for selected in candidates for row in selected})
    log.info("scoring %d of %d documents for %d queries", len(rows), len(job.corpus), len(queries))
    vectors = job.scorer.query_vectors(query_batches)
    if job.scorer.rank_errors is not None:
        worst = float(job.scorer.rank_errors.max())
        log.info("rank %d leaves out %.2g of the query vectors' norm at worst", job.args.query_rank, worst)
    partial = job.partial_scores(rows, queries)
    scores = job.scorer.score_vectors(vectors, job.documents(rows), partial)
    rankings = rank(scores, queries, candidates)
    return Explanation(rankings, _shown(job, vectors, rankings))


def _shown(job: Job, vectors: Mapping[str, QueryVectors], rankings: Sequence[Ranking]) -> list[Shown]:
    """The top k proponents and opponents of each query, with the parts of their scores."""
    shown: list[Shown] = []
    for number, ranking in enumerate(tqdm(rankings, desc="explaining", unit="query", disable=None)):
        chosen = _pick(ranking, job.args.top_k)
        if chosen:
            own = {name: v.only(number) for name, v in vectors.items()}
            shown.extend(_shown_for(job, own, ranking, chosen))
    return shown


def _shown_for(
    job: Job, vectors: dict[str, QueryVectors], ranking: Ranking, chosen: Sequence[tuple[str, int]]
) -> Iterator[Shown]:
    """The chosen documents of one query; ``vectors`` are that query's."""
    rows = [int(ranking.rows[place]) for _, place in chosen]
    parts = {part.index: part for part in job.scorer.explain(vectors, job.documents(rows))}
    documents = {document.index: document for document in job.documents(rows).documents()}
    texts = {row: job.format.text_of(values, f"row {row}") for row, values in job.corpus.rows(rows)}
    ids = dict(zip(rows, job.corpus.ids(rows), strict=True))
    names = block_names(job.scorer.candidate_side.tracked)
    query = ranking.query
    for row, (kind, place) in zip(rows, chosen, strict=True):
        words = [str(job.candidate_model.tokenizer.decode([int(token)])) for token in documents[row].input_ids]
        blocks = zip(names, parts[row].blocks[0].tolist(), strict=True)
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
            tokens=list(zip(words, parts[row].tokens[0].tolist(), strict=True)),
            blocks=dict(sorted(blocks, key=lambda block: -abs(block[1]))),
        )


def _pick(ranking: Ranking, k: int) -> list[tuple[str, int]]:
    """(kind, place) of the first k with positive scores, and of the last k with negative ones, strongest first."""
    places = range(len(ranking.rows))
    proponents = [("proponent", place) for place in places if ranking.scores[place] > 0][:k]
    opponents = [("opponent", place) for place in reversed(places) if ranking.scores[place] < 0][:k]
    return proponents + opponents
