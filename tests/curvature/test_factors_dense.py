"""A, G and Λ against sums over autograd's own gradients, in float64, on models small enough to write out."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import (
    MLP,
    Classify,
    DeepLinear,
    SquaredError,
    alone,
    dense_gradients,
    documents,
    examples,
    labelled,
    tiny_classifier,
    tiny_lm,
    track_plain,
)
from torch import nn

from msif.curvature.covariance import CovariancePass
from msif.curvature.eigenvalues import LambdaPass
from msif.curvature.filters import DampedInverse
from msif.curvature.fit import FitSettings
from msif.curvature.inputs import find_input_groups
from msif.curvature.preconditioners import EKFAC
from msif.data.documents import collate
from msif.models.blocks import Block
from msif.models.capture import Capture, frozen
from msif.models.objectives import CausalLM, MultiLabelClassification, Regression, generators_for
from msif.models.select import track_modules


def fitted(model, tracked, objective, batches, settings=None):
    """(covariance pass, Λ pass, factors with Λ), all in memory."""
    settings = settings or FitSettings()
    groups = find_input_groups(model, tracked, objective, batches[0])
    covariances = CovariancePass(tracked, groups, torch.device("cpu"), torch.float64, settings.label_samples)
    run(model, tracked, objective, batches, covariances, settings)
    factors = covariances.decompose([module.name for module in tracked])
    second_moments = LambdaPass(tracked, groups, factors, torch.device("cpu"), torch.float64, settings.label_samples)
    run(model, tracked, objective, batches, second_moments, settings)
    return covariances, second_moments, {n: replace(f, Lambda=second_moments.Lambda(n)) for n, f in factors.items()}


def run(model, tracked, objective, batches, consumer, settings):
    with Capture(model, tracked, consumer) as capture:
        for batch in batches:
            capture.run(objective, batch, settings.cotangents(objective, consumer.stream))


def sampled_losses(model, objective, batch, stream, seed=0, draw=0):
    """L(z, ŷ) of a batch with the very labels that a pass draws, differentiable in the weights."""
    with torch.enable_grad():
        outputs = objective.outputs(model, batch)
        labels = objective.sample(outputs.detach(), batch, generators_for(seed, stream, batch.indices, draw))
        return objective.losses(outputs, batch, labels)


def sides(model, tracked, losses):
    """Name -> (left, right) of each use in one sequence's loss, (T, d_out) and (T, d), by plain hooks."""
    seen, found = {}, {}
    hooks = [
        model.get_submodule(path).register_forward_hook(
            lambda _, x, y, path=path: (y.retain_grad(), seen.setdefault(path, []).append((x[0][0], y)))[1]
        )
        for path in dict.fromkeys(use.path for module in tracked for use in module.uses)
    ]
    losses().sum().backward()
    for hook in hooks:
        hook.remove()
    for module in tracked:
        for use in module.uses:
            inner = model.get_submodule(use.path)
            for x, y in seen[use.path]:
                # of vectors that are no sequences, the only position
                x, g = (one.detach().reshape(len(y[0]) if y.ndim > 2 else 1, -1) for one in (x, y.grad[0]))
                ones = torch.ones(len(g), 1).double()
                if use.kind == "linear":
                    pair = (g, torch.cat([x, ones], 1) if module.bias else x)
                elif use.kind == "lookup":
                    pair = (nn.functional.one_hot(x[:, 0], module.d_out).double(), g)
                elif use.kind == "scale":
                    pair = (ones, g * nn.functional.layer_norm(x, inner.normalized_shape, eps=inner.eps))
                else:
                    pair = (ones, g)
                found.setdefault(module.name, []).append(pair)
    model.zero_grad()
    return found


def moment(rows, basis, weights=None):
    """Σ w row rowᵀ, or its diagonal."""
    weights = torch.ones(len(rows)).double() if weights is None else weights
    product = (rows * weights[:, None]).T @ rows
    return product if basis == "eigenvectors" else product.diagonal()


