"""Curvature products on every architecture that the layouts know, against autograd on the weights themselves."""

import pytest
import torch
from architectures import ARCHITECTURES, tiny_model
from helpers import documents, spread

from msif.curvature.ggn import GGN
from msif.data.documents import collate
from msif.models.blocks import is_transposed
from msif.models.objectives import CausalLM
from msif.models.select import track_modules

# their grouped products have no float64
EXPERTS = ("gpt_oss", "minimax", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe")


@pytest.fixture(autouse=True)
def wide():
    """Some architectures make tensors of the default dtype, whatever the model's."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def by_weight(model, tracked, vectors, query):
    """(weight or bias, its part of a vector as it is stored) of every tracked map."""
    for module in tracked:
        inner, V = model.get_submodule(module.path), vectors[module.name][query]
        weight = V[:, : module.d_in]
        yield inner.weight, weight.T if is_transposed(inner) else weight
        if module.bias:
            yield inner.bias, V[:, -1]


def reference(model, tracked, batch, vectors, query):
    """H v by each weight and bias: J v from the gradients of ⟨outputs, u⟩, which are linear in u, then Jᵀ ∇²L J v."""
    objective, pairs = CausalLM(), list(by_weight(model, tracked, vectors, query))
    weights = [weight for weight, _ in pairs]
    outputs = objective.outputs(model, batch)
    u = torch.zeros_like(outputs, requires_grad=True)
    gradients = torch.autograd.grad(outputs, weights, u, create_graph=True)
    (tangent,) = torch.autograd.grad(sum((g * v).sum() for g, (_, v) in zip(gradients, pairs, strict=True)), u)
    curved = objective.loss_hessian_product(outputs.detach(), tangent, batch)
    gradients = torch.autograd.grad(outputs, weights, curved)
    return [g / int(objective.supervised_counts(batch).sum()) for g in gradients]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_products_are_those_of_the_model(architecture):
    dtype, tolerance = (torch.float32, 2e-3) if architecture in EXPERTS else (torch.float64, 1e-4)
    model = spread(tiny_model(architecture)).to(dtype)
    tracked, batch = track_modules(model), collate(documents([6, 9], prompt=2))
    vectors = {
        m.name: torch.randn(2, *m.shape, generator=torch.Generator().manual_seed(0), dtype=dtype) for m in tracked
    }
    product = GGN(model, tracked, CausalLM(), [batch]).matvec(vectors)
    expected = reference(model, tracked, batch, vectors, 1)
    scale = max(float(g.abs().max()) for g in expected)
    assert scale > 1e-6
    for (_, found), right in zip(by_weight(model, tracked, product, 1), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=tolerance, atol=tolerance * scale / 10)
