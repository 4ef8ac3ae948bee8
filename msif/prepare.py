"""Loading and checking what a run takes, in the order of cost, so that what is wrong is told before any long work."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msif.attribution.gradients import Side
from msif.attribution.inverses import IHVP
from msif.attribution.methods import DAMPED, INDEXED, PROJECTED, SOLVERS, STAGED
from msif.attribution.scorers import PairScorer
from msif.attribution.stages import FittedStage, build_scorer, later_stage
from msif.attribution.trak import TRAKCheckpoint
from msif.data.batching import TokenBatches, spread
from msif.data.corpus import Corpus
from msif.data.format import check_rows, choose_format, soon_checked
from msif.data.ids import check_ids
from msif.data.queries import Query, with_numbers
from msif.errors import MsifError
from msif.index.pools import indexed_modules
from msif.index.scorer import IndexScorer
from msif.index.storage import GradientIndex
from msif.indexing import opened_plan
from msif.job import Job
from msif.models.objectives import Objective, Regression
from msif.models.roles import label_arguments, longest
from msif.options import Options
from msif.stage import Stage
from msif.trainings import Reader, Trainings

log = logging.getLogger(__name__)


OF_THE_CANDIDATES = (
    "the curvature that --ihvp solves for is of the very documents that are scored, where a solver foretold retraining "
    "worse than EK-FAC: factors fitted on other documents of their kind did not (docs/counterfactual.md)"
)


@dataclass(frozen=True)
class Asked:
    """What is asked of a run.

    Attributes:
        pretrained, finetuned: the stages; one of them may be None.
        corpus, fields: candidate documents, and which of their fields are read.
        settings: all that tells the run from another, as JSON.
        estimate: whether it is prepared for an estimate alone, for which no inverse is built and no large corpus read.
    """

    options: Options
    pretrained: Stage | None
    finetuned: Stage | None
    corpus: Corpus
    fields: Mapping[str, Any]
    queries: Sequence[Query]
    settings: Mapping[str, Any]
    output: Path | None = None
    estimate: bool = False

    @property
    def first(self) -> Stage:
        """Whose gradients the candidates give."""
        stage = self.pretrained or self.finetuned
        if stage is None:
            raise MsifError("there is no stage: give a pre-trained model, a fine-tuned one, or both.")
        return stage

    @property
    def last(self) -> Stage:
        return self.finetuned or self.first

    @property
    def asked(self) -> Stage:
        """On which queries are measured."""
        return self.first if self.options.method == "single-stage" else self.last

    @property
    def reads_rows(self) -> bool:
        """Whether every row is looked at before the work: for an estimate only where that takes seconds."""
        return not self.estimate or soon_checked(self.corpus)


def prepare(asked: Asked) -> Job:
    """
    Raises:
        MsifError: the first thing found wrong.
    """
    options, first, last, corpus = asked.options, asked.first, asked.last, asked.corpus
    choose_format(corpus, task=first.task, **asked.fields)
    if first.fsdp or last.fsdp:
        _check_sharded(options)
    if any(str(stage.device) == "meta" and (stage.factors or not asked.estimate) for stage in (first, last)):
        raise MsifError("device 'meta' has no weights to score with, or that factors could be of: leave --device out.")
    if asked.reads_rows:
        check_ids(corpus)
    loaded = [stage.loaded for stage in dict.fromkeys((first, last))]
    length = longest(options.max_length, loaded)
    labels = label_arguments(first.loaded, first.task)
    format = choose_format(corpus, task=first.task, **labels, **asked.fields)
    if asked.reads_rows:
        check_rows(corpus, format)
    trainings = Reader(options, first, last, asked.estimate).read()
    index = None
    if options.method in PROJECTED:
        of_corpus = TokenBatches(corpus, format, first.loaded.tokenizer, length, options.batch_tokens)
        index = _index(first, of_corpus, options.examples)
    fitted = {}
    if options.method not in INDEXED:
        fitted = {stage: _fitted(stage, options, trainings, index, later=stage is not first) for stage in (first, last)}
    queries = with_numbers(asked.queries, label_arguments(last.loaded, last.task))
    options = replace(options, damping=trainings.damping, measurement=_measurement(options, queries, last.objective))
    by_index = scorer_by_index(asked, options, fitted.get(last)) if options.index is not None else None
    scorer = by_index if options.scores_by_index and by_index else _scorer(options, asked, fitted)
    if isinstance(scorer, IndexScorer) and scorer.max_length != length:
        log.info("documents are of %d tokens, as in the index; --max-length is for queries", scorer.max_length)
    for name, reason in scorer.left_out.items():
        log.info("left out: %s (%s)", name, reason)
    batches = {stage: one.batches for stage, one in fitted.items() if isinstance(one.batches, TokenBatches)}
    solved = list(batches.values()) if _solves(options) else []
    once = [stage for stage, goes in ((first, options.steps_nearby), (last, options.adapter_hop)) if goes]
    if asked.reads_rows and any(_holds(one, corpus, format.columns) for one in solved[:1]):
        log.info("%s", OF_THE_CANDIDATES)
    found = {"alpha": options.damping.alpha, "max_length": length, "measurement": options.measurement}
    job = Job(
        options=options,
        corpus=corpus,
        format=format,
        queries=queries,
        first=first,
        last=last,
        asked=asked.asked,
        scorer=scorer,
        length=length,
        chooser=by_index,
        index=index,
        solved=solved,
        gone_over=[batches[stage] for stage in once],
        tau_by=[one.kind for one in trainings.known],
        settings={**asked.settings, **found},
        output=asked.output,
    ).checked()
    if trainings.warning:
        log.warning("%s", trainings.warning)
    return job


def _holds(batches: TokenBatches, corpus: Corpus, columns: Sequence[str]) -> bool:
    """Whether a stage's data are the corpus."""
    own = batches.corpus
    return set(columns) <= set(own.columns) and own.fingerprint(columns) == corpus.fingerprint(columns)


