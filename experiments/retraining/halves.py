"""Train both stages on random halves of the pre-training documents: the truth of the linear datamodelling score."""

from __future__ import annotations

import numpy as np

from experiments.common.judging import random_halves
from experiments.retraining.settings import Sizes
from experiments.retraining.trainings import Retrainings, Training
from msif.draws import generator

HALVES_STREAM = 22


def losses_on_halves(retrainings: Retrainings, sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """(masks bool (M, N), losses (M, S, O, Q)) of M halves, that each of S pairs is trained on again in O orders."""
    masks = random_halves(generator(sizes.seed, HALVES_STREAM), sizes.halves, len(retrainings.world.texts))
    trainings = [
        Training.without(np.flatnonzero(~mask), seed, order)
        for order in range(sizes.orders)
        for mask in masks
        for seed in sizes.training_seeds
    ]
    losses = retrainings.losses(trainings, "trainings on halves")
    return masks, np.moveaxis(losses.reshape(sizes.orders, len(masks), sizes.seeds, -1), 0, 2)
