"""All parameters of the architectures that people have, against autograd's own gradients in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, tiny_model
from helpers import alone, documents, spread
from test_factors_dense import fitted
from torch import nn

from msif.attribution import contributions as parts
from msif.attribution.contributions import block_names
from msif.attribution.features import GradientProjector
from msif.attribution.gradients import Side
from msif.attribution.projection import Projection
from msif.attribution.scorers import InfluenceScorer
from msif.curvature import covariance, eigenvalues
from msif.curvature.fit import FitSettings
from msif.curvature.ggn import GGN
from msif.curvature.preconditioners import EKFAC
from msif.data.documents import collate
from msif.models import outer
from msif.models.blocks import as_matrix, stored
from msif.models.capture import Capture, Consumer
from msif.models.objectives import CausalLM
from msif.models.select import coverage, track_modules


class SharedDepth(nn.Module):
    """One layer for every depth, a tied unembedding with a bias of its own, and learned positions."""

    def __init__(self, vocabulary: int = 11, hidden: int = 8) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, hidden)
        self.positions = nn.Embedding(16, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.up, self.down = nn.Linear(hidden, 12), nn.Linear(12, hidden, bias=False)
        self.head = nn.Linear(hidden, vocabulary)
        self.head.weight = self.tokens.weight

    def forward(self, input_ids, attention_mask=None, **_):
        x = self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1])[None])
        for _ in range(3):
            past = x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
            x = x + self.down(torch.tanh(self.up(self.norm(past))))
        return type("Output", (), {"logits": self.head(x)})()


NAMED = ["gpt2", "llama", "gemma2", "gemma3", "opt", "bloom", "gpt_neox", "phi3", "qwen3"]
MORE = ["cohere", "persimmon", "stablelm", "phi", "olmo2", "gptj", "mpt", "starcoder2", "biogpt", "openai-gpt"]
TEXTS = documents([5, 9, 3, 7], seed=9, prompt=2)
QUESTIONS = documents([4, 6], seed=7, prompt=2)


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "shared depth":
        return spread(SharedDepth()).double().eval()
    model = tiny_model(name, **({"tie_word_embeddings": True} if name in ("llama", "qwen3") else {}))
    for parameter in model.parameters():  # no norm at one, no bias at zero
        with torch.no_grad():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double().eval()


def gradients(model, tracked, text):
    """Of one document, each parameter's as a matrix, by autograd with respect to the very parameters."""
    objective = CausalLM()
    loss = objective.losses(objective.outputs(model, text), text).sum()
    found = {}
    for module in tracked:
        weight, bias = stored(model, module)
        own = [weight] if bias is None else [weight, bias]
        grads = torch.autograd.grad(loss, own, retain_graph=True, allow_unused=True)
        grads = [torch.zeros_like(p) if g is None else g for p, g in zip(own, grads, strict=True)]
        W = as_matrix(model, module, grads[0])
        found[module.name] = W if bias is None else torch.cat([W, grads[1][:, None]], 1)
    return found


def check(found, expected, tolerance=1e-5):
    """To 1e-5 of the largest entry: transformers' norms and rotations compute in float32, whatever the dtype."""
    found, expected = torch.as_tensor(found), torch.as_tensor(expected)
    assert found.shape == expected.shape and bool(expected.any())
    assert float((found - expected).abs().max() / expected.abs().max()) < tolerance


def flat(vectors):
    return torch.cat([V.flatten() for V in vectors.values()])


@pytest.fixture(
    params=[*NAMED, "shared depth", "gpt2, blocks:5", "llama, dense", "neox, blocks:2", "shared depth, dense"]
)
def case(request):
    """A model and all of its parameters; some with a vocabulary that has a G, of an unembedding tied or not."""
    name, _, basis = request.param.partition(", ")
    model = made(name.replace("neox", "gpt_neox") if basis else name)
    return model, track_modules(model, "everything", vocabulary_basis=basis or "identity")


@pytest.mark.parametrize("name", [*NAMED, *MORE, "shared depth"])
def test_dot_products_and_contributions_are_those_of_all_parameters(name, monkeypatch):
    model = made(name)
    tracked = track_modules(model, "everything")
    held = {id(p) for module in tracked for p in stored(model, module) if p is not None}
    assert held == {id(p) for p in model.parameters()} and "100.0%" in coverage(model, tracked)
    assert sum(module.shape[0] * module.shape[1] for module in tracked) == sum(p.numel() for p in model.parameters())
    side = Side(model, tracked, CausalLM())
    expected = torch.stack([flat(gradients(model, tracked, q)) for q in alone(QUESTIONS)])
    texts = torch.stack([flat(gradients(model, tracked, z)) for z in alone(TEXTS)])
    batches = [collate(TEXTS[:3]), collate(TEXTS[3:])]
    scorer = InfluenceScorer(side, side)
    vectors = scorer.query_vectors([collate(QUESTIONS)])
    scores = scorer.score_vectors(vectors, batches).values
    check(scores, expected @ texts.T)
    cosine = InfluenceScorer(side, side, normalize="both").score([collate(QUESTIONS)], batches).values
    unit = [nn.functional.normalize(rows) for rows in (expected, texts)]
    check(cosine, unit[0] @ unit[1].T)
    found = scorer.explain(vectors, batches)
    monkeypatch.setattr(outer, "CHUNK_ELEMENTS", 1)  # of each sequence by itself
    for one, other in zip(found, scorer.explain(vectors, batches), strict=True):
        check(other.tokens, one.tokens)
    assert found[0].blocks.shape[1] == len(block_names(tracked))
    for part, column in zip(found, scores.T, strict=True):
        check(part.scores, column)
        check(part.tokens.sum(1), column)
    assert isinstance(found[0], parts.Contributions)


