"""Vectorised training, its exact derivative and the exact curvature, each against a plain computation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import dense_gradients
from torch import nn

from experiments.common.judging import random_halves
from experiments.digits.engine import gradients, losses, stacked, train, unstacked
from experiments.digits.exact import Exact, ExactCurvature, curvature_rows
from experiments.digits.heads import WholeNetworkScorer
from experiments.digits.images import Digits, Images, Parts, load_parts
from experiments.digits.network import BODY, Network, new_networks
from experiments.digits.settings import Schedule, Settings
from experiments.digits.truth import retrained
from experiments.digits.unrolled import hessian_products, unrolled_scores
from msif.attribution.gradients import Side, query_gradients
from msif.attribution.scorers import InfluenceScorer
from msif.curvature.cg import Damped
from msif.curvature.filters import Accumulation, DampedInverse, Decay
from msif.curvature.ggn import GGN
from msif.draws import generator
from msif.errors import MsifError
from msif.models.select import track_modules

TINY = Settings(
    pretraining=40,
    finetuning=16,
    queries=4,
    halves=3,
    pretrain=Schedule(0.5, 30),
    finetune=Schedule(0.25, 10),
)


def in_double(images):
    return replace(images, x=images.x.double())


@pytest.fixture(scope="module")
def parts():
    loaded = load_parts(TINY)
    return Parts(*(in_double(images) for images in vars(loaded).values()))


def networks(count, head=0):
    return [new_networks(seed)[head].double() for seed in range(count)]


def plain_training(network, images, rows, optimizer, steps):
    x, y = images.x[rows], images.y[rows]
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("optimizer", ["descent", "adam"])
def test_many_networks_at_once_learn_what_each_learns_alone(parts, optimizer):
    rows = torch.from_numpy(np.stack([np.flatnonzero(mask) for mask in random_halves(generator(0, 1), 3, 40)]))
    schedule = Schedule(0.5 if optimizer == "descent" else 0.01, 25, optimizer)
    many = train(stacked(networks(3)), parts.pretraining, rows, schedule, keep=[0, 10])
    for number, network in enumerate(networks(3)):
        start = [p.detach().clone() for p in network.parameters()]
        kind = torch.optim.SGD if optimizer == "descent" else torch.optim.Adam
        plain = kind(network.parameters(), lr=schedule.learning_rate)
        plain_training(network, parts.pretraining, rows[number], plain, 10)
        at_ten = [p.detach().clone() for p in network.parameters()]
        plain_training(network, parts.pretraining, rows[number], plain, 15)
        for got, expected in (
            (many.layers, network.parameters()),
            (many.kept[0], start),
            (many.kept[10], at_ten),
            (unstacked(many.layers, number).parameters(), network.parameters()),
        ):
            for one, other in zip(got, expected, strict=True):
                one = one if one.shape == other.shape else one[number]
                torch.testing.assert_close(one.double(), other.detach(), rtol=1e-6, atol=1e-7)
        for place, state in enumerate(plain.state.values() if optimizer == "adam" else []):
            torch.testing.assert_close(many.moments[place][number], state["exp_avg_sq"])


def test_both_stages_retrained_equal_plain_training(parts):
    single = Parts(*(replace(images, x=images.x.float()) for images in vars(parts).values()))
    rows = torch.arange(12).view(2, 6)
    got = retrained(TINY, single, rows, [7, 8])
    for number, seed in enumerate([7, 8]):
        network, other = new_networks(seed)
        for images, chosen, schedule in (
            (single.pretraining, rows[number], TINY.pretrain),
            (single.finetuning, torch.arange(16), TINY.finetune),
        ):
            sgd = torch.optim.SGD(network.parameters(), lr=schedule.learning_rate)
            plain_training(network, images, chosen, sgd, schedule.steps)
            network.head = other.head
        # `other` kept its first weights in pre-training, and took part in fine-tuning
        expected = Digits().losses(network(single.queries.x), single.queries).detach()
        torch.testing.assert_close(torch.from_numpy(got[number]), expected, rtol=1e-4, atol=1e-5)


def test_gradients_and_hessian_products_equal_autograd(parts):
    (network,) = networks(1)
    layers = stacked([network])
    images = parts.pretraining
    x, y = images.x.T.unsqueeze(0), images.y.unsqueeze(0)
    u = [torch.randn_like(parameter) for parameter in layers]

    def mean_loss(*flat):
        h = images.x
        for place in range(0, 6, 2):
            h = h @ flat[place].T + flat[place + 1]
            h = h if place == 4 else h.tanh()
        return nn.functional.cross_entropy(h, images.y)

    flat, direction = tuple(p[0] for p in layers), tuple(v[0] for v in u)
    loss_gradients = torch.autograd.functional.vjp(mean_loss, flat, torch.tensor(1.0).double())[1]
    expected = torch.autograd.functional.hvp(mean_loss, flat, direction)[1]
    products, slopes = hessian_products(layers, u, x, y)
    for got, gradient, product, wanted in zip(gradients(layers, x, y), loss_gradients, products, expected, strict=True):
        torch.testing.assert_close(got[0], gradient)
        torch.testing.assert_close(product[0], wanted)
    by_image = query_gradients(Side(network, track_modules(network), Digits()), [images])
    along = sum(
        (by_image[name] * torch.cat([W, b.unsqueeze(-1)], dim=-1)).sum((1, 2))
        for name, W, b in zip([*BODY, "head"], u[::2], u[1::2], strict=True)
    )
    torch.testing.assert_close(slopes[0], along)


def test_the_exact_derivative_is_that_of_weighted_retraining(parts):
    """Both stages are trained again with one image's weight moved by ε, in float64."""
    first, head = stacked(networks(1)), stacked(networks(1, head=1))[-2:]
    scores = unrolled_scores(TINY, parts, first, head)
    count = len(parts.pretraining)

    def outcome(weights):
        layers = first
        for _ in range(TINY.pretrain.steps):
            free = [parameter.detach().requires_grad_() for parameter in layers]
            loss = (losses(free, parts.pretraining)[0] * weights).sum()
            step = torch.autograd.grad(loss, free)
            layers = [p.detach() - TINY.pretrain.learning_rate * g for p, g in zip(free, step, strict=True)]
        rows = torch.arange(len(parts.finetuning)).unsqueeze(0)
        tuned = train([*layers[:-2], *head], parts.finetuning, rows, TINY.finetune).layers
        return losses(tuned, parts.queries)[0]

    uniform, epsilon = torch.full((count,), 1 / count, dtype=torch.float64), 1e-5
    for image in (0, 11, 39):
        bump = torch.zeros(count).double()
        bump[image] = epsilon
        slope = (outcome(uniform + bump) - outcome(uniform - bump)) / (2 * epsilon)
        # a score is of one image more in the mean over N
        assert scores[:, image] * count == pytest.approx((-slope).numpy(), rel=1e-4, abs=1e-7)


