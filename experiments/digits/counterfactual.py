"""Take a query's top images away from pre-training, train both stages again, and look at the query's loss."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch

from experiments.common.cache import Cache
from experiments.common.parallel import spread
from experiments.digits.images import Parts
from experiments.digits.settings import Settings
from experiments.digits.truth import retrained
from msif.draws import generator

REMOVAL_STREAM = 14
Removal = tuple[str, int]
"""Whose order the images are taken away in, and how many of them."""
RANDOM, OPPONENTS = "random images", "opponents by "


def removals(settings: Settings, scores: Mapping[str, np.ndarray], opponents_of: str) -> dict[str, np.ndarray]:
    """Title -> the order in which each query's images are taken away, (Q, N).

    Args:
        scores: title -> (Q, N), positive for a proponent.
        opponents_of: one of the titles, whose last images are taken as well.
    """
    draw = generator(settings.seed, REMOVAL_STREAM)
    queries, images = settings.counterfactual_queries, settings.pretraining
    orders = {RANDOM: np.stack([draw.permutation(images) for _ in range(queries)])}
    for title, values in scores.items():
        orders[title] = np.argsort(-values[:queries], axis=1, kind="stable")
    return orders | {OPPONENTS + opponents_of: orders[opponents_of][:, ::-1]}


def changes(
    settings: Settings, parts: Parts, cache: Cache, orders: Mapping[str, np.ndarray], processes: int = 1
) -> dict[Removal, np.ndarray]:
    """(title, k) -> the change of each query's loss when its first k images are gone, (Q,), a mean over seeds.

    Each training is compared with one on all images from the same first weights.
    """
    before = cache.arrays("counterfactual/nothing", partial(_on_everything, settings, parts))["losses"]
    work = [(title, k) for k in settings.removed for title in orders]
    after = spread(partial(_after, settings, parts, cache, orders), work, processes, "counterfactual")
    return {removal: (losses - before.T).mean(1) for removal, losses in zip(work, after, strict=True)}


def _seeds(settings: Settings) -> list[int]:
    return [settings.first_counterfactual + number for number in range(settings.counterfactual_seeds)]


def _on_everything(settings: Settings, parts: Parts) -> dict[str, np.ndarray]:
    """Losses without any removal, (seeds, Q)."""
    seeds = _seeds(settings)
    values = retrained(settings, parts, parts.pretraining.indices.expand(len(seeds), -1), seeds)
    return {"losses": values[:, : settings.counterfactual_queries]}


def _after(
    settings: Settings, parts: Parts, cache: Cache, orders: Mapping[str, np.ndarray], removal: Removal
) -> np.ndarray:
    """Each query's loss without its own first k images, (Q, seeds)."""
    title, k = removal
    queries, seeds = settings.counterfactual_queries, _seeds(settings)

    def compute() -> dict[str, np.ndarray]:
        kept = np.sort(orders[title][:, k:], axis=1)
        rows = torch.from_numpy(kept).repeat_interleave(len(seeds), dim=0)
        values = retrained(settings, parts, rows, seeds * queries).reshape(queries, len(seeds), -1)
        return {"losses": np.stack([values[query, :, query] for query in range(queries)])}

    return cache.arrays(f"counterfactual/{k}-{title}", compute)["losses"]
