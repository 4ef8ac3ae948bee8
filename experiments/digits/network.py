"""The network: a body that both stages train, and a head for each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from experiments.digits.images import CLASSES, PIXELS

HIDDEN = 32
BODY = ("body.0", "body.2")
"""The linear maps of the body, as the library names them."""


class Network(nn.Module):
    """64 → 32 → 32 → classes, with tanh between."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh())
        self.head = nn.Linear(HIDDEN, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def linear(self) -> list[nn.Linear]:
        """The three maps in their order."""
        return [module for module in self.modules() if isinstance(module, nn.Linear)]


def new_networks(seed: int) -> tuple[Network, Network]:
    """First weights of one training: a network of ten classes, and one of two of which only the head is used."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(CLASSES), Network(2)
