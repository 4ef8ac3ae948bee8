"""Whatever a model does with the outputs of its modules: gradients are autograd's own, or refused with a reason."""

from types import SimpleNamespace

import pytest
import torch
from helpers import VOCABULARY, dense_gradients, documents, spread, tiny_lm
from torch import nn
from transformers.pytorch_utils import Conv1D

from msif.attribution.gradients import Side, query_gradients
from msif.curvature.ggn import GGN
from msif.data.documents import collate
from msif.errors import MsifError
from msif.models.objectives import CausalLM
from msif.models.select import track_modules


class Tokens(nn.Module):
    """A language model of one's own: an embedding, maps, and ``between``, which says what is made of them."""

    def __init__(self, between, bias=True, d=6):
        super().__init__()
        self.between, self.embed = between, nn.Embedding(VOCABULARY, d)
        self.maps = nn.ModuleList(nn.Linear(d, d, bias=bias) for _ in range(3))
        self.out = nn.Linear(d, VOCABULARY, bias=bias)

    def forward(self, input_ids, **_):
        return SimpleNamespace(logits=self.out(torch.tanh(self.between(self, self.embed(input_ids)))))


def agrees(model, modules="everything"):
    """Gradients of each of three documents in one batch are autograd's own."""
    model, objective = spread(model).double(), CausalLM()
    tracked = track_modules(model, modules, split_heads=False)
    texts = documents([5, 6, 3])
    found = query_gradients(Side(model, tracked, objective), [collate(texts)])
    for row, text in enumerate(texts):
        batch = collate([text])
        dense = dense_gradients(model, tracked, objective.losses(objective.outputs(model, batch), batch).sum())
        for name, gradient in dense.items():
            assert gradient.any()
            torch.testing.assert_close(found[name][row], gradient, msg=lambda said, name=name: f"{name}: {said}")


def slices(model, y):
    y[..., :3] = torch.tanh(model.maps[1](y.clone()))[..., 3:]
    return y


