"""Products with the Gauss-Newton matrix against the dense matrix in float64."""

import copy

import pytest
import torch
from helpers import (
    MLP,
    Classify,
    DeepLinear,
    SquaredError,
    dense_gradients,
    documents,
    examples,
    labelled,
    tiny_classifier,
    tiny_lm,
    track_plain,
)
from torch import nn

from msif.curvature.cg import CG
from msif.curvature.ggn import GGN
from msif.data.documents import collate
from msif.errors import MsifError
from msif.models.objectives import CausalLM, MultiLabelClassification, Regression, SequenceClassification
from msif.models.select import track_modules


def dense_ggn(model, tracked, objective, batches):
    """(1/N) Σ Jᵀ ∇²L J with J row by row from autograd's weight gradients."""
    model.eval()
    H, supervised = 0.0, 0
    for batch in batches:
        outputs = objective.outputs(model, batch)
        rows = []
        for entry in outputs.flatten():
            rows.append(torch.cat([g.flatten() for g in dense_gradients(model, tracked, entry).values()]))
        J = torch.stack(rows)
        curvature = torch.autograd.functional.hessian(
            lambda o, b=batch, s=outputs.shape: objective.losses(o.view(s), b).sum(), outputs.detach().flatten()
        )
        H = H + J.T @ curvature @ J
        supervised += int(objective.supervised_counts(batch).sum())
    return H / supervised


def flat(vectors, tracked):
    return torch.cat([vectors[m.name].flatten(1) for m in tracked], 1)


def compare(model, tracked, objective, batches):
    vectors = {m.name: torch.randn(2, *m.shape, dtype=torch.float64) for m in tracked}
    product = GGN(model, tracked, objective, batches).matvec(vectors)
    expected = flat(vectors, tracked) @ dense_ggn(model, tracked, objective, batches)
    torch.testing.assert_close(flat(product, tracked), expected)


def test_a_plain_classifier():
    torch.manual_seed(0)
    model = MLP([4, 5, 3]).double()
    data = examples(torch.randn(6, 4).double(), torch.randint(0, 3, (6,)), size=4)
    compare(model, track_plain(model), Classify(), data)


def test_squared_error_by_the_general_rule():
    torch.manual_seed(0)
    model = DeepLinear([4, 3, 2], bias=False).double()
    compare(model, track_plain(model), SquaredError(), examples(torch.randn(5, 4).double(), torch.randn(5, 2).double()))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_language_model_with_padding_and_prompts(attention):
    model = tiny_lm(attn_implementation=attention)
    texts = documents([5, 7, 4], prompt=2)
    compare(model, track_modules(model), CausalLM(), [collate(texts[:2]), collate(texts[2:])])


class Positions(nn.Embedding):
    """Makes its ids itself, one row for all sequences."""

    def forward(self, ids):
        return super().forward(torch.arange(ids.shape[1])[None])