def test_contributions_of_a_tied_vocabularys_blocks_are_those_of_their_rows():
    model = made("llama")
    (module,) = tracked = track_modules(model, "^embed_tokens$", vocabulary_basis="blocks:5")
    side = Side(model, tracked, CausalLM())
    scorer = InfluenceScorer(side, side)
    found = scorer.explain(scorer.query_vectors([collate(QUESTIONS)]), [collate(TEXTS)])
    asked = [gradients(model, tracked, q)[module.name] for q in alone(QUESTIONS)]
    for part, text in zip(sorted(found, key=lambda part: part.index), alone(TEXTS), strict=True):
        own = gradients(model, tracked, text)[module.name]
        check(part.blocks, torch.stack([(own * q).sum(1).unflatten(0, (5, -1)).sum(1) for q in asked]))


class Sides(Consumer):
    """The right side of each parameter that has one use."""

    def __init__(self):
        self.rights = {}

    def backward(self, module, uses):
        self.rights[module.name] = torch.stack([use.right for use in uses]).sum(0)


@pytest.mark.parametrize("name", ["phi", "gemma3", "qwen3", "stablelm"])
def test_as_many_positions_as_heads_are_not_taken_for_them(name):
    """Norms within attention run before and after heads are moved; in a longer batch no two sizes are equal."""
    model, texts = made(name), documents([4, 4], seed=3)
    assert model.config.num_attention_heads == 4
    tracked = [module for module in track_modules(model, "everything") if module.row_basis == "identity"]
    found = []
    for batch in (texts, [*texts, *documents([7], seed=4)]):
        consumer, objective = Sides(), CausalLM()
        with Capture(model, tracked, consumer) as capture:
            capture.run(objective, collate(batch), [objective.loss_gradient])
        found.append(consumer.rights)
    for module in tracked:
        check(found[0][module.name], found[1][module.name][:2, :4])


def factors_of(model, tracked, batches):
    _, _, factors = fitted(model, tracked, CausalLM(), batches, FitSettings(fisher="empirical"))
    return factors


@pytest.mark.parametrize("chunk", [eigenvalues.CHUNK_ELEMENTS, 17])
def test_eigenvalues_are_squares_of_whole_gradients_in_both_bases(case, chunk, monkeypatch):
    model, tracked = case
    monkeypatch.setattr(eigenvalues, "CHUNK_ELEMENTS", chunk)
    factors = factors_of(model, tracked, [collate(TEXTS[:3]), collate(TEXTS[3:])])
    expected = {module.name: 0.0 for module in tracked}
    for text in alone(TEXTS):
        for name, gradient in gradients(model, tracked, text).items():
            f = factors[name]
            rows = gradient.unflatten(0, (f.blocks, -1))
            rows = rows if f.Q_G is None else f.Q_G.transpose(1, 2) @ rows
            expected[name] = expected[name] + (rows if f.Q_A is None else rows @ f.Q_A).square()
    supervised = sum(int(text.supervised.sum()) for text in alone(TEXTS))
    for module in tracked:
        f = factors[module.name]
        check(f.Lambda, expected[module.name] / supervised)
        assert (f.Q_G is None) == (module.row_basis == "identity")
        # each side's bases belong to what the factors say: orthogonal, with the moments' eigenvalues
        assert f.S_A.shape == (module.shape[1],) and f.S_G.shape == (len(module.blocks), module.block_rows)