IN_PLACE = {
    "relu_": lambda model, y: torch.relu_(y),
    "+=": lambda model, y: y.add_(model.maps[1](y.clone())),
    "mul_": lambda model, y: y.mul_(torch.tanh(model.maps[1](y.clone()))),
    "clamp_": lambda model, y: y.clamp_(-0.5, 0.5),
    "slices": slices,
    "view": lambda model, y: (y.view(-1, 6).mul_(2), y)[1],
    "chunk": lambda model, y: torch.cat([y.chunk(2, -1)[0].mul(2), y.chunk(2, -1)[1]], -1).mul_(3),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("change", IN_PLACE)
def test_an_output_may_be_changed_in_place(change, bias):
    """Also one that is a view, as those of maps with a bias are over sequences: its hooks go with the first change."""
    agrees(
        Tokens(lambda model, x: IN_PLACE[change](model, model.maps[0](torch.tanh(model.maps[2](x)))), bias), "maps.0"
    )
    agrees(Tokens(lambda model, x: IN_PLACE[change](model, model.maps[0](x)), bias), "embed|maps.0")


def test_a_transposed_map_whose_output_is_changed_in_place():
    model = Tokens(lambda model, x: torch.relu_(model.maps[0](x)))
    model.maps[0] = Conv1D(6, 6)
    agrees(model, "maps.0|embed")


def test_what_runs_without_gradients_adds_nothing():
    @torch.no_grad()
    def gate(model, x):
        return torch.sigmoid(model.maps[1](x))

    agrees(Tokens(lambda model, x: model.maps[0](x) * gate(model, x)), "maps.0|embed|out")
    agrees(Tokens(lambda model, x: model.maps[0](x) * gate(model, x) + model.maps[1](x)), "maps.[01]")


def tied(model, x):
    """An unembedding that is a product with the table, and no module."""
    return x + torch.tanh(model.maps[0](x)) @ model.embed.weight.T @ model.embed.weight


def read_past(model, x):
    return model.maps[0](x) + torch.tanh(x) @ model.maps[0].weight.T


def experts(model, x):
    """Two of two: rows by first choice, then by second."""
    rows = x.reshape(-1, 6)
    weights, chosen = torch.topk(rows[:, :2].softmax(-1), 2)
    total = torch.zeros_like(rows)
    for number in (0, 1):
        place, which = torch.where((chosen == number).T)
        total = total.index_add(0, which, torch.tanh(model.maps[number](rows[which])) * weights[which, place, None])
    return total.view_as(x)


def relative_positions(model, x):
    """A table's rows for pairs of positions, which may be as many as there are sequences."""
    place = torch.arange(x.shape[1])
    return (x @ x.mT + model.table((place[:, None] - place).abs())[..., 0]).softmax(-1) @ x


def other_sequences(model, x):
    return model.maps[0](x.flip(0)).flip(0)


@pytest.mark.parametrize(
    ("between", "name"),
    [
        (tied, "embed"),
        (read_past, "maps.0"),
        (experts, "maps.0"),
        (relative_positions, "table"),
        (other_sequences, "maps.0"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_hooks_do_not_see_is_told(between, name, dtype):
    model = spread(Tokens(between))
    model.table = nn.Embedding(VOCABULARY, 6)
    model = model.to(dtype)
    side = Side(model, track_modules(model, f"^{name}"), CausalLM())
    texts = [collate(documents([6] * 6))]  # rows of all pairs look like positions of all sequences
    with pytest.raises(MsifError, match=f"module '{name}'.*leave it out with --modules"):
        query_gradients(side, texts)
    with pytest.raises(MsifError, match=f"module '{name}'"):
        GGN(model, side.tracked, CausalLM(), texts).matvec({name: torch.ones(1, *side.tracked[0].shape)})
    query_gradients(Side(model, track_modules(model, "out"), CausalLM()), texts)


def test_the_check_of_a_model_leaves_no_trace(caplog):
    model, batch = tiny_lm(), collate(documents([5, 4]))
    tracked = track_modules(model, "everything")
    model.lm_head.weight.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    flags = [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    calls, drawn = [], torch.get_rng_state()
    model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(2):
        query_gradients(Side(model, tracked, CausalLM()), [batch])
        query_gradients(Side(model, tracked[:3], CausalLM()), [batch])
    assert len(calls) == 5  # once for a model and what is tracked of it
    for parameter, (flag, gradient) in zip(model.parameters(), flags, strict=True):
        assert parameter.requires_grad == flag and parameter.grad is gradient and (gradient == 1).all()
    assert torch.equal(torch.get_rng_state(), drawn) and not caplog.text


def test_a_map_whose_weight_is_read_past_it_only_is_named(caplog):
    model = spread(Tokens(lambda model, x: model.attention(x, x, x, need_weights=False)[0] + x))
    model.attention = nn.MultiheadAttention(6, 2, batch_first=True)
    side = Side(model, track_modules(model, "out_proj|^out", split_heads=False), CausalLM())
    query_gradients(side, [collate(documents([5, 3]))])
    assert "Not tracked: attention.out_proj" in caplog.text


@pytest.mark.parametrize("rows", [[2], [3, 1], [9, 4, 12], [1]])
def test_a_pair_is_of_two_lengths_and_of_no_number_that_is_theirs(rows):
    pair = collate(documents(rows)).pair()
    lengths = pair.attention_mask.sum(1).tolist()
    assert lengths[0] <= 7 and (len(set(lengths)) > 1 or rows == [1])
    assert len(pair) != pair.input_ids.shape[1]


def by_head(model, x):
    """One map for all heads, whose rows are (B, T, heads)."""
    return model.maps[0](x.unflatten(-1, (1, 6)).expand(-1, -1, 2, -1)).sum(2)


def talking_heads(model, x):
    weights = (x @ x.mT)[..., None].expand(-1, -1, -1, 6)
    return model.maps[0](weights).mean(-1).softmax(-1) @ x


def n_grams(model, x):
    ids = torch.arange(x.shape[1])[:, None] % VOCABULARY
    return x + model.table(torch.cat([ids, ids + 1], 1).expand(len(x), -1, -1) % VOCABULARY).sum(2)


@pytest.mark.parametrize("between", [by_head, talking_heads, n_grams])
def test_maps_and_lookups_with_several_rows_a_position_are_refused(between):
    """Σ_h g_h x_hᵀ is not (Σ_h g_h)(Σ_h x_h)ᵀ."""
    model = Tokens(between)
    model.table = nn.Embedding(VOCABULARY, 6)
    with pytest.raises(MsifError, match=r"module '(maps.0|table)' reads .* rows where the batch has 2 sequences of 5"):
        agrees(model, "maps.0" if between is not n_grams else "table")


@pytest.mark.parametrize("where", [1, 2])
def test_a_dimension_of_one_is_no_head(where):
    agrees(Tokens(lambda model, x: model.maps[0](x.unsqueeze(where)).squeeze(where) + x), "maps.0|out|embed")


def test_norms_and_biases_sum_over_heads():
    model = Tokens(None)
    model.norm = nn.LayerNorm(3)
    model.between = lambda model, x: model.norm(model.maps[0](x).unflatten(-1, (2, 3))).flatten(2)
    agrees(model, "norm|maps.0")
    model.between = lambda model, x: (
        model.norm(model.maps[0](x).unflatten(-1, (2, 3)).transpose(1, 2)).transpose(1, 2).flatten(2)
    )
    agrees(model, "norm|maps.0")
