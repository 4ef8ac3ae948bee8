"""The five solvers on architectures whose activations have no second derivative in forward mode, or no forward mode."""

import pytest
import torch
from architectures import tiny_model
from helpers import documents, spread
from test_factors_dense import fitted
from test_ggn import dense_ggn, flat

from msif.attribution.gradients import Side, query_gradients
from msif.attribution.inverses import IHVP
from msif.curvature.filters import DampedInverse
from msif.data.documents import collate
from msif.models.objectives import CausalLM
from msif.models.select import track_modules

SOLVERS = ["cg", "ekfac-cg", "lissa", "ekfac-lissa", "arnoldi"]
# SwiGLU, but for bloom (a custom autograd function), gpt2 (GELU), nemotron (squared ReLU), mixtral (grouped experts)
NAMES = ["llama", "qwen3", "phi3", "olmo2", "granite", "gemma2", "bloom", "gpt2", "nemotron", "mixtral"]


def problem(name, modules="all", dtype=torch.float32, **changes):
    model, objective = spread(tiny_model(name, **changes)).to(dtype), CausalLM()
    side = Side(model, track_modules(model, modules), objective)
    data = [collate(documents([6, 5, 7], prompt=2))]
    _, _, factors = fitted(model, side.tracked, objective, data)
    b = query_gradients(side, [collate(documents([6], seed=3, prompt=3))])
    return side, factors, data, b


@pytest.mark.parametrize("name", NAMES)
def test_every_solver_runs(name):
    side, factors, data, b = problem(name, "attention" if name == "mixtral" else "mlp", num_hidden_layers=1)
    filter = DampedInverse(0.1)
    factors = {key: module.to("cpu", torch.float32) for key, module in factors.items()}
    for kind in SOLVERS:
        found = IHVP(kind, iterations=3).build(side, factors, filter, data).apply(b)
        assert all(bool(torch.isfinite(V).all()) for V in found.values())
        assert any(not torch.allclose(found[key], b[key]) for key in found)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"hidden_size": 8, "head_dim": 4, "num_attention_heads": 2, "num_key_value_heads": 1}),
        ("bloom", {"hidden_size": 8, "n_head": 2}),
    ],
)
@pytest.mark.parametrize("kind", ["cg", "ekfac-cg"])
def test_conjugate_gradients_converge_to_the_dense_solution(name, changes, kind):
    size = {"intermediate_size": 6} if name == "llama" else {}
    side, factors, data, b = problem(name, "mlp", torch.float64, vocab_size=12, **changes, **size)
    solver = IHVP(kind, iterations=3000, tolerance=1e-10).build(side, factors, DampedInverse(0.05), data)
    found = flat(solver.apply(b), side.tracked)
    H = dense_ggn(side.model, side.tracked, side.objective, data)
    exact = torch.linalg.solve(H + 0.05 * torch.eye(len(H)).double(), flat(b, side.tracked).T).T
    assert solver.solution.converged
    # models compute norms and softmax in float32, whatever the weights
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max()))