class Sums(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.positions, self.head = nn.Embedding(11, 6), Positions(16, 6), nn.Linear(6, 11)

    def forward(self, input_ids, attention_mask=None, **_):
        x = self.tokens(input_ids) + self.positions(input_ids)
        return type("Output", (), {"logits": self.head(torch.tanh(x.cumsum(1)))})()


def test_positions_that_all_sequences_share():
    torch.manual_seed(0)
    model = Sums().double()
    tracked = track_modules(model, "everything")
    assert [m.name for m in tracked] == ["tokens", "positions", "head"]
    compare(model, tracked, CausalLM(), [collate(documents([5, 7, 4]))])


def test_a_sequence_classifier():
    model = tiny_classifier()
    data = [collate(documents([5, 7, 4], labels=True))]
    compare(model, track_modules(model, "attention"), SequenceClassification(pad_token_id=0), data)


class Cubed(torch.autograd.Function):
    """An activation as people write them, without forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


ACTIVATIONS = {
    "cubed": Cubed.apply,
    "gelu": nn.GELU(),
    "gelu, tanh": nn.GELU("tanh"),
    "hardswish": nn.Hardswish(),
    "mish": nn.Mish(),
    "norm": nn.RMSNorm(6),
    "layer norm": nn.LayerNorm(6),
    "prelu": nn.PReLU(),
    "relu, in place": nn.ReLU(inplace=True),
    "selu": nn.SELU(),
    "silu": nn.SiLU(),
    "silu, in place": nn.SiLU(inplace=True),
    "softplus": nn.Softplus(),
    "swiglu": lambda h: (nn.functional.silu(h[..., :3]) * h[..., 3:]).repeat(1, 2),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_whatever_the_activation(name):
    class Model(MLP):
        def forward(self, x):
            return self.layers[1](activation(self.layers[0](x)))

    torch.manual_seed(0)
    activation = ACTIVATIONS[name].double() if isinstance(ACTIVATIONS[name], nn.Module) else ACTIVATIONS[name]
    model = Model([4, 6, 3]).double()
    data = examples(torch.randn(6, 4).double(), torch.randint(0, 3, (6,)), size=4)
    compare(model, track_plain(model), Classify(), data)


def test_another_error_of_the_model_is_not_taken_for_a_lack_of_forward_mode():
    class Failing(MLP):
        def forward(self, x):
            super().forward(x)
            raise RuntimeError("shapes do not fit")

    model = Failing([4, 3]).double()
    tracked = track_plain(model)
    operator = GGN(model, tracked, Classify(), examples(torch.randn(2, 4).double(), torch.zeros(2).long()))
    with pytest.raises(RuntimeError, match="shapes"):
        operator.matvec({m.name: torch.randn(1, *m.shape).double() for m in tracked})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_of_a_model_in_16_bits_are_those_of_its_weights_in_float32(dtype):
    model = tiny_lm(dtype=dtype)
    before = {name: (p.data_ptr(), p.clone()) for name, p in model.named_parameters()}
    tracked, data = track_modules(model), [collate(documents([5, 7]))]
    vectors = {m.name: torch.randn(1, *m.shape) for m in tracked}
    product = GGN(model, tracked, CausalLM(), data).matvec(vectors)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == dtype and parameter.data_ptr() == before[name][0]
        assert torch.equal(parameter, before[name][1])
    wide = copy.deepcopy(model).double()
    expected = flat({k: v.double() for k, v in vectors.items()}, tracked) @ dense_ggn(wide, tracked, CausalLM(), data)
    torch.testing.assert_close(flat(product, tracked).double(), expected, rtol=1e-3, atol=1e-4 * expected.abs().max())


def test_the_residual_that_a_solver_claims_on_a_bfloat16_model_is_the_true_one():
    model = tiny_lm(dtype=torch.bfloat16)
    tracked, data = track_modules(model, "mlp"), [collate(documents([5, 7]))]
    b = {m.name: torch.randn(1, *m.shape) for m in tracked}
    solver = CG(GGN(model, tracked, CausalLM(), data), tracked, 0.01, iterations=6, tolerance=0.0)
    x, b = flat(solver.apply(b), tracked).double(), flat(b, tracked).double()
    H = dense_ggn(copy.deepcopy(model).double(), tracked, CausalLM(), data) + 0.01 * torch.eye(x.shape[1]).double()
    true, claimed = float((b - x @ H).norm() / b.norm()), float(solver.solution.residuals[-1])
    assert claimed < 0.1 and true == pytest.approx(claimed, rel=0.02)


@pytest.mark.parametrize(
    ("objective", "labels"),
    [
        (Regression(0, 1), [[0.5], [-1.0], [2.0]]),
        (Regression(0, 3), [[0.5, 1, 2], [-1.0, 0, 0], [2.0, 1, 1]]),
        (MultiLabelClassification(0, 3), [[1, 0, 1], [0, 0, 0], [1, 1, 0]]),
    ],
)
def test_heads_with_numbers_for_labels(objective, labels):
    model = tiny_classifier(num_labels=objective.count)
    texts = labelled([5, 7, 4], labels)
    compare(model, track_modules(model, "mlp"), objective, [collate(texts[:2]), collate(texts[2:])])


def test_the_model_comes_back_untouched_and_iterators_are_refused():
    model = tiny_lm().train()
    tracked = track_modules(model)
    data = [collate(documents([4]))]
    GGN(model, tracked, CausalLM(), data).matvec({m.name: torch.randn(1, *m.shape).double() for m in tracked})
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(MsifError, match="iterator"):
        GGN(model, tracked, CausalLM(), iter(data))
