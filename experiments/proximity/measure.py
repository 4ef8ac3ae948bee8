"""What the factors and the data say about the change."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from experiments.proximity.distances import Key, hidden_size
from experiments.proximity.eigenspace import Alignment, alignments, together
from experiments.proximity.quadratic import Expansion, changes_of, expansion, losses_along, mean_loss, second_difference
from msif.attribution.gradients import Side
from msif.attribution.stages import check_factors
from msif.curvature.store import FactorStore
from msif.data.batching import TokenBatches, spread
from msif.data.corpus import load_corpus
from msif.data.format import check_rows, choose_format
from msif.models.loading import LoadedModel
from msif.models.objectives import CausalLM
from msif.models.roles import longest
from msif.models.select import match_modules, track_modules

FRACTIONS = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
STEP = FRACTIONS[1]  # of the second difference

log = logging.getLogger("msif.experiments.proximity")


@dataclass(frozen=True)
class Curvature:
    """The change of the layers' maps that have factors, and where it lies."""

    side: Side
    changes: Mapping[str, Tensor]
    parts: Mapping[Key, Alignment]
    left_out: Mapping[str, str]

    @property
    def quadratic(self) -> float:
        """½ΔᵀHΔ by EK-FAC, in nats per token."""
        return together(self.parts.values()).quadratic


@dataclass(frozen=True)
class Way:
    """Losses on the way, in nats per token, and what was expected of them.

    Attributes:
        losses: at each of ``FRACTIONS``, with only the maps that have factors moved.
        finetuned: of the whole fine-tuned model; None where it is no language model.
        hessian: ½Δᵀ∇²LΔ, by a second difference of the loss.
        ekfac: ½ΔᵀHΔ by the factors.
    """

    losses: tuple[float, ...]
    finetuned: float | None
    exact: Expansion
    hessian: float
    ekfac: float
    texts: int


def curvature(store: FactorStore, pretrained: LoadedModel, finetuned: LoadedModel) -> Curvature:
    """The change in the eigenbasis of the factors, checked against the model that they are for.

    Of the decoder layers' maps: an unembedding's rows have no eigenbasis, and no layer whose kind of map they are.
    """
    layers = {module.name for module in track_modules(pretrained.model, "layers")}
    tracked = [module for module in check_factors(store, pretrained) if module.name in layers]
    split = any(module.splits_heads for module in tracked)
    others = track_modules(finetuned.model, "layers", split)
    shared, left_out = match_modules(tracked, others)
    for name, reason in left_out.items():
        log.info("left out of the eigenbasis: %s (%s)", name, reason)
    side = Side(pretrained.model, tracked, CausalLM()).restricted(shared)
    changes = changes_of(pretrained.model, side.tracked, finetuned.model, others)
    parts = alignments(store, side.tracked, changes, hidden_size(pretrained.model))
    return Curvature(side, changes, parts, left_out)


def way(moved: Curvature, pretrained: LoadedModel, finetuned: LoadedModel, options: argparse.Namespace) -> Way:
    """The loss on the way from one model to the other."""
    corpus = load_corpus(options.data_file)
    format = choose_format(corpus, text_field=options.text_field)
    check_rows(corpus, format)
    every = TokenBatches(corpus, format, pretrained.tokenizer, longest(None, [pretrained]))
    data = spread(every, options.examples)
    batches = list(data)
    back, *losses = losses_along(moved.side, moved.changes, batches, [-STEP, *FRACTIONS])
    hessian = second_difference(back, losses[0], losses[1], STEP)
    whole = None
    if options.task == "lm":
        theirs = list(replace(data, tokenizer=finetuned.tokenizer))
        whole = mean_loss(finetuned.model, CausalLM(), theirs)
    texts = sum(len(batch) for batch in batches)
    exact = expansion(moved.side, moved.changes, batches)
    return Way(tuple(losses), whole, exact, hessian, moved.quadratic, texts)
