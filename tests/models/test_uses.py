"""Whatever a model does with the outputs of its modules: gradients are autograd's own, or refused with a reason."""

from types import SimpleNamespace

import pytest
import torch
from helpers import VOCABULARY, dense_gradients, documents, spread
from torch import nn
from transformers.pytorch_utils import Conv1D

from msif.attribution.gradients import Side, query_gradients
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
    with pytest.raises(MsifError, match=r"module '(maps.0|table)' reads .* rows where the batch has 3 sequences of 6"):
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