@pytest.mark.parametrize("chunk", [covariance.CHUNK_ELEMENTS, 17])
@pytest.mark.parametrize("basis", ["identity", "blocks:5", "dense"])
def test_moments_of_a_tied_weight_weigh_each_side_by_the_other(basis, chunk, monkeypatch):
    """A = Σ ‖left‖² right rightᵀ/T and G = Σ left leftᵀ ‖right‖² over the sum of weights, over both uses' positions."""
    monkeypatch.setattr(covariance, "CHUNK_ELEMENTS", chunk)
    model = made("llama")
    (module,) = track_modules(model, "^embed_tokens$", vocabulary_basis=basis)
    assert module.mixed and len(module.blocks) == (5 if basis == "blocks:5" else 1)
    covariances, _, _ = fitted(model, [module], CausalLM(), [collate(TEXTS)], FitSettings(fisher="empirical"))
    sides = []
    for text in alone(TEXTS):
        seen = {}
        handles = [
            model.model.embed_tokens.register_forward_hook(lambda m, i, o, s=seen: s.update(ids=i[0], rows=o)),
            model.lm_head.register_forward_hook(lambda m, i, o, s=seen: s.update(x=i[0], y=o)),
        ]
        model.requires_grad_(True)
        loss = CausalLM().losses(CausalLM().outputs(model, text), text).sum()
        for handle in handles:
            handle.remove()
        rows, y = torch.autograd.grad(loss, [seen["rows"], seen["y"]])
        one_hot = nn.functional.one_hot(seen["ids"], module.d_out).double()
        sides += [(one_hot[0], rows[0]), (y[0], seen["x"].detach()[0])]
    left, right = (torch.cat(part) for part in zip(*sides, strict=True))
    positions = sum(len(text.input_ids[0]) - 1 for text in alone(TEXTS))  # the last foretells nothing
    check(covariances.A(module.name), (right * left.square().sum(1, keepdim=True)).T @ right / positions)
    G = (left * right.square().sum(1, keepdim=True)).T @ left
    size = module.block_rows
    blocks = torch.stack([G[i : i + size, i : i + size] for i in range(0, module.d_out, size)])
    expected = G.diagonal()[None] if basis == "identity" else blocks
    check(covariances.G(module.name), expected / G.trace())


def test_products_with_the_curvature_are_dense_ones(case):
    model, tracked = case
    texts = [collate(TEXTS[:2])]
    generator = torch.Generator().manual_seed(3)
    vectors = {m.name: torch.randn(1, *m.shape, generator=generator, dtype=torch.float64) for m in tracked}
    product = GGN(model, tracked, CausalLM(), texts).matvec(vectors)
    objective, weights = CausalLM(), list(dict.fromkeys(model.parameters()))
    batch = texts[0]

    def outputs(*values):
        names = [name for name, _ in model.named_parameters()]
        held = dict(zip(names, values, strict=True))
        wrapped = type("Wrapped", (nn.Module,), {"forward": lambda self, b: objective.outputs(self.model, b)})()
        wrapped.model = model
        return torch.func.functional_call(wrapped, {f"model.{n}": v for n, v in held.items()}, (batch,))

    tangents = {id(p): torch.zeros_like(p) for p in weights}
    for module in tracked:
        weight, bias = stored(model, module)
        as_matrix(model, module, tangents[id(weight)]).copy_(vectors[module.name][0][:, : module.d_in])
        if bias is not None:
            tangents[id(bias)].copy_(vectors[module.name][0][:, -1])
    ordered = [tangents[id(p)] for p in weights]
    out, along = torch.autograd.functional.jvp(outputs, tuple(p.detach() for p in weights), tuple(ordered))
    u = objective.loss_hessian_product(out.detach(), along, batch)
    grads = torch.autograd.grad(objective.outputs(model, batch), weights, u, allow_unused=True)
    grads = {id(p): torch.zeros_like(p) if g is None else g for p, g in zip(weights, grads, strict=True)}
    supervised = int(batch.supervised.sum())
    for module in tracked:
        weight, bias = stored(model, module)
        dense = as_matrix(model, module, grads[id(weight)])
        dense = dense if bias is None else torch.cat([dense, grads[id(bias)][:, None]], 1)
        check(product[module.name][0], dense / supervised)


def test_projected_gradients_are_the_projections_of_whole_ones(case):
    model, tracked = case
    side, projection = Side(model, tracked, CausalLM()), Projection(3, 5, seed=4)
    with GradientProjector(side, projection, [side.objective.loss_gradient]) as project:
        found = torch.cat([project(collate(TEXTS[:3]))[0], project(collate(TEXTS[3:]))[0]])
    for row, text in zip(found, alone(TEXTS), strict=True):
        whole = gradients(model, tracked, text)
        for module in tracked:
            P_out, P_in = projection.matrices(module)
            expected = whole[module.name] if P_out is None else P_out @ whole[module.name]
            expected = expected if P_in is None else expected @ P_in.T
            columns = projection.columns(tracked)[module.name]
            check(row[columns], expected.flatten())


def test_influence_with_fitted_factors_is_the_dense_formula(case):
    model, tracked = case
    side = Side(model, tracked, CausalLM())
    factors = factors_of(model, tracked, [collate(TEXTS)])
    scores = InfluenceScorer(side, side, [EKFAC(factors)]).score([collate(QUESTIONS)], [collate(TEXTS)]).values
    expected = np.zeros_like(scores)
    texts = [gradients(model, tracked, text) for text in alone(TEXTS)]
    for row, question in enumerate(alone(QUESTIONS)):
        left = gradients(model, tracked, question)
        for column, right in enumerate(texts):
            for name, f in factors.items():
                a, b = f.rotate(left[name]), f.rotate(right[name])
                shift = 0.1 * f.Lambda.mean((1, 2), keepdim=True)
                value = torch.where(f.Lambda.amax((1, 2), keepdim=True) > 0, a * b / (f.Lambda + shift), 0.0)
                expected[row, column] += float(value.sum())
    check(scores, expected)


def test_the_architectures_are_there():
    assert set(NAMED + MORE) <= set(ARCHITECTURES)
