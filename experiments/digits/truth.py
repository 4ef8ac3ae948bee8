"""What really happens to the queries' losses when both stages are trained again on other pre-training images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from experiments.common.cache import Cache
from experiments.common.judging import random_halves
from experiments.common.parallel import spread
from experiments.digits.engine import losses, stacked, train
from experiments.digits.images import Parts
from experiments.digits.network import new_networks
from experiments.digits.settings import Settings
from msif.draws import generator

HALVES_STREAM = 12
TOGETHER = 20
"""Networks trained at once: as many as stay in a core's cache."""
HALVES_PER_PART = 10


def retrained(settings: Settings, parts: Parts, rows: Tensor, seeds: Sequence[int]) -> np.ndarray:
    """Losses of the queries after both stages, float32 (M, Q), of M trainings.

    Args:
        rows: (M, n), the pre-training images of each.
        seeds: M, of their first weights.
    """
    results = []
    for start in range(0, len(rows), TOGETHER):
        chosen = slice(start, start + TOGETHER)
        firsts, heads = zip(*(new_networks(seed) for seed in seeds[chosen]), strict=True)
        pretrained = train(stacked(firsts), parts.pretraining, rows[chosen], settings.pretrain).layers
        everything = parts.finetuning.indices.expand(len(firsts), -1)
        body = pretrained[:-2]  # all maps but the head, which is replaced
        finetuned = train(body + stacked(heads)[-2:], parts.finetuning, everything, settings.finetune).layers
        results.append(losses(finetuned, parts.queries))
    return torch.cat(results).numpy()


def losses_on_halves(
    settings: Settings, parts: Parts, cache: Cache, processes: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """(masks bool (M, N), losses (M, S, Q)) of M random halves, each trained on from S seeds."""
    masks = random_halves(generator(settings.seed, HALVES_STREAM), settings.halves, settings.pretraining)
    starts = range(0, settings.halves, HALVES_PER_PART)
    measured = spread(partial(_part, settings, parts, cache, masks), starts, processes, "retraining on halves")
    return masks, np.concatenate(measured)


def _part(settings: Settings, parts: Parts, cache: Cache, masks: np.ndarray, start: int) -> np.ndarray:
    """Losses on a few of the halves, (m, S, Q)."""
    here = masks[start : start + HALVES_PER_PART]

    def compute() -> dict[str, np.ndarray]:
        rows = torch.from_numpy(np.stack([np.flatnonzero(mask) for mask in here]))
        rows = rows.repeat_interleave(settings.seeds, dim=0)
        seeds = [settings.first_retraining + number for number in range(settings.seeds)] * len(here)
        values = retrained(settings, parts, rows, seeds)
        return {"losses": values.reshape(len(here), settings.seeds, -1)}

    return cache.arrays(f"halves-{start:04d}", compute)["losses"]