def rotated(f, gradient):
    """Q_Gᵀ ∇L Q_A by block, written out."""
    Q_A = torch.eye(gradient.shape[1]).double() if f.Q_A is None else f.Q_A
    rows = gradient.unflatten(0, (f.blocks, -1))
    Q_G = [torch.eye(rows.shape[1]).double()] * f.blocks if f.Q_G is None else f.Q_G
    return torch.stack([Q_G[b].T @ rows[b] @ Q_A for b in range(f.blocks)])


def check_covariances(covariances, module, lefts, rights, positions):
    """A and G of one parameter against their definitions; ``lefts`` and ``rights`` of all uses, row by row."""
    left, right = torch.cat(lefts), torch.cat(rights)
    weights, size = (right.square().sum(1), left.square().sum(1)) if module.mixed else (None, None)
    A, G = covariances.A(covariances.groups[module.name]), covariances.G(module.name)
    count = positions if module.mixed else len(right)  # a mean over uses, or weighted
    torch.testing.assert_close(A, moment(right, module.column_basis, size) / count)
    count = float(weights @ size) if module.mixed else positions
    for b, block in enumerate(module.blocks):
        rows = left[:, block.start : block.stop]
        torch.testing.assert_close(G[b], moment(rows, module.row_basis, weights) / count)


@pytest.mark.parametrize(
    ("settings", "modules", "tied"),
    [
        (FitSettings(), "all", False),
        (FitSettings(), "everything", False),
        (FitSettings(), "everything", True),
        (FitSettings(label_samples=2), "all", False),
        (FitSettings(label_samples=2), "everything", True),
        (FitSettings(fisher="empirical"), "everything", False),
        (FitSettings(fisher="empirical"), "everything", True),
    ],
)
def test_covariances_and_eigenvalues_of_a_language_model_match_autograd(settings, modules, tied):
    model, objective = tiny_lm(tie_word_embeddings=tied), CausalLM()
    tracked = track_modules(model, modules)
    assert any(module.mixed for module in tracked) == tied
    texts = documents([5, 9, 3, 7], prompt=2)
    covariances, _, factors = fitted(model, tracked, objective, [collate(texts[:3]), collate(texts[3:])], settings)

    # dense: both sides by plain hooks, one document at a time, no padding anywhere
    lefts, rights = {m.name: [] for m in tracked}, {m.name: [] for m in tracked}
    Lambda = {m.name: 0.0 for m in tracked}
    model.eval()
    positions, supervised = 0, 0
    for batch in alone(texts):
        live = int(batch.attention_mask.sum()) - 1
        supervised += int(batch.supervised.sum())
        for draw in range(settings.label_samples):
            positions += live

            def losses(stream, batch=batch, draw=draw):
                if settings.fisher == "empirical":
                    return objective.losses(objective.outputs(model, batch), batch)
                return sampled_losses(model, objective, batch, stream, draw=draw)

            found = sides(model, tracked, lambda losses=losses: losses(CovariancePass.stream))
            for name, pairs in found.items():
                for left, right in pairs:
                    lefts[name].append(left[:live])
                    rights[name].append(right[:live])
            for name, gradient in dense_gradients(model, tracked, losses(LambdaPass.stream).sum()).items():
                Lambda[name] += rotated(factors[name], gradient) ** 2

    for m in tracked:
        check_covariances(covariances, m, lefts[m.name], rights[m.name], positions)
        torch.testing.assert_close(factors[m.name].Lambda, Lambda[m.name] / (supervised * settings.label_samples))


