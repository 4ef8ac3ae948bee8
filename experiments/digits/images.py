"""Scikit-learn's 1797 digits as batches of the library, and what a network is asked about them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from experiments.digits.settings import Settings
from msif.draws import generator
from msif.errors import MsifError
from msif.models.objectives import Categorical

PIXELS, CLASSES = 64, 10
SPLIT_STREAM = 11


@dataclass(frozen=True)
class Images:
    """B images, pixels in [0, 1] (B, 64), with labels (B,); ``indices`` are their row numbers within their part."""

    indices: Tensor
    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device | str) -> Images:
        return Images(*(value.to(device) for value in vars(self).values()))

    def chosen(self, rows: Tensor) -> Images:
        """Some of the images, by their places here, as a part of their own."""
        return Images(torch.arange(len(rows)), self.x[rows], self.y[rows])

    def parity(self) -> Images:
        """The same images, labelled odd (1) or even (0)."""
        return replace(self, y=self.y % 2)


@dataclass(frozen=True)
class Parts:
    """Different images for each part; pre-training has ten classes, fine-tuning and queries are odd or even. Of the
    rest, which no training sees, as many as pre-training has are held out for its curvature."""

    pretraining: Images
    finetuning: Images
    queries: Images
    held_out: Images


class Digits(Categorical):
    """Cross-entropy of an image's class."""

    def outputs(self, model: nn.Module, batch: Images) -> Tensor:
        return model(batch.x)

    def targets(self, batch: Images) -> Tensor:
        return batch.y

    def predicting(self, batch: Images) -> Tensor:
        return torch.ones(len(batch), dtype=torch.bool, device=batch.x.device)


def load_parts(settings: Settings) -> Parts:
    """The parts, drawn by the settings' seed.

    Raises:
        MsifError: more images are asked for than there are.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    sizes = [settings.pretraining, settings.finetuning, settings.queries, settings.pretraining]
    if sum(sizes) > len(digits.target):
        raise MsifError(f"there are {len(digits.target)} digits, and {sum(sizes)} are asked for: choose smaller parts.")
    order = generator(settings.seed, SPLIT_STREAM).permutation(len(digits.target))
    parts = np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])
    x = torch.tensor(digits.data / 16.0, dtype=torch.float32)
    y = torch.tensor(digits.target, dtype=torch.int64)
    images = [Images(torch.arange(len(rows)), x[rows], y[rows]) for rows in map(torch.from_numpy, parts)]
    return Parts(images[0], images[1].parity(), images[2].parity(), images[3])
