"""A stage of training as the flags describe it: model, factors, natural scale, and its own data found again."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import yaml

from msif.attribution.gradients import Side
from msif.attribution.inverses import IHVP
from msif.attribution.methods import SOLVERS, STAGED
from msif.attribution.stages import Stage, check_factors
from msif.cli.flags import field_arguments
from msif.curvature.store import FactorStore
from msif.data.batching import TokenBatches
from msif.data.corpus import load_corpus
from msif.data.format import choose_format
from msif.errors import MsifError
from msif.models.blocks import TrackedModule
from msif.models.loading import LoadedModel
from msif.models.roles import label_arguments, objective_for
from msif.models.select import track_modules
from msif.models.training import natural_tau


def ihvp_of(args: argparse.Namespace) -> IHVP:
    """The choice of an inverse that the flags make."""
    iterations, tolerance = args.ihvp_iterations, args.ihvp_tolerance
    return IHVP(args.ihvp, iterations, tolerance, args.lissa_scale, args.arnoldi_top)


def stage_of(
    which: str,
    loaded: LoadedModel | None,
    store: FactorStore | None,
    task: str,
    args: argparse.Namespace,
    needs_tau: bool,
    learning_rate_sum: float | None,
) -> Stage | None:
    """A stage with its factors checked against its model; τ and its own data only where they are used.

    Args:
        which: "pretrained" or "finetuned".
    """
    if loaded is None:
        return None
    chosen = track_modules(loaded.model, args.modules or "all", args.split_heads is not False)
    tracked = chosen if store is None else _fitted(store, loaded, args, {module.name for module in chosen})
    side = Side(loaded.model, tracked, objective_for(task, loaded))
    if store is None or args.method not in STAGED:
        return Stage(side, store)
    tau = natural_tau(loaded.name, loaded.model, tracked, learning_rate_sum) if needs_tau else None
    if args.ihvp not in SOLVERS:
        return Stage(side, store, tau)
    return Stage(side, store, tau, stage_batches(store, loaded, getattr(args, f"{which}_data"), args.ihvp_examples))


def _fitted(store: FactorStore, loaded: LoadedModel, args: argparse.Namespace, chosen: set[str]) -> list[TrackedModule]:
    """The modules that factors were fitted for, or those of them that --modules names."""
    tracked = check_factors(store, loaded)
    split = any(len(module.blocks) > 1 for module in tracked)
    if args.split_heads is not None and args.split_heads != split:
        wanted = "--split-heads" if args.split_heads else "--no-split-heads"
        raise MsifError(f"the factors in {store.path} were not fitted with {wanted}: leave it out, or fit them so.")
    if args.modules is None:
        return tracked
    kept = [module for module in tracked if module.name in chosen]
    if len(kept) < len(chosen):
        missing = min(chosen - {module.name for module in kept})
        raise MsifError(
            f"the factors in {store.path} have none for '{missing}': fit them with --modules {args.modules}."
        )
    return kept


def stage_batches(
    store: FactorStore, loaded: LoadedModel, moved_to: str | None = None, examples: int | None = None
) -> TokenBatches:
    """The data that factors were fitted on, as the batches of that fit.

    Args:
        moved_to: where the data is now, if not where it was.
        examples: only so many of its sequences, spread evenly.

    Raises:
        MsifError: the fit's configuration or its data is not there, or the data has changed.
    """
    flags = _fit_flags(store)
    source = moved_to or flags.data
    corpus = load_corpus(source, split=flags.split, streaming=flags.streaming, max_examples=flags.max_examples)
    labels = label_arguments(loaded, flags.task)
    format = choose_format(corpus, task=flags.task, **labels, **field_arguments(flags))
    fitted: dict[str, Any] = store.manifest["run"]["data"]
    if corpus.fingerprint(format.columns) != fitted["content"]:
        raise MsifError(
            f"the data in {source} is not what the factors in {store.path} were fitted on: name the right file with "
            "--pretrained-data or --finetuned-data, or fit them again."
        )
    limits = {name: fitted[name] for name in ("max_length", "batch_tokens", "seed", "window")}
    batches = TokenBatches(corpus, format, loaded.tokenizer, **limits)
    return spread(batches, examples)


def _fit_flags(store: FactorStore) -> argparse.Namespace:
    path = store.path / "config.yaml"
    if not path.is_file():
        raise MsifError(
            f"{path} is not there, so the data of these factors is not known: fit them by msif.fit_factors."
        )
    return argparse.Namespace(**yaml.safe_load(path.read_text(encoding="utf-8")))


def spread(batches: TokenBatches, count: int | None) -> TokenBatches:
    """Only so many sequences of a corpus, evenly; None keeps all, as does a stream."""
    size = batches.corpus.size
    if count is None or size is None or count >= size:
        return batches
    return replace(batches, indices=[place * size // count for place in range(count)])
