"""The influence command's work: load and check everything, then select and score."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from msif.attribution.contributions import Contributions
from msif.attribution.methods import PROJECTED
from msif.attribution.results import Ranking, rank
from msif.attribution.scorers import Explainer
from msif.attribution.stages import Damping, build_scorer
from msif.cli.dry_run import worth_checking
from msif.cli.flags import field_arguments
from msif.cli.job import Job
from msif.cli.method import check_measurement, index_batches, scorer_options, with_measurement
from msif.cli.pull import with_alpha
from msif.cli.stage import ihvp_of, stage_of
from msif.curvature.store import FactorStore
from msif.data.batching import TokenBatches
from msif.data.corpus import Corpus, load_corpus
from msif.data.format import Format, check_rows, choose_format
from msif.data.ids import check_ids, written_ids
from msif.data.queries import Query, load_queries, with_numbers
from msif.models.loading import LoadedModel, load_model, resolve_device
from msif.models.roles import check_vocabulary, label_arguments, longest

log = logging.getLogger(__name__)


Parts = Callable[[int, Sequence[int]], dict[int, Contributions]]


@dataclass(frozen=True)
class Scored:
    """The result of a job.

    Attributes:
        rankings: each query's.
        ids: row number -> what results call a candidate.
        parts: (a query's number, rows) -> row number -> parts of its score; empty where scores have none.
        anew: whether this run has scored, and not an earlier one that ended after that.
    """

    rankings: list[Ranking]
    ids: dict[int, int | str]
    parts: Parts
    anew: bool


def prepare(args: argparse.Namespace) -> Job:
    """Loads and checks in the order of cost, cheapest first.

    Raises:
        MsifError: the first thing found wrong.
    """
    resolve_device(args.device)
    paths = (args.pretrained_factors, args.finetuned_factors)
    pretrained_store, finetuned_store = (FactorStore.open(path) if path else None for path in paths)
    queries = _queries(args)
    corpus = _rows(args.corpus, args)
    # candidates are a classifier's documents only where no pre-trained model is given
    corpus_task = "lm" if args.pretrained else args.task
    choose_format(corpus, task=corpus_task, **field_arguments(args))
    if worth_checking(corpus, args.dry_run):
        check_ids(corpus)
    pretrained = load_model(args.pretrained, "lm", args.dtype, args.device) if args.pretrained else None
    finetuned = load_model(args.finetuned, args.task, args.dtype, args.device) if args.finetuned else None
    first, last = pretrained or finetuned, finetuned or pretrained
    assert first is not None and last is not None
    length = longest(args.max_length, [model for model in (pretrained, finetuned) if model])
    args = argparse.Namespace(**{**vars(args), "max_length": length})  # a copy: the given one is written down
    labels = label_arguments(first, corpus_task)
    format = choose_format(corpus, task=corpus_task, **labels, **field_arguments(args))
    if worth_checking(corpus, args.dry_run):
        check_rows(corpus, format)
    damping = Damping(args.damping, args.damping_scale, args.alpha)
    rates = list(args.learning_rate_sum or [None, None])
    first_stage = stage_of("pretrained", pretrained, pretrained_store, "lm", args, damping.needs_tau(False), rates[0])
    needed = damping.needs_tau(pretrained is not None)
    last_stage = stage_of("finetuned", finetuned, finetuned_store, args.task, args, needed, rates[-1])
    index = None
    solved = [s.batches for s in (first_stage, last_stage) if s and isinstance(s.batches, TokenBatches)]
    solved = solved[:1] if args.method == "single-stage" else solved
    if args.method in PROJECTED:
        of_corpus = TokenBatches(corpus, format, first.tokenizer, length, args.batch_tokens)
        read = partial(_read, task=corpus_task, model=first, args=args)
        if first_stage is not None:
            index = index_batches("pretrained", first, pretrained_store, of_corpus, read, args)
            first_stage = replace(first_stage, batches=index)
        elif last_stage is not None:
            index = index_batches("finetuned", first, finetuned_store, of_corpus, read, args)
            last_stage = replace(last_stage, batches=index)
    args, last_stage, warning = with_alpha(args, finetuned, last_stage)
    damping = Damping(args.damping, args.damping_scale, args.alpha)
    asked = last_stage or first_stage
    assert asked is not None
    queries = with_numbers(queries, label_arguments(last, args.task))
    args = with_measurement(args, queries, asked.side.objective)
    # a solver reads all factors when it is built
    ihvp = None if args.dry_run else ihvp_of(args)
    scorer = build_scorer(args.method, first_stage, last_stage, damping, ihvp, **scorer_options(args))
    check_measurement(scorer)
    for name, reason in scorer.left_out.items():
        log.info("left out: %s (%s)", name, reason)
    weights = [model.weights for model in (pretrained, finetuned) if model]
    measured = first if args.method == "single-stage" else last
    job = Job(args, corpus, format, queries, first, measured, last, scorer, weights, index, solved).checked()
    if warning:
        log.warning("%s", warning)
    return job


def _rows(source: str, args: argparse.Namespace) -> Corpus:
    return load_corpus(source, split=args.split, max_examples=args.max_examples)


def _read(source: str, task: str, model: LoadedModel, args: argparse.Namespace) -> tuple[Corpus, Format]:
    """Other data, read and checked as the corpus is."""
    rows = _rows(source, args)
    format = choose_format(rows, task=task, **label_arguments(model, task), **field_arguments(args))
    check_rows(rows, format)
    return rows, format


def _queries(args: argparse.Namespace) -> list[Query]:
    if args.queries:
        return load_queries(args.queries, args.task)
    if args.task == "classification":
        return [Query("0", args.query, label=args.completion)]
    return [Query("0", args.query, args.completion)]


def score(job: Job) -> Scored:
    """Answers, candidates, and their scores; none is scored again that an interrupted run had scored."""
    queries = job.answered()
    chunks = job.chunks(queries)
    candidates = job.select(queries)
    rows = sorted({int(row) for selected in candidates for row in selected})
    rankings: list[Ranking] = []
    parts: list[Parts] = []
    anew = False
    for number, (places, batches) in enumerate(chunks):
        asked, wanted = [queries[place] for place in places], [candidates[place] for place in places]
        partial = job.partial_scores(rows, asked, number)
        log.info("%s", _telling(job, rows, asked, partial.complete, number, len(chunks)))
        if not partial.complete and not anew:
            check_vocabulary(job.documents(rows), job.candidate_model)
        anew |= not partial.complete
        needed = not partial.complete or isinstance(job.scorer, Explainer)
        vectors = job.scorer.query_vectors(batches) if needed else None
        if job.rank_errors is not None:
            worst = float(job.rank_errors.max())
            log.info("rank %d leaves out %.2g of the query vectors' norm at worst", job.args.query_rank, worst)
        scores = job.scorer.score_vectors(vectors, job.documents(rows), partial)
        found = rank(scores, asked, wanted)
        rankings += found
        scored = [int(row) for row in scores.candidates]
        parts.append(_parts_of(job, vectors, found, keep=len(chunks) > 1))
    ids = dict(zip(scored, written_ids(job.corpus.ids(scored)), strict=True))
    size = len(chunks[0][0])
    return Scored(rankings, ids, lambda query, shown: parts[query // size](query % size, shown), anew)


def _telling(job: Job, rows: Sequence[int], asked: Sequence[Query], done: bool, number: int, chunks: int) -> str:
    what = "an earlier run has scored" if done else "scoring"
    chunk = f", pass {number + 1} of {chunks}" if chunks > 1 else ""
    return f"{what} {len(rows)} of {len(job.corpus)} documents for {len(asked)} queries{chunk}"


def _parts_of(job: Job, vectors: Any, rankings: Sequence[Ranking], keep: bool) -> Parts:
    """The parts of scores of one pass's queries; made at once where the vectors must go for the next pass's."""
    if not isinstance(job.scorer, Explainer):
        return lambda query, rows: {}
    explainer = job.scorer

    def parts(query: int, rows: Sequence[int]) -> dict[int, Contributions]:
        own = {name: v.only(query) for name, v in vectors.items()}
        return {part.index: part for part in explainer.explain(own, job.documents(rows))}

    if not keep:
        return parts
    shown = [[int(one.rows[place]) for _, place in one.shown(job.args.top_k)] for one in rankings]
    kept = [parts(query, rows) if rows else {} for query, rows in enumerate(shown)]
    return lambda query, rows: kept[query]