@pytest.fixture(scope="module")
def pair(parts):
    """A pre-trained and a fine-tuned network."""
    rows = torch.arange(len(parts.pretraining)).unsqueeze(0)
    pretrained = train(stacked(networks(1)), parts.pretraining, rows, TINY.pretrain).layers
    start = [*pretrained[:-2], *stacked(networks(1, head=1))[-2:]]
    rows = torch.arange(len(parts.finetuning)).unsqueeze(0)
    finetuned = train(start, parts.finetuning, rows, TINY.finetune).layers
    sides = []
    for layers in (pretrained, finetuned):
        network = unstacked(layers, 0).double()
        with torch.no_grad():
            for place, linear in enumerate(network.linear()):
                linear.weight.copy_(layers[2 * place][0])
                linear.bias.copy_(layers[2 * place + 1][0])
        sides.append(Side(network, track_modules(network), Digits()))
    return sides


@pytest.mark.parametrize("whole", [True, False])
def test_the_exact_curvature_is_the_librarys(parts, pair, whole):
    """More parameters than rows with the body, 400 rows; fewer with the head alone, 330."""
    side = pair[0] if whole else pair[0].restricted(["head"])
    curvature = ExactCurvature(side, parts.pretraining)
    b = query_gradients(side, [parts.queries])
    H = GGN(side.model, side.tracked, side.objective, [parts.pretraining])
    solved = Exact(curvature, DampedInverse(0.05)).apply(b)
    back = Damped(H, side.tracked, 0.05).matvec(solved)
    for name, V in b.items():
        torch.testing.assert_close(back[name], V, rtol=1e-6, atol=1e-9)