def test_factors_of_a_table_and_of_a_norm_are_what_they_stand_for():
    """Token counts and a moment of g for a table that is looked up; one row and squares for a scale and a shift."""
    model, objective = tiny_lm(), CausalLM()
    tracked = track_modules(model, "embed_in|final_layer_norm")
    texts, settings = documents([5, 9, 3, 7], prompt=2), FitSettings(fisher="empirical")
    covariances, _, factors = fitted(model, tracked, objective, [collate(texts)], settings)
    assert list(factors) == ["embed_in", "final_layer_norm.weight", "final_layer_norm.bias"]
    T = sum(len(text.input_ids) - 1 for text in texts)
    ids = np.concatenate([text.input_ids[:-1] for text in texts])
    table = factors["embed_in"]
    torch.testing.assert_close(table.S_G[0], torch.from_numpy(np.bincount(ids, minlength=11)).double() / T)
    assert table.Q_G is None and table.Q_A is not None
    outputs = [], []
    model.eval()
    for batch in alone(texts):
        y = []
        hooks = [
            model.get_submodule(f"gpt_neox.{name}").register_forward_hook(lambda *call, y=y: y.append(call[-1]))
            for name in ("embed_in", "final_layer_norm")
        ]
        loss = objective.losses(objective.outputs(model, batch), batch).sum()
        for hook in hooks:
            hook.remove()
        for kept, g in zip(outputs, torch.autograd.grad(loss, y), strict=True):
            kept.append(torch.stack([g[0, :-1], y[1][0, :-1].detach()]))
    g = torch.cat(outputs[0], 1)[0]
    torch.testing.assert_close(covariances.A("embed_in"), g.T @ g / T)
    torch.testing.assert_close(table.Q_A @ table.S_A.diag() @ table.Q_A.T, g.T @ g / T)
    (g, y), norm = torch.cat(outputs[1], 1), model.gpt_neox.final_layer_norm
    for key, right in (("weight", g * (y - norm.bias) / norm.weight), ("bias", g)):
        f = factors[f"final_layer_norm.{key}"]
        assert f.Q_A is None and f.Q_G is None and f.S_G.tolist() == [[1.0]]
        torch.testing.assert_close(f.S_A, right.detach().square().sum(0) / T)


class Twice(MLP):
    """One map that runs twice."""

    def forward(self, x):
        return self.layers[1](torch.tanh(self.layers[0](torch.tanh(self.layers[0](x)))))


def test_of_several_uses_inputs_are_averaged_and_gradients_summed():
    torch.manual_seed(0)
    model, objective = Twice([4, 4, 3]).double(), Classify()
    tracked = track_plain(model)
    data = examples(torch.randn(6, 4).double(), torch.randint(0, 3, (6,)))
    covariances, _, factors = fitted(model, tracked, objective, data, FitSettings(fisher="empirical"))
    lefts, rights, Lambda = ({m.name: [] for m in tracked} for _ in range(3))
    for batch in examples(data[0].x, data[0].y, 1):
        losses = lambda batch=batch: objective.losses(model(batch.x), batch)  # noqa: E731
        for name, pairs in sides(model, tracked, losses).items():
            lefts[name] += [left for left, _ in pairs]
            rights[name] += [right for _, right in pairs]
        for name, gradient in dense_gradients(model, tracked, losses().sum()).items():
            Lambda[name].append(rotated(factors[name], gradient) ** 2)
    assert len(lefts["layers.0"]) == 2 * len(lefts["layers.1"]) == 12
    for m in tracked:
        check_covariances(covariances, m, lefts[m.name], rights[m.name], 6)
        torch.testing.assert_close(factors[m.name].Lambda, torch.stack(Lambda[m.name]).mean(0))


def test_sampled_factors_approach_the_fisher_by_enumeration():
    """With two supervised tokens, E over ŷ is a sum over V² label pairs; the sampled Λ must approach it."""
    model, objective = tiny_lm(), CausalLM()
    tracked = track_modules(model, "mlp")
    (document,) = documents([6], prompt=4)
    batch = collate([document])
    _, _, factors = fitted(model, tracked, objective, [batch], FitSettings(label_samples=500))
    model.eval()
    outputs = objective.outputs(model, batch)
    log_p = outputs.log_softmax(-1)[0]
    expected = {m.name: 0.0 for m in tracked}
    for first, second in itertools.product(range(log_p.shape[1]), repeat=2):
        weight = (log_p[3, first] + log_p[4, second]).exp().item()
        labels = batch.input_ids.roll(-1, 1)
        labels[0, 3], labels[0, 4] = first, second
        for name, gradient in dense_gradients(model, tracked, objective.losses(outputs, batch, labels).sum()).items():
            f = factors[name]
            expected[name] += weight * (f.Q_G[0].T @ gradient @ f.Q_A) ** 2 / 2
    for name, value in expected.items():
        assert (factors[name].Lambda - value).norm() < 0.15 * value.norm(), name


