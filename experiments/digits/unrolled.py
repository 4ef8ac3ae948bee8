"""The derivative of a query's loss by the weight of each pre-training image, through every step of both trainings.

No curvature is approximated, no optimum assumed: gradient descent θ_{k+1} = θ_k − η ∇L(θ_k) is differentiated backwards
(Maclaurin et al. 2015). With u_K = ∇m(q; θ_K) and H_k the Hessian of the mean loss at θ_k,

    u_k = u_{k+1} − η H_k u_{k+1},        I(z → q) = η/N Σ_k ⟨u_{k+1}, ∇L(z; θ_k)⟩    over pre-training

It is what every influence function here approximates, and so the most that a first derivative at one training can say.
Cost: Q Hessian products a step. Letters: Q queries, N images.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from experiments.digits.engine import Layers, forward, gradients, train
from experiments.digits.images import Images, Parts
from experiments.digits.settings import Schedule, Settings


def unrolled_scores(settings: Settings, parts: Parts, pretrained: Layers, head: Layers) -> np.ndarray:
    """Scores (Q, N), positive for a proponent, of one training.

    Args:
        pretrained: first weights of pre-training, M = 1.
        head: first weights of the fine-tuned head, M = 1.
    """
    first = _path(pretrained, parts.pretraining, settings.pretrain)
    second = _path([*first[-1][:-2], *head], parts.finetuning, settings.finetune)
    u = _query_gradients(second[-1], parts.queries)
    for layers in tqdm(second[-2::-1], desc="back through fine-tuning", disable=None):
        u, _ = _step_back(layers, u, parts.finetuning, settings.finetune.learning_rate)
    # the fine-tuned head does not depend on pre-training, nor the queries on the old one
    u = [*u[:-2], *(torch.zeros(len(u[0]), *parameter.shape[1:], dtype=u[0].dtype) for parameter in first[-1][-2:])]
    scores = torch.zeros(len(parts.queries), len(parts.pretraining), dtype=u[0].dtype)
    for layers in tqdm(first[-2::-1], desc="back through pre-training", disable=None):
        u, slopes = _step_back(layers, u, parts.pretraining, settings.pretrain.learning_rate)
        scores += settings.pretrain.learning_rate / len(parts.pretraining) * slopes
    return scores.numpy()


def _path(layers: Layers, images: Images, schedule: Schedule) -> list[Layers]:
    """The parameters before each step, and after the last."""
    rows = torch.arange(len(images)).unsqueeze(0)
    kept = train(layers, images, rows, schedule, range(schedule.steps + 1)).kept
    return [kept[number] for number in range(schedule.steps + 1)]


def _query_gradients(layers: Layers, queries: Images) -> Layers:
    """∇m of each query as Q networks' parameters."""
    point = [parameter.expand(len(queries), *parameter.shape[1:]) for parameter in layers]
    return gradients(point, queries.x.unsqueeze(-1), queries.y.unsqueeze(-1))


def _step_back(layers: Layers, u: Layers, images: Images, rate: float) -> tuple[Layers, Tensor]:
    """(u − η H u, ⟨u, ∇L(z)⟩ (Q, N)) at one step: the derivatives of gradients and losses along u."""
    queries = len(u[0])
    x, y = images.x.T.expand(queries, -1, -1), images.y.expand(queries, -1)
    point = [parameter.expand(queries, *parameter.shape[1:]) for parameter in layers]
    products, slopes = hessian_products(point, u, x, y)
    return [value - rate * product for value, product in zip(u, products, strict=True)], slopes


def hessian_products(layers: Layers, u: Layers, x: Tensor, y: Tensor) -> tuple[Layers, Tensor]:
    """(H u of the mean loss, the slope of each image's loss along u (M, n)): Pearlmutter's R-operator (1994).

    R· is the derivative along u; x (M, d_in, n), y (M, n).
    """
    h = forward(layers, x)
    Rh: list[Tensor] = []  # of each map's input, but the first, which is the data
    for place in range(0, len(layers), 2):
        Rz = torch.bmm(u[place], h[place // 2]).add_(u[place + 1].unsqueeze(-1))
        if place:
            Rz.baddbmm_(layers[place], Rh[-1])
        Rh.append(Rz if place == len(layers) - 2 else torch.ops.aten.tanh_backward(Rz, h[place // 2 + 1]))
    p, Rlogits = torch.softmax(h.pop(), dim=1), Rh.pop()
    Rg = p * (Rlogits - (p * Rlogits).sum(1, keepdim=True)) / x.shape[-1]
    g = p.scatter_add_(1, y.unsqueeze(1), p.new_full((1,), -1.0).expand(len(y), 1, y.shape[1]))
    slopes = (g * Rlogits).sum(1)
    g /= x.shape[-1]
    result: Layers = []
    for place in range(len(layers) - 2, -1, -2):
        below = h.pop()
        product = torch.bmm(Rg, below.mT)
        if place:
            R_below = Rh.pop()
            product.baddbmm_(g, R_below.mT)
        result[:0] = [product, Rg.sum(-1)]
        if place:
            back = torch.bmm(layers[place].mT, g)
            R_back = torch.bmm(layers[place].mT, Rg).baddbmm_(u[place].mT, g)
            # R[(1 − h²) back] = (1 − h²) R[back] − 2 h Rh back
            Rg = torch.ops.aten.tanh_backward(R_back, below).addcmul_(below * back, R_below, value=-2)
            g = torch.ops.aten.tanh_backward(back, below)
    return result, slopes