def test_filters_of_the_exact_curvature_are_those_of_the_matrix(parts, pair):
    side = pair[0].restricted(["head"])
    curvature = ExactCurvature(side, parts.pretraining)
    H = curvature.U @ torch.diag(curvature.sigma[: curvature.U.shape[1]]) @ curvature.U.T
    b = query_gradients(side, [parts.queries])
    kept = Exact(curvature, Decay(3.0)).apply(b)["head"].flatten(1)
    torch.testing.assert_close(kept, b["head"].flatten(1) @ torch.linalg.matrix_exp(-3.0 * H))
    gained = Exact(curvature, Accumulation(3.0)).apply(b)["head"].flatten(1)
    torch.testing.assert_close(gained @ H, b["head"].flatten(1) - kept)


def test_heads_are_counted_where_each_stage_has_them(parts, pair):
    """Against the formula with explicit matrices; and without curvature it is the plain dot product of the bodies."""
    pretrained, finetuned = pair
    curvatures = [ExactCurvature(pretrained, parts.pretraining), ExactCurvature(finetuned, parts.finetuning)]
    filters = DampedInverse(0.1), DampedInverse(0.3)
    stages = [Exact(curvature, filter) for curvature, filter in zip(curvatures, filters, strict=True)]
    got = WholeNetworkScorer(finetuned, pretrained, *stages).score([parts.queries], [parts.pretraining]).values

    def inverse(side, images, shift, V):
        """(RᵀR + λI)⁻¹ V by Woodbury's identity."""
        R = curvature_rows(side, images)
        inner = shift * torch.eye(len(R)).double() + R @ R.T
        return (V - (V @ R.T) @ torch.linalg.solve(inner, R)) / shift

    m = torch.cat([V.flatten(1) for V in query_gradients(finetuned, [parts.queries]).values()], 1)
    g = torch.cat([V.flatten(1) for V in query_gradients(pretrained, [parts.pretraining]).values()], 1)
    body = sum(module.shape[0] * module.shape[1] for module in pretrained.tracked if module.name in BODY)
    moved = inverse(finetuned, parts.finetuning, 0.3, m)[:, :body]
    moved = torch.cat([moved, torch.zeros(len(m), g.shape[1] - body).double()], 1)
    expected = inverse(pretrained, parts.pretraining, 0.1, moved) @ g.T
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-5, atol=1e-8)
    bodies = [side.restricted(BODY) for side in pair]
    without_heads = InfluenceScorer(
        bodies[1],
        bodies[0],
        [
            Exact(ExactCurvature(body, images), filter)
            for body, images, filter in zip(bodies, (parts.pretraining, parts.finetuning), filters, strict=True)
        ],
    )
    others = without_heads.score([parts.queries], [parts.pretraining]).values
    assert abs(others - got).max() > 1e-3 * abs(got).max()


def test_gradients_of_the_library_are_those_of_the_network(parts):
    (network,) = networks(1)
    tracked = track_modules(network)
    assert [module.name for module in tracked] == [*BODY, "head"]
    got = query_gradients(Side(network, tracked, Digits()), [parts.queries])
    for query in range(len(parts.queries)):
        one = Images(*(value[query : query + 1] for value in vars(parts.queries).values()))
        expected = dense_gradients(network, tracked, Digits().losses(network(one.x), one).sum())
        for name, gradient in expected.items():
            torch.testing.assert_close(got[name][query], gradient)


def test_parts_are_different_images():
    settings = Settings(seed=3)
    loaded = load_parts(settings)
    pixels = [tuple(row) for images in vars(loaded).values() for row in images.x.tolist()]
    assert len(set(pixels)) == len(pixels) == 1560
    assert set(loaded.pretraining.y.tolist()) == set(range(10)) and set(loaded.queries.y.tolist()) == {0, 1}
    with pytest.raises(MsifError, match="smaller parts"):
        load_parts(Settings(pretraining=1700))


def test_new_networks_depend_on_their_seed_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    (first, head), (again, _), (other, _) = new_networks(1), new_networks(1), new_networks(2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert isinstance(first, Network) and first.head.out_features == 10 and head.head.out_features == 2
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)