@pytest.mark.parametrize("kind", [Regression, MultiLabelClassification])
def test_sampled_factors_of_heads_with_numbers_approach_the_gauss_newton_matrix(kind):
    """Λ is the diagonal of H = (1/N) Σ_z Jᵀ ∇²L J in the eigenbasis, N predictions, and G the mean of Jᵀ ∇²L J of g."""
    model = tiny_classifier(num_labels=2)
    objective = kind(0, 2)
    tracked = track_modules(model, "mlp")
    labels = [[0.3, 1.5], [-1.0, 0.0]] if kind is Regression else [[1, 0], [0, 0]]
    texts = labelled([4, 6], labels)
    _, _, factors = fitted(model, tracked, objective, [collate(texts)], FitSettings(label_samples=400))
    model.eval()
    expected = {m.name: 0.0 for m in tracked}
    for batch in alone(texts):
        outputs = objective.outputs(model, batch)
        rows = [dense_gradients(model, tracked, output) for output in outputs[0]]
        for k, row in enumerate(rows):
            curvature = 2.0 if kind is Regression else torch.sigmoid(outputs[0, k]).mul(torch.sigmoid(-outputs[0, k]))
            for name, gradient in row.items():
                f = factors[name]
                expected[name] += curvature * (f.Q_G[0].T @ gradient @ f.Q_A) ** 2 / 4  # two documents of two outputs
    for name, value in expected.items():
        assert (factors[name].Lambda - value).norm() < 0.15 * value.norm(), name


def test_ekfac_is_exact_for_one_data_point():
    """With one position, vec(g x̄ᵀ) = x̄ ⊗ g: the empirical Fisher of one point is a Kronecker product."""
    torch.manual_seed(0)
    model = MLP([4, 5, 3]).double()
    tracked, objective = track_plain(model), Classify()
    (batch,) = examples(torch.randn(1, 4).double(), torch.tensor([1]))
    _, _, factors = fitted(model, tracked, objective, [batch], FitSettings(fisher="empirical"))
    preconditioner = EKFAC(factors, DampedInverse(damping=0.01))
    gradients = dense_gradients(model, tracked, objective.losses(model(batch.x), batch).sum())
    for module in tracked:
        V = torch.randn(1, *module.shape).double()
        H = torch.outer(gradients[module.name].flatten(), gradients[module.name].flatten())
        expected = torch.linalg.solve(H + 0.01 * torch.eye(len(H)).double(), V.flatten()).view_as(V)
        torch.testing.assert_close(preconditioner.apply({module.name: V.clone()})[module.name], expected)


def test_ekfac_is_exact_for_the_last_layer_of_a_deep_linear_network_with_squared_error():
    """E[g gᵀ] = I for the last layer whatever x is, so H = A ⊗ I exactly; for earlier layers G = WᵀW is fixed too."""
    torch.manual_seed(0)
    model = DeepLinear([4, 3, 2], bias=False).double()
    tracked, objective = track_plain(model), SquaredError()
    x = torch.randn(6, 4).double()
    batches = examples(x, torch.randn(6, 2).double(), size=4)
    _, _, factors = fitted(model, tracked, objective, batches, FitSettings(label_samples=1000))
    W1, W2 = (layer.weight.detach() for layer in model.layers)
    A = {"layers.0": x.T @ x / 6, "layers.1": (x @ W1.T).T @ (x @ W1.T) / 6}
    G = {"layers.0": W2.T @ W2, "layers.1": torch.eye(2).double()}
    for module in tracked:
        # the sampled factors themselves are within sampling error, so the inverse is too
        H = torch.kron(G[module.name], A[module.name])
        V = torch.randn(1, *module.shape).double()
        expected = torch.linalg.solve(H + 0.1 * torch.eye(len(H)).double(), V.flatten()).view_as(V)
        got = EKFAC(factors, DampedInverse(damping=0.1)).apply({module.name: V.clone()})[module.name]
        assert (got - expected).norm() < 0.08 * expected.norm()