def _check_sharded(options: Options) -> None:
    """What needs weights that are whole."""
    if options.index is not None:
        raise MsifError("an index takes models whose weights are whole: leave --fsdp out.")
    if options.adapter_hop:
        raise MsifError("--adapter-hop takes a model whose weights are whole: leave --fsdp out.")
    if options.nears:
        raise MsifError("--halves moves weights that are whole: leave --fsdp out.")
    if _solves(options):
        raise MsifError(f"--ihvp {options.ihvp.kind} takes products of whole weights: leave --fsdp out, or use ekfac.")


def _fitted(
    stage: Stage, options: Options, trainings: Trainings, index: TokenBatches | None, later: bool
) -> FittedStage:
    """A stage with what the method reads of it."""
    if options.method not in STAGED or (later and options.method == "single-stage"):
        return FittedStage(stage.side, None, batches=index if not later else None)
    if options.method == "source" and stage.checkpoints is not None:
        parts = [_fitted(part, options, trainings, index, later) for part in reversed(stage.segments)]
        return FittedStage(stage.side, segments=parts[::-1])
    store, tau = stage.store, trainings.tau_of(stage)
    if later and options.adapter_hop:
        return FittedStage(stage.side, store, tau, stage.training(options.examples), stage.adapter)
    batches = stage.training(options.examples) if _solves(options) or (options.steps_nearby and not later) else None
    return FittedStage(stage.side, store, tau, batches)


def _solves(options: Options) -> bool:
    """Whether inverses are solved for on the stages' own data."""
    return options.ihvp.kind in SOLVERS and options.method in DAMPED


def _index(first: Stage, of_corpus: TokenBatches, examples: int | None) -> TokenBatches:
    """The sequences that a method's own curvature is taken from: of the candidates' stage's data where they are known,
    else the corpus. They take part whether they are candidates or not.

    Raises:
        MsifError: data that are not there, or not what the factors were fitted on.
    """
    if first.factors is None and first.data is None:
        return spread(of_corpus, examples)
    if first.data is not None:
        check_rows(first.batches.corpus, first.format)
    return first.training(examples)


