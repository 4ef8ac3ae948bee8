"""The influence command's flags as what is asked of a run."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from msif.attribution.damping import Damping
from msif.attribution.inverses import IHVP
from msif.attribution.logra import DEFAULT_PROJECTION as LOGRA_PROJECTION
from msif.attribution.methods import DAMPED, INDEXED
from msif.attribution.projection import Projection
from msif.attribution.trak import DEFAULT_PROJECTION as TRAK_PROJECTION
from msif.candidates.selection import parse_candidates
from msif.cli.flags import field_arguments, stage_arguments
from msif.cli.parsing import configuration
from msif.data.corpus import load_corpus
from msif.data.queries import Query, load_queries
from msif.models.devices import resolve_device
from msif.options import Options
from msif.prepare import Asked
from msif.stage import Stage


def asked_of(args: argparse.Namespace) -> Asked:
    """What the flags ask for; factors, queries and corpus are opened, models are not loaded yet.

    Raises:
        MsifError: the first thing found wrong.
    """
    resolve_device(args.device)
    pretrained, finetuned = _stage(args, "pretrained", "lm", 0), _stage(args, "finetuned", args.task, -1)
    for stage in (pretrained, finetuned):
        if stage is not None:
            _ = [part.opened for part in stage.segments]
    queries = _queries(args)
    corpus = load_corpus(args.corpus, split=args.split, max_examples=args.max_examples)
    return Asked(
        options=_options(args),
        pretrained=pretrained,
        finetuned=finetuned,
        corpus=corpus,
        fields=field_arguments(args),
        queries=queries,
        settings=configuration(args),
        output=Path(args.output) if args.output else None,
        estimate=args.dry_run,
    )


def _stage(args: argparse.Namespace, which: str, task: str, place: int) -> Stage | None:
    model, factors, data = (getattr(args, name) for name in (which, f"{which}_factors", f"{which}_data"))
    if model is None:
        return None
    rates = args.learning_rate_sum or [None]
    return Stage(
        model,
        None if factors else data,
        factors,
        task=task,
        **stage_arguments(args),
        learning_rate_sum=rates[place],
        checkpoints=args.checkpoints[place] if args.checkpoints else None,
        moved_to=data if factors else None,
        fsdp=args.fsdp and not args.dry_run,
    )


def _queries(args: argparse.Namespace) -> list[Query]:
    if args.queries:
        return load_queries(args.queries, args.task)
    if args.task == "classification":
        return [Query("0", args.query, label=args.completion)]
    return [Query("0", args.query, args.completion)]


def _options(args: argparse.Namespace) -> Options:
    return Options(
        method=args.method,
        index=args.index,
        r=args.r if args.index else None,
        search=args.search,
        damping=Damping(args.damping, args.damping_scale, args.alpha),
        ihvp=IHVP(args.ihvp, args.ihvp_iterations, args.ihvp_tolerance, args.lissa_scale, args.arnoldi_top),
        adapter_hop=args.adapter_hop,
        examples=args.ihvp_examples,
        candidates=args.candidates,
        embedding_model=args.embedding_model,
        prior=args.prior,
        measurement=args.measurement,
        scorer=_scorer_options(args),
        max_new_tokens=args.max_new_tokens,
        top_k=args.top_k,
        max_length=args.max_length,
        batch_tokens=args.batch_tokens,
        memory=args.memory,
        progress=not args.quiet,
    )


def _scorer_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of ``build_scorer``; what is not given is left to the scorer."""
    if args.method == "trak":
        options = {"weighting": args.trak_weighting, "projection": _projection(TRAK_PROJECTION, args)}
    elif args.method == "logra":
        options = {"labels": args.logra_labels, "projection": _projection(LOGRA_PROJECTION, args)}
    elif args.method == "cka":
        options = {"rows": args.cka_rows}
    elif args.method == "random":
        options = {"seed": args.random_seed}
    elif args.method == "representation":
        options = {}
    elif args.method in INDEXED or (args.index and parse_candidates(args.candidates).of_index is None):
        options = {"normalize": args.normalize}
    else:
        # a cosine is normalised in any case
        options = {"query_rank": args.query_rank, "normalize": None if args.method == "cosine" else args.normalize}
        options["halves"] = args.halves if args.method in DAMPED else None
    return {name: value for name, value in options.items() if value is not None}


def _projection(default: Projection, args: argparse.Namespace) -> Projection:
    size = args.projection_size
    changes = {"p_out": size, "p_in": size, "seed": args.projection_seed}
    if default.dimension is not None:
        changes["dimension"] = args.projection_dim
    return replace(default, **{name: value for name, value in changes.items() if value is not None})
