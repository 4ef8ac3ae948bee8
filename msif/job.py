"""From stages, queries and a corpus to a result: what ``msif.attribute`` and the influence command do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from msif import distributed
from msif.attribution.chunks import capacities, chunks_of
from msif.attribution.methods import NOT_RESULTS
from msif.attribution.partial import PartialScores, partial_file
from msif.attribution.prior import parse_prior, with_prior
from msif.attribution.results import Ranking, rank
from msif.attribution.scorers import Explainer, Mover, PairScorer
from msif.candidates.build import build_selector
from msif.candidates.selection import CandidateSpec, interleave, parse_candidates
from msif.curvature.residency import room_beside
from msif.curvature.store import read_manifest
from msif.data.batching import TokenBatches, batches_of
from msif.data.corpus import Corpus
from msif.data.documents import Batch, Document
from msif.data.encoding import fingerprint_tokenizer
from msif.data.format import Format
from msif.data.ids import written_ids
from msif.data.queries import Query, ask, encode_queries
from msif.errors import MsifError, UnusableError
from msif.explained import Explained, Parts
from msif.foreseen import look_ahead
from msif.index.scorer import IndexScorer
from msif.models.answers import greedy_completion, predicted_label
from msif.models.objectives import DocumentHead
from msif.models.roles import check_vocabulary, label_arguments, positions
from msif.models.vocabulary import embedding_rows, refuse_unknown
from msif.options import Options
from msif.progress import progress
from msif.stage import Stage
from msif.words import Words

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """
    Attributes:
        rankings: each query's.
        ids: row number -> what results call a candidate.
        words: what words say of the documents.
        anew: whether this run has scored, and not an earlier one that ended after that.
    """

    rankings: list[Ranking]
    ids: dict[int, int | str]
    parts: Parts
    words: Words
    anew: bool


@dataclass(frozen=True)
class Job:
    """Everything loaded and checked, nothing computed yet; ``msif.prepare.prepare`` makes it.

    Attributes:
        queries: in their order, some still without an answer.
        first, last: the stage whose gradients the candidates give, and the one that answers.
        asked: the one on which queries are measured.
        length: tokens kept of a query, and of a document unless the index gives its score.
        chooser: of the index, where there is one; finds candidates "index:N".
        index: what the method's own curvature is taken from, if it has one.
        solved: the stages' own data, where their inverses are solved for on it.
        gone_over: a stage's own data, where halves, or the hop of its adapter, take a pass over it.
        tau_by: what told τ of each training that is read: "auto", its files, or "evidence".
        settings: all that tells this run from another, as JSON.
        output: folder where scores are kept as they come; None keeps them in memory.
    """

    options: Options
    corpus: Corpus
    format: Format
    queries: list[Query]
    first: Stage
    last: Stage
    asked: Stage
    scorer: PairScorer
    length: int
    chooser: IndexScorer | None = None
    index: TokenBatches | None = None
    solved: Sequence[TokenBatches] = ()
    gone_over: Sequence[TokenBatches] = ()
    tau_by: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    output: Path | None = None

    @property
    def stages(self) -> list[Stage]:
        return [self.first] if self.first is self.last else [self.first, self.last]

    @property
    def parts(self) -> list[Stage]:
        """Of the stages' trainings."""
        return [part for stage in self.stages for part in self.parts_of(stage)]

    def parts_of(self, stage: Stage) -> list[Stage]:
        """All segments of a training with checkpoints, where the method takes them; else the stage itself."""
        return stage.segments if self.options.method == "source" else [stage]

    @property
    def weights(self) -> list[str]:
        """Fingerprints of the models that take part."""
        return [part.loaded.weights for part in self.parts]

    def documents(self, rows: Sequence[int]) -> TokenBatches:
        """The named rows of the corpus as batches."""
        limits = {"max_length": self.document_length, "batch_tokens": self.options.batch_tokens}
        return TokenBatches(self.corpus, self.format, self.first.loaded.tokenizer, indices=rows, **limits)

    @property
    def document_length(self) -> int:
        """As many tokens as scores are of, which an index keeps as it was built."""
        return self.scorer.max_length if isinstance(self.scorer, IndexScorer) else self.length

    @property
    def rank_errors(self) -> Any:
        """What a query rank left out of the query vectors; None where all of them was kept."""
        return getattr(self.scorer, "rank_errors", None)

    def checked(self) -> Job:
        """Without the queries that are seen, before any work, to be impossible to explain; they are named.

        Raises:
            MsifError: a query's label or messages are wrong, no query is left, or one does not fit into memory.
        """
        kept = replace(self, queries=_usable(self.queries, self._check))
        capacities(self.scorer.cost(), kept.room)
        return kept

    @cached_property
    def room(self) -> int:
        """Bytes for query vectors."""
        models = [part.loaded.model for part in self.parts]
        width = max(model.config.get_text_config().vocab_size for model in models)
        tokens = min(self.options.batch_tokens, 8 * self.length)
        return int(room_beside(models, width * tokens, self.options.memory) - self.scorer.cost().copied)

    def score(self) -> Scored:
        """Answers, candidates, and their scores; none is scored again that an interrupted run had scored."""
        embedding = look_ahead(self) if distributed.leads() else None
        queries = distributed.computed(self.answered)
        chunks = chunks_of(self.encoded(queries), self.scorer.cost(), self.room, self.options.batch_tokens)
        words = Words(self.corpus, self.format, queries, self.options.progress)
        candidates = self.select(queries, words, embedding)
        del embedding  # its memory is that of scores
        rows = sorted({int(row) for selected in candidates for row in selected})
        lexical = distributed.same(lambda: self._by_words(words, candidates))
        mixed = queries if self._corrects([batches for _, batches in chunks]) else []
        if isinstance(self.scorer, Mover) and not self.scorer.moved:
            self.scorer.move(distributed.computed(self.scorer.displacements))
        rankings: list[Ranking] = []
        parts: list[Parts] = []
        anew = False
        for number, (places, batches) in enumerate(chunks):
            own, wanted = [queries[place] for place in places], [candidates[place] for place in places]
            partial = self.partial_scores(rows, own, number, mixed)
            log.info("%s", self._telling(len(rows), len(own), partial.complete, number, len(chunks)))
            if not partial.complete and not anew:
                check_vocabulary(self.documents(rows), self.first.loaded)
            anew |= not partial.complete
            vectors = self._vectors(batches, partial.complete)
            scores = self.scorer.score_vectors(vectors, self.documents(rows), partial)
            scored = [int(row) for row in scores.candidates]
            rankings += self._with_words(rank(scores, own, wanted), [lexical[place] for place in places])
            parts.append(self._parts_of(vectors, rankings[-len(own) :], keep=len(chunks) > 1))
        ids = dict(zip(scored, written_ids(self.corpus.ids(scored)), strict=True))
        size = len(chunks[0][0])
        return Scored(rankings, ids, lambda query, shown: parts[query // size](query % size, shown), words, anew)

    def _corrects(self, passes: Sequence[Sequence[Batch]]) -> bool:
        """Whether scores of one pass depend on the queries of all, which the scorer then goes over before the first."""
        scorer = self.scorer
        if len(passes) < 2 or not isinstance(scorer, IndexScorer) or scorer.r.kind != "mixed":
            return False
        scorer.correction = distributed.computed(lambda: scorer.correction_for(passes))
        return True

    def _by_words(self, words: Words, candidates: Sequence[np.ndarray]) -> list[dict[int, float]]:
        """BM25+ of each query's candidates, row number -> score; empty without a prior."""
        if self.options.prior is None:
            return [{}] * len(candidates)
        return [
            dict(zip(rows.tolist(), words.scores(number)[rows], strict=True)) for number, rows in enumerate(candidates)
        ]

    def _with_words(self, rankings: Sequence[Ranking], lexical: Sequence[dict[int, float]]) -> list[Ranking]:
        """With the prior, where there is one."""
        if self.options.prior is None:
            return list(rankings)
        prior = parse_prior(self.options.prior)
        return [
            with_prior(ranking, np.array([own[row] for row in ranking.rows.tolist()]), prior)
            for ranking, own in zip(rankings, lexical, strict=True)
        ]

    def _telling(self, documents: int, queries: int, done: bool, number: int, chunks: int) -> str:
        what = "an earlier run has scored" if done else "scoring"
        chunk = f", pass {number + 1} of {chunks}" if chunks > 1 else ""
        return f"{what} {documents} of {len(self.corpus)} documents for {queries} queries{chunk}"

    def _vectors(self, batches: Sequence[Batch], scored: bool) -> Any:
        """Of the queries; nothing where scores are there and have no parts to be explained."""
        if scored and not isinstance(self.scorer, Explainer):
            return None
        vectors = distributed.computed(lambda: self.scorer.query_vectors(batches))
        if self.rank_errors is not None:
            rank, worst = self.options.scorer["query_rank"], float(self.rank_errors.max())
            log.info("rank %d leaves out %.2g of the query vectors' norm at worst", rank, worst)
        return vectors

    def _parts_of(self, vectors: Any, rankings: Sequence[Ranking], keep: bool) -> Parts:
        """The parts of scores of one pass's queries; made at once where the vectors must go for the next pass's."""
        if not isinstance(self.scorer, Explainer):
            return lambda query, rows: {}
        explained = Explained(self.scorer, vectors, rankings, self.options.top_k, self.documents)
        if keep:
            explained.make()
        return explained.of

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
            self.encoded([query], tell=True)
        elif self.last.task == "lm":
            count = len(ask(query, self.last.loaded.tokenizer))
            if count >= self.length:
                raise UnusableError(f"the prompt has {count} tokens, and {self._no_room}.")
        return query

    @property
    def _no_room(self) -> str:
        """What a prompt is too long for, and what can be done."""
        limits = {stage.loaded.name: positions(stage.loaded) for stage in self.stages}
        for name, limit in limits.items():
            if limit is not None and limit <= self.length:  # no --max-length helps
                return f"the {limit} positions of {name} leave no room for an answer: shorten the query"
        return f"--max-length {self.length} leaves no room for an answer: raise it, or shorten the query"

    def _answer(self, query: Query) -> Query:
        """A query without an answer gets the model's own."""
        if query.answered:
            return query
        answered = self._ask(query)
        self.encoded([answered], tell=True)
        return answered

    def _ask(self, query: Query) -> Query:
        last = self.last.loaded
        if self.last.task == "classification":
            return replace(query, label=predicted_label(last.model, last.tokenizer, query.prompt, self.length))
        given = tuple(ask(query, last.tokenizer))
        most = self.options.max_new_tokens
        answer = greedy_completion(last.model, last.tokenizer, given, most, positions(last))
        if _same_tokens(last.tokenizer, self.asked.loaded.tokenizer, [*given, *answer.ids]):
            return replace(query, completion=answer.text, prompt_ids=given, completion_ids=answer.ids)
        turn = {"role": "assistant", "content": answer.text}
        messages = query.messages and [*query.messages, turn]
        return replace(query, completion=answer.text, messages=messages)

    def encoded(self, queries: Sequence[Query], tell: bool = False) -> list[Document]:
        """Queries with answers as documents, numbered as in the list; ``tell`` warns of those that are cut."""
        classifies = isinstance(self.scorer.query_side.objective, DocumentHead)
        task = "classification" if classifies else "lm"
        asked = self.asked.loaded
        limits = {"max_length": self.length, "task": task, **label_arguments(asked, task)}
        tokenizer, rows = asked.tokenizer, embedding_rows(asked.model)
        documents = encode_queries(queries, tokenizer, **limits, tell=tell)
        for document in documents:
            refuse_unknown(document.input_ids, rows, tokenizer, f"query '{queries[document.index].id}'")
        return documents

    def select(self, queries: Sequence[Query], words: Words, embedding: Any) -> list[np.ndarray]:
        """Each query's candidates, row numbers; ``embedding``: the model of "knn:N", None for that of the options."""
        spec = parse_candidates(self.options.candidates)
        if spec.all:
            return [np.arange(len(self.corpus))] * len(queries)
        index, texts = spec.of_index, spec.of_texts
        found = [distributed.computed(lambda: self._by_index(queries, index))] if index is not None else []
        found += [distributed.same(lambda: self._by_texts(words, texts, embedding))] if texts is not None else []
        return [interleave(rows) for rows in zip(*found, strict=True)]

    def _by_index(self, queries: Sequence[Query], count: int) -> list[np.ndarray]:
        """The rows of this corpus that score best by the index."""
        assert self.chooser is not None
        rows, places = self.chooser.places_of(self.documents(range(len(self.corpus))))
        places, first = np.unique(places, return_index=True)
        vectors = self.chooser.query_vectors(batches_of(self.encoded(queries), self.options.batch_tokens))
        best = self.chooser.search(vectors, count, places=places).places
        return [rows[first[np.searchsorted(places, own)]] for own in best]

    def _by_texts(self, words: Words, spec: CandidateSpec, embedding: Any) -> list[np.ndarray]:
        """By what documents say; rows without a text are no candidates."""
        options = self.options
        texts = self.format.texts(self.corpus)
        rows = np.flatnonzero([bool(text.strip()) for text in texts])
        if len(rows) < len(texts):
            first = next(row for row, text in enumerate(texts) if not text.strip())
            count, name = len(texts) - len(rows), self.corpus.name
            log.warning("%d empty rows of '%s' are no candidates; the first is row %d", count, name, first)
        selector = build_selector(
            spec,
            embedding_model=embedding or options.embedding_model,
            progress=options.progress,
            bm25=lambda query: words.scores(query)[rows],
        )
        chosen = selector.select([query.text for query in words.queries], [texts[row] for row in rows])
        return [rows[places] for places in chosen]

    def partial_scores(
        self, rows: Sequence[int], queries: Sequence[Query], number: int, mixed: Sequence[Query] = ()
    ) -> PartialScores:
        """What an interrupted run of the same job has scored in a pass; in memory only without an output folder.

        Args:
            mixed: those of other passes, too, where R is of all of them.
        """
        if self.output is None:
            return PartialScores()
        return PartialScores(self.output / partial_file(number), lambda: self._identity(rows, queries, mixed))

    def _identity(self, rows: Sequence[int], queries: Sequence[Query], mixed: Sequence[Query]) -> dict[str, Any]:
        """All that scores depend on."""
        folders = [part.factors for part in self.parts]
        return {
            "config": {key: value for key, value in self.settings.items() if key not in NOT_RESULTS},
            "weights": self.weights,
            "tokenizers": [fingerprint_tokenizer(stage.loaded.tokenizer) for stage in (self.first, self.asked)],
            "gradients": None if self.chooser is None else self.chooser.index.identity,
            "factors": [read_manifest(Path(folder))["run"] for folder in folders if folder],
            "corpus": self.corpus.fingerprint_of(rows, self.format.columns),
            "index": self.index and {**self.index.identity(), "batch_tokens": None},
            "queries": [vars(query) for query in queries],
            "mixed": [vars(query) for query in mixed],
            "tau by": list(self.tau_by),
            "rows": [int(row) for row in rows],
        }


def _usable(queries: Sequence[Query], take: Callable[[Query], Query], desc: str | None = None) -> list[Query]:
    """What becomes of the queries, without those that cannot be explained; these are named, if any other is left."""
    kept: list[Query] = []
    reasons: list[tuple[str, UnusableError]] = []
    for query in progress(queries, hidden=desc is None, desc=desc):
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