def _scorer(options: Options, asked: Asked, fitted: Mapping[Stage, FittedStage]) -> PairScorer:
    """
    Raises:
        MsifError: see ``build_scorer``; a measurement that the model's objective does not know. TRAK takes its
            measurement of candidates, too.
    """
    given = dict(options.scorer)
    if options.measurement is not None:
        given["output" if options.method == "trak" else "measurement"] = options.measurement
    pretrained, finetuned = (None if stage is None else fitted[stage] for stage in (asked.pretrained, asked.finetuned))
    # a solver reads all factors when it is built
    ihvp = None if asked.estimate else options.ihvp
    scorer = build_scorer(options.method, pretrained, finetuned, options.damping, ihvp, **given)
    for side in [scorer.query_side, *([scorer.candidate_side] if isinstance(scorer, TRAKCheckpoint) else [])]:
        if isinstance(scorer.measurement, str):
            side.objective.measurement(scorer.measurement)
    return scorer


def scorer_by_index(asked: Asked, options: Options, fitted: FittedStage | None) -> IndexScorer:
    """By the features of documents in the index: multi-stage influence where it was made with factors, else TrackStar.

    Raises:
        MsifError: the index is of another model, or does not go with the method.
    """
    assert options.index is not None
    first, last = asked.first, asked.last
    index = GradientIndex.open(options.index)
    curved = index.manifest["run"]["curvature"] is not None
    if options.scores_by_index and curved != (options.method == "multi-stage"):
        made, other = ("with", "multi-stage") if curved else ("without", "trackstar")
        raise MsifError(f"the index in {index.path} was made {made} factors: use it with --method {other}.")
    # of a preselection, options are those of the method that scores what it finds; its unit norm is that of estimates
    own: dict[str, Any] = dict(options.scorer) if options.scores_by_index else {}
    if not options.scores_by_index and curved and options.scorer.get("normalize") == "unit":
        own["normalize"] = "unit"
    for option in sorted(own.keys() - {"normalize"}):
        raise MsifError(f"scores by an index have no option '{option}': they have normalize, r.")
    own |= {"r": options.r, "search": options.search}
    own |= {} if options.measurement is None else {"measurement": options.measurement}
    plan = opened_plan(index, first, first.factors if curved else None)
    if not curved:
        modules = indexed_modules(last.loaded.model, last.modules or "everything", index.settings.tied)
        side = plan.side if last is first else Side(last.loaded.model, modules, last.objective)
        return IndexScorer(plan, index, side, **own)
    if fitted is None or last is first:
        return IndexScorer(plan, index, plan.side if last is first else last.side, **own)
    names = [module.name for module in plan.side.tracked]
    ihvp = IHVP() if asked.estimate else options.ihvp  # a solver reads its data when it is built
    return IndexScorer(plan, index, fitted.side, [later_stage(fitted, names, options.damping, ihvp)], **own)


def _measurement(options: Options, queries: Sequence[Query], objective: Objective) -> str | None:
    """What is measured of a regression's queries where that is left open.

    A class or a text that the model itself gives has a loss; a number that it gives has none. So without labels it is
    the output that is explained.

    Raises:
        MsifError: the loss of a query without a label.
    """
    bare = [query for query in queries if query.label is None]
    if not isinstance(objective, Regression) or not bare or options.measurement not in (None, "loss"):
        return options.measurement
    if options.measurement == "loss" or len(bare) < len(queries):
        raise MsifError(
            f"query '{bare[0].id}' has no label, and the loss of a regression's own output is zero: give it a label, "
            "or explain the outputs themselves with --measurement logit."
        )
    log.info("no query has a label: the model's output is explained (--measurement logit)")
    return "logit"