def test_labels_do_not_depend_on_the_batch():
    model, objective = tiny_lm(), CausalLM()
    tracked = track_modules(model)
    texts = documents([5, 9, 3, 7, 8])
    _, _, together = fitted(model, tracked, objective, [collate(texts)])
    _, _, apart = fitted(model, tracked, objective, alone(texts[::-1]))
    for name, f in together.items():
        torch.testing.assert_close(f.S_A, apart[name].S_A)
        torch.testing.assert_close(f.S_G, apart[name].S_G)
        V = torch.randn(1, *f.Lambda.flatten(0, 1).shape).double()
        one, other = (EKFAC(x).apply({name: V.clone()})[name] for x in (together, apart))
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_damping_never_changes_lambda():
    """Damping added to Λ in place grew with every query in an earlier tool."""
    model, objective = tiny_lm(), CausalLM()
    tracked = track_modules(model)
    _, _, factors = fitted(model, tracked, objective, [collate(documents([5, 6]))])
    before = {name: f.Lambda.clone() for name, f in factors.items()}
    V = {name: torch.randn(2, *f.Lambda.flatten(0, 1).shape).double() for name, f in factors.items()}
    first = EKFAC(factors, DampedInverse(damping=0.5)).apply({k: v.clone() for k, v in V.items()})
    EKFAC(factors, DampedInverse(damping=3.0)).apply({k: v.clone() for k, v in V.items()})
    again = EKFAC(factors, DampedInverse(damping=0.5)).apply({k: v.clone() for k, v in V.items()})
    for name in V:
        assert torch.equal(first[name], again[name])
        assert torch.equal(factors[name].Lambda, before[name])


def test_frozen_gradients_do_not_leak():
    model = tiny_lm()
    with frozen(model):
        assert not any(p.requires_grad for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())


class Heads(nn.Module):
    """q, k and v of two heads of size 2 from one input, fused into one map or each a map of its own."""

    def __init__(self, fused):
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.heads = nn.ModuleList([nn.Linear(5, 12)] if fused else [nn.Linear(5, 2) for _ in range(6)])
        self.last = nn.Linear(2, 3)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        q0, k0, v0, q1, k1, v1 = torch.cat([head(x) for head in self.heads], -1).split(2, -1)
        return self.last(torch.sigmoid(q0 * k0) * v0 + torch.sigmoid(q1 * k1) * v1)


def test_head_blocks_equal_a_model_whose_heads_are_separate_modules():
    torch.manual_seed(0)
    fused, separate = Heads(True).double(), Heads(False).double()
    state = fused.state_dict()
    for kind in ("weight", "bias"):
        for number, part in enumerate(state.pop(f"heads.0.{kind}").split(2)):
            state[f"heads.{number}.{kind}"] = part
    separate.load_state_dict(state)
    blocks = tuple(
        Block(2 * i, 2 * i + 2, role, head) for i, (head, role) in enumerate(itertools.product((0, 1), "qkv"))
    )
    tracked = [replace(m, blocks=blocks) if m.name == "heads.0" else m for m in track_plain(fused)]
    data = examples(torch.randn(7, 4).double(), torch.randint(0, 3, (7,)), size=4)
    _, _, one = fitted(fused, tracked, Classify(), data)
    _, _, other = fitted(separate, track_plain(separate), Classify(), data)
    V = torch.randn(2, 12, 6).double()
    got = EKFAC(one, DampedInverse(damping_scale=0.1)).apply({"heads.0": V})["heads.0"]
    for number in range(6):
        name = f"heads.{number}"
        torch.testing.assert_close(one["heads.0"].S_G[number], other[name].S_G[0])
        torch.testing.assert_close(one["heads.0"].Lambda[number].sort().values, other[name].Lambda[0].sort().values)
        rows = slice(2 * number, 2 * number + 2)
        expected = EKFAC(other, DampedInverse(damping_scale=0.1)).apply({name: V[:, rows].clone()})[name]
        torch.testing.assert_close(got[:, rows], expected)
