"""Train both stages on random halves of the pre-training documents: the truth of the linear datamodelling score."""

from __future__ import annotations

import numpy as np

from experiments.retraining.settings import Sizes
from experiments.retraining.trainings import Retrainings, Training
from msif.draws import generator

HALVES_STREAM = 22


def draw_halves(documents: int, sizes: Sizes) -> np.ndarray:
    """bool (M, N): which documents each half keeps."""
    draw = generator(sizes.seed, HALVES_STREAM)
    masks = np.zeros((sizes.halves, documents), dtype=bool)
    for mask in masks:
        mask[draw.permutation(documents)[: documents // 2]] = True
    return masks


def losses_on_halves(retrainings: Retrainings, sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """(masks bool (M, N), losses (M, S, Q)) of M halves, that each of S pairs is trained on again."""
    masks = draw_halves(len(retrainings.world.texts), sizes)
    trainings = [Training.without(np.flatnonzero(~mask), seed) for mask in masks for seed in sizes.training_seeds]
    losses = retrainings.losses(trainings, "trainings on halves")
    return masks, losses.reshape(len(masks), sizes.seeds, -1)
