"""A method as the flags describe it: its scorer's options, and the sequences of its own curvature."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from msif.attribution.logra import DEFAULT_PROJECTION as LOGRA_PROJECTION
from msif.attribution.projection import Projection
from msif.attribution.scorers import PairScorer
from msif.attribution.trak import DEFAULT_PROJECTION as TRAK_PROJECTION
from msif.attribution.trak import TRAKCheckpoint
from msif.cli.stage import spread, stage_batches
from msif.curvature.store import FactorStore
from msif.data.batching import TokenBatches
from msif.data.corpus import Corpus
from msif.data.format import Format
from msif.data.queries import Query
from msif.errors import MsifError
from msif.models.loading import LoadedModel
from msif.models.objectives import Objective, Regression

log = logging.getLogger(__name__)


def scorer_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of ``build_scorer``; what is not given is left to the scorer."""
    m = args.measurement
    if args.method == "trak":
        weighting = args.trak_weighting
        options = {"output": m, "weighting": weighting, "projection": _projection(TRAK_PROJECTION, args)}
    elif args.method == "logra":
        options = {"measurement": m, "labels": args.logra_labels, "projection": _projection(LOGRA_PROJECTION, args)}
    elif args.method == "cka":
        options = {"measurement": m, "rows": args.cka_rows}
    else:
        # a cosine is normalised in any case
        unit = None if args.method == "cosine" else args.normalize
        options = {"measurement": m, "query_rank": args.query_rank, "normalize": unit}
    return {name: value for name, value in options.items() if value is not None}


def with_measurement(args: argparse.Namespace, queries: Sequence[Query], objective: Objective) -> argparse.Namespace:
    """The flags, with what is measured of a regression's queries where that is left open.

    A class or a text that the model itself gives has a loss; a number that it gives has none. So without labels it is
    the output that is explained.

    Raises:
        MsifError: the loss of a query without a label.
    """
    bare = [query for query in queries if query.label is None]
    if not isinstance(objective, Regression) or not bare or args.measurement not in (None, "loss"):
        return args
    if args.measurement == "loss" or len(bare) < len(queries):
        raise MsifError(
            f"query '{bare[0].id}' has no label, and the loss of a regression's own output is zero: give it a label, "
            "or explain the outputs themselves with --measurement logit."
        )
    log.info("no query has a label: the model's output is explained (--measurement logit)")
    return argparse.Namespace(**{**vars(args), "measurement": "logit"})


def check_measurement(scorer: PairScorer) -> None:
    """
    Raises:
        MsifError: a name that the model's objective does not know; TRAK takes its measurement of candidates, too.
    """
    sides = [scorer.query_side, *([scorer.candidate_side] if isinstance(scorer, TRAKCheckpoint) else [])]
    for side in sides:
        if isinstance(scorer.measurement, str):
            side.objective.measurement(scorer.measurement)


def _projection(default: Projection, args: argparse.Namespace) -> Projection:
    size = args.projection_size
    changes = {"p_out": size, "p_in": size, "seed": args.projection_seed}
    if default.dimension is not None:
        changes["dimension"] = args.projection_dim
    return replace(default, **{name: value for name, value in changes.items() if value is not None})


def index_batches(
    which: str,
    loaded: LoadedModel,
    store: FactorStore | None,
    of_corpus: TokenBatches,
    read: Callable[[str], tuple[Corpus, Format]],
    args: argparse.Namespace,
) -> TokenBatches:
    """The sequences that a method's own curvature is taken from: of the data of the candidates' stage.

    They are those that its factors were fitted on, where factors are given; else the data that is named for the stage;
    else the corpus. They take part whether they are candidates or not.

    Args:
        which: the candidates' stage, "pretrained" or "finetuned".
        of_corpus: all rows of the corpus.
        read: a source of data to its rows and format, read as the corpus is.

    Raises:
        MsifError: data that is not there, or not what the factors were fitted on.
    """
    source, examples = getattr(args, f"{which}_data"), args.ihvp_examples
    if store is not None:
        return stage_batches(store, loaded, source, examples)
    if source is not None:
        corpus, format = read(source)
        of_corpus = replace(of_corpus, corpus=corpus, format=format)
    return spread(of_corpus, examples)
