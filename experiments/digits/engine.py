"""Training many networks at once: parameters are stacked, every step is a few batched products.

Letters: M networks, n images each, Q queries. Full-batch steps on the mean loss of an image; what one network learns
does not depend on the others, and equals plain training of it alone (tests/experiments/test_digits.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from experiments.digits.images import Images
from experiments.digits.network import Network
from experiments.digits.settings import Schedule

Layers = list[Tensor]
"""W (M, d_out, d_in) and b (M, d_out) of each linear map in turn."""

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


@dataclass
class Trained:
    """
    Attributes:
        layers: after the last step.
        kept: copies after the steps that were asked for.
        moments: Adam's second moments, uncorrected, in the order of the layers.
    """

    layers: Layers
    kept: dict[int, Layers] = field(default_factory=dict)
    moments: Layers = field(default_factory=list)


def stacked(networks: Sequence[Network]) -> Layers:
    """The parameters of M networks."""
    each = [[p.detach() for linear in net.linear() for p in (linear.weight, linear.bias)] for net in networks]
    return [torch.stack(parameters) for parameters in zip(*each, strict=True)]


def unstacked(layers: Layers, number: int) -> Network:
    """One of the networks."""
    network = Network(layers[-1].shape[1])
    maps = network.linear()
    with torch.no_grad():
        for place, linear in enumerate(maps):
            linear.weight.copy_(layers[2 * place][number])
            linear.bias.copy_(layers[2 * place + 1][number])
    return network


def forward(layers: Layers, x: Tensor) -> list[Tensor]:
    """Inputs of every map and, last, the logits, each (M, d, n); x (M, d_in, n).

    Images lie side by side, so that a sum over ten classes runs along contiguous memory.
    """
    values = [x]
    for place in range(0, len(layers), 2):
        weight, bias = layers[place : place + 2]
        y = torch.bmm(weight, values[-1]).add_(bias.unsqueeze(-1))
        values.append(y if place == len(layers) - 2 else y.tanh_())
    return values


def gradients(layers: Layers, x: Tensor, y: Tensor) -> Layers:
    """Of the mean loss over each network's images, x (M, d_in, n), y (M, n)."""
    values = forward(layers, x)
    g = torch.softmax(values.pop(), dim=1)
    g.scatter_add_(1, y.unsqueeze(1), g.new_full((1,), -1.0).expand(len(y), 1, y.shape[1]))
    g /= x.shape[-1]
    result: Layers = []
    for place in range(len(layers) - 2, -1, -2):
        h = values.pop()
        result[:0] = [torch.bmm(g, h.mT), g.sum(-1)]
        if place:
            g = torch.ops.aten.tanh_backward(torch.bmm(layers[place].mT, g), h)
    return result


def losses(layers: Layers, images: Images) -> Tensor:
    """Each network's loss of each image, (M, Q)."""
    x = images.x.T.expand(len(layers[0]), -1, -1)
    log_p = torch.log_softmax(forward(layers, x)[-1], dim=1)
    return -log_p.gather(1, images.y.expand(len(x), 1, -1)).squeeze(1)


def train(layers: Layers, images: Images, rows: Tensor, schedule: Schedule, keep: Collection[int] = ()) -> Trained:
    """Trains M networks, each on its own rows (M, n) of the images.

    Args:
        layers: first weights; left as they are.
        keep: steps after which a copy is kept; 0 is the start.
    """
    x, y = images.x[rows].mT.contiguous(), images.y[rows]
    layers = [parameter.clone() for parameter in layers]
    step, moments = _optimizer(layers, schedule)
    trained = Trained(layers, moments=moments)
    for number in range(schedule.steps + 1):
        if number in keep:
            trained.kept[number] = [parameter.clone() for parameter in layers]
        if number < schedule.steps:
            step(gradients(layers, x, y), number + 1)
    return trained


def _optimizer(layers: Layers, schedule: Schedule) -> tuple[Callable[[Layers, int], None], Layers]:
    """(what a step does with the gradients, Adam's second moments)."""
    rate = schedule.learning_rate
    if schedule.optimizer == "descent":

        def descend(step: Layers, number: int) -> None:
            for parameter, gradient in zip(layers, step, strict=True):
                parameter.sub_(gradient, alpha=rate)

        return descend, []
    first, second = ([torch.zeros_like(parameter) for parameter in layers] for _ in range(2))

    def adam(step: Layers, number: int) -> None:
        """Kingma and Ba 2015, as torch.optim.Adam has it."""
        scale = rate / (1 - BETA_1**number)
        for parameter, gradient, m, v in zip(layers, step, first, second, strict=True):
            m.lerp_(gradient, 1 - BETA_1)
            v.mul_(BETA_2).addcmul_(gradient, gradient, value=1 - BETA_2)
            parameter.addcdiv_(m, (v / (1 - BETA_2**number)).sqrt_().add_(EPSILON), value=-scale)

    return adam, second
