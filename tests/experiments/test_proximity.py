"""How far two models are apart, where, and what that costs: against numbers worked out by hand."""

import copy
import math

import pytest
import torch
from helpers import MLP, Classify, examples, tiny_classifier, tiny_lm, track_plain
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from experiments.proximity.distances import Distance, proximity
from experiments.proximity.eigenspace import alignment, alignments, together
from experiments.proximity.quadratic import changes_of, expansion, losses_along, mean_loss, moved, second_difference
from msif.attribution.gradients import Side
from msif.curvature.factors import ModuleFactors
from msif.errors import MsifError
from msif.models.blocks import Block, TrackedModule
from msif.models.names import layer_of
from msif.models.select import track_modules


def test_a_distance_by_hand():
    near = Distance.between(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0]))
    assert (near.moved, near.first, near.second, near.inner, near.parameters) == (1, 25, 34, 29, 2)
    assert near.relative == pytest.approx(0.2) and near.cosine == pytest.approx(29 / math.sqrt(25 * 34))
    both = near + Distance.between(torch.zeros(3), torch.ones(3))
    assert (both.moved, both.first, both.parameters) == (4, 25, 5)
    zero = Distance.between(torch.zeros(3), torch.ones(3))
    assert zero.relative is None and zero.cosine is None


def test_only_the_rows_that_changed_have_moved():
    """GPT-NeoX, 2 heads of 4 rows: q, k, v of head 0 in rows 0 to 12, then of head 1."""
    first = tiny_lm()
    second = copy.deepcopy(first)
    fused = second.gpt_neox.layers[1].attention.query_key_value
    with torch.no_grad():
        fused.weight[16:20] += 0.5  # k of head 1
        fused.bias[16:20] -= 2.0
    near = proximity(first, second)
    assert {key for key, distance in near.distances.items() if distance.moved} == {(1, "k")}
    assert near.distances[1, "k"].moved == pytest.approx(4 * 8 * 0.25 + 4 * 4.0)
    whole = torch.cat([fused.weight, fused.bias[:, None]], 1).detach()
    before = whole.clone()
    before[16:20, :8] -= 0.5
    before[16:20, 8] += 2.0
    rows = [*range(4, 8), *range(16, 20)]
    assert near.distances[1, "k"].first == pytest.approx(before[rows].square().sum().item())
    assert near.left_out == {}


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=11, n_embd=8, n_head=2, n_layer=2, n_positions=16))


def llama():
    sizes = {"vocab_size": 11, "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2, intermediate_size=12))


@pytest.mark.parametrize("make", [tiny_lm, gpt2, llama])
def test_every_parameter_counts_once(make):
    torch.manual_seed(0)
    first = make().double()
    second = copy.deepcopy(first)
    with torch.no_grad():
        for parameter in second.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    near = proximity(first, second)
    assert near.all.parameters == sum(parameter.numel() for parameter in first.parameters())
    change = sum((b - a).square().sum() for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert near.all.moved == pytest.approx(change.item())
    assert near.kinds == ["q", "k", "v", "attention output", "MLP in", "MLP out", "embeddings", "norms"]
    assert near.layers == [0, 1] and (None, "embeddings") in near.distances
    assert near.of_kind("q").parameters == {tiny_lm: 2 * 8 * 9, gpt2: 2 * 8 * 9, llama: 2 * 8 * 8}[make]


def test_a_replaced_head_and_another_shape_are_named():
    first = tiny_lm()
    head = next(name for name, _ in first.named_parameters() if not name.startswith("gpt_neox."))
    near = proximity(first, tiny_classifier(vocab_size=13))
    assert near.left_out == {
        head: "only in the first model",
        "embed_in.weight": "embeddings (11, 8) in the first model, embeddings (13, 8) in the second",
        "score.weight": "only in the second model",
    }
    with pytest.raises(MsifError, match="share no parameter"):
        proximity(MLP([3, 2]), MLP([4, 2], bias=False))


def test_layers_are_numbers_in_names():
    assert [layer_of(name) for name in ("h.3.attn.c_attn", "layers.12", "wte", "gpt2.wte")] == [3, 12, None, None]


def test_shares_of_the_top_directions_by_hand():
    Lambda = torch.tensor([1.0, 8.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    squares = torch.tensor([2.0, 5.0, 1.0, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 1.5])
    part = alignment(Lambda, squares, top=(0.01, 0.2, 0.5))
    assert part.moved == 10 and part.curvature == 12
    assert part.top_moved == pytest.approx((5.0, 5.5, part.top_moved[2])) and part.top_moved[2] >= 7.5
    assert part.top_curvature == pytest.approx((8, 11, 12))
    assert part.expected == pytest.approx((1.0, 2.0, 5.0))  # at least one direction is taken
    assert part.quadratic == pytest.approx(0.5 * (2 + 40 + 1.5))
    assert part.shares("top_moved")[:2] == pytest.approx([0.5, 0.55])
    none = alignment(torch.zeros(4), torch.zeros(4))
    assert none.shares("top_moved") == [None] * 3 and (part + part).quadratic == 2 * part.quadratic
    with pytest.raises(MsifError, match="no block"):
        together([])


def orthogonal(*shape):
    return torch.linalg.qr(torch.randn(*shape, dtype=torch.float64))[0]


def test_a_random_change_lies_in_the_top_as_chance_has_it():
    """And its cost is ½ vec(Δ)ᵀ H vec(Δ) with the dense block-diagonal H."""
    blocks = tuple(Block(4 * i, 4 * i + 4, role, 0) for i, role in enumerate("qkv"))
    module = TrackedModule("layers.5.attention.qkv", "x", 30, 12, True, blocks)
    Q_A, Q_G = orthogonal(31, 31), orthogonal(3, 4, 4)
    Lambda = torch.rand(3, 4, 31, dtype=torch.float64) ** 3
    factors = {module.name: ModuleFactors(Q_A, Q_G, torch.zeros(31), torch.zeros(3, 4), Lambda)}
    change = torch.randn(12, 31, dtype=torch.float64)
    parts = alignments(factors, [module], {module.name: change})
    assert set(parts) == {(5, "q"), (5, "k"), (5, "v")}
    for number, role in enumerate("qkv"):
        rows = change[4 * number : 4 * number + 4]
        basis = torch.kron(Q_G[number], Q_A)
        H = basis @ torch.diag(Lambda[number].flatten()) @ basis.T
        cost = 0.5 * rows.flatten() @ H @ rows.flatten()
        assert parts[5, role].quadratic == pytest.approx(cost.item())
        assert parts[5, role].moved == pytest.approx(rows.square().sum().item())
    draws = [alignments(factors, [module], {module.name: torch.randn(12, 31)}) for _ in range(200)]
    shares = torch.tensor([together(draw.values()).shares("top_moved") for draw in draws]).mean(0)
    expected = torch.tensor(together(parts.values()).shares("expected"))
    assert torch.allclose(shares, expected, atol=0.02)


def test_a_change_without_factors_or_of_another_shape_is_refused():
    module = TrackedModule("a", "a", 2, 3, False, (Block(0, 3),))
    with pytest.raises(MsifError, match="no factors for module 'a'"):
        alignments({}, [module], {"a": torch.zeros(3, 2)})
    factors = {
        "a": ModuleFactors(torch.eye(2), torch.eye(3)[None], torch.ones(2), torch.ones(1, 3), torch.ones(1, 3, 2))
    }
    with pytest.raises(MsifError, match="is \\(2, 2\\)"):
        alignments(factors, [module], {"a": torch.zeros(2, 2)})


@pytest.fixture
def convex():
    """A linear softmax model, where the Gauss-Newton matrix is the Hessian."""
    model = MLP([4, 3]).double()
    data = examples(torch.randn(20, 4, dtype=torch.float64), torch.randint(0, 3, (20,)), size=7)
    side = Side(model, track_plain(model), Classify())
    return side, data, {side.tracked[0].name: torch.randn(3, 5, dtype=torch.float64)}


def test_the_expansion_is_that_of_finite_differences(convex):
    side, data, changes = convex
    found = expansion(side, changes, data)
    step = 1e-4
    low, middle, high = losses_along(side, changes, data, [-step, 0.0, step])
    assert found.linear == pytest.approx((high - low) / (2 * step), rel=1e-6)
    assert found.quadratic == pytest.approx(second_difference(low, middle, high, step), rel=1e-4)
    assert second_difference(9.0, 1.0, 5.0, 2.0) == pytest.approx(1.5)  # 1 − t + 1.5 t²
    assert found.at(0.5) == pytest.approx(0.5 * found.linear + 0.25 * found.quadratic)
    x, y = (torch.cat([getattr(batch, name) for batch in data]) for name in "xy")
    assert middle == pytest.approx(nn.functional.cross_entropy(side.model(x), y).item())


def test_weights_come_back_bit_by_bit_also_after_an_error(convex):
    side, data, changes = convex
    before = {name: value.clone() for name, value in side.model.state_dict().items()}
    losses_along(side, changes, data, [1.0])
    with pytest.raises(ZeroDivisionError), moved(side.model, side.tracked, changes, 0.3):
        raise ZeroDivisionError
    assert all(torch.equal(before[name], value) for name, value in side.model.state_dict().items())
    with pytest.raises(MsifError, match="no supervised token"):
        mean_loss(side.model, side.objective, [])


@pytest.mark.parametrize("make", [tiny_lm, gpt2], ids=["Linear", "Conv1D"])
def test_all_of_the_way_is_the_other_model(make):
    torch.manual_seed(0)
    first = make().double()
    second = copy.deepcopy(first)
    tracked = track_modules(first)
    with torch.no_grad():
        for module in tracked:
            for parameter in second.get_submodule(module.path).parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    changes = changes_of(first, tracked, second, track_modules(second))
    ids = torch.arange(10)[None]
    with moved(first, tracked, changes, 1.0), torch.no_grad():
        assert torch.allclose(first.eval()(ids).logits, second.eval()(ids).logits, rtol=1e-12, atol=1e-12)
