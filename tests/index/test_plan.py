"""Which modules and blocks an index has, and what is differentiated of a document."""

from __future__ import annotations

import pytest
import torch
from architectures import tiny_model
from helpers import documents, tiny_classifier
from test_everything import check

from msif.attribution.gradients import Side
from msif.attribution.trak import document_cotangent
from msif.data.documents import collate
from msif.errors import MsifError
from msif.index.plan import Plan
from msif.index.pools import indexed_modules, layer_numbers, pools_of
from msif.index.settings import IndexSettings
from msif.models.objectives import CausalLM, SequenceClassification
from msif.models.select import track_modules


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "gpt_neox", "bloom", "phi3"])
@pytest.mark.parametrize("tied", [False, True])
def test_all_parameters_but_the_embedding_of_tokens(name, tied):
    model = tiny_model(name, tie_word_embeddings=tied)
    everything = {module.name: module for module in track_modules(model, "everything", split_heads=False)}
    embedding = model.get_input_embeddings().weight
    for option in (False, True):
        kept = indexed_modules(model, "everything", tied=option)
        left = everything.keys() - {module.name for module in kept}
        own = {name for name, m in everything.items() if model.get_parameter(f"{m.path}.weight") is embedding}
        assert left == (set() if tied and option else own)
        assert all(len(module.blocks) == 1 for module in kept)


def test_blocks_are_consecutive_layers_with_attention_apart():
    model = tiny_model("gpt2", n_layer=5, tie_word_embeddings=False)
    tracked = indexed_modules(model, "everything", tied=False)
    pools = pools_of(model, tracked, 2)
    assert pools.names == ("layers 0-2 attention", "layers 0-2 mlp", "layers 3-4 attention", "layers 3-4 mlp")
    assert pools.of["h.2.attn.c_attn"] == 0 and pools.of["h.3.attn.c_proj"] == 2
    assert pools.of["h.0.mlp.c_fc"] == 1 and pools.of["h.4.ln_2.weight"] == 3
    assert pools.of["wpe"] == 1 and pools.of["ln_f.weight"] == 3 and pools.of["lm_head"] == 3
    assert len(pools_of(model, tracked, 8).names) == 10
    layers = layer_numbers(model, tracked)
    assert layers["h.4.mlp.c_fc"] == 4 and layers["lm_head"] is None
    only = [module for module in tracked if "attn" in module.name]
    assert pools_of(model, only, 1).names == ("layers 0-4 attention",)


def weighted(objective, outputs, batch, measurement, weighting):
    """d/d outputs of Σ_t Q_t m_t, with Q_t held fixed, token by token."""
    free = outputs.detach().requires_grad_()
    log_p = torch.log_softmax(free, -1).gather(-1, objective.targets(batch)[..., None])[..., 0]
    p = log_p.exp()
    own = free.gather(-1, objective.targets(batch)[..., None])[..., 0]
    m = {"loss": -log_p, "margin": -(log_p - torch.log1p(-p)), "logit": -own}[measurement]
    mask = objective.predicting(batch)
    doubt = torch.where(mask, 1 - p, 0.0).detach()
    if measurement == "loss" or weighting == "none":
        Q = torch.ones_like(doubt)
    elif weighting == "token":
        Q = doubt
    else:
        Q = (doubt.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)).expand_as(doubt)
    return torch.autograd.grad(torch.where(mask, Q * m, 0.0).sum(), free)[0]


@pytest.mark.parametrize("measurement", ["loss", "margin", "logit"])
@pytest.mark.parametrize("weighting", ["token", "example", "none"])
def test_tokens_count_by_their_doubt(measurement, weighting):
    objective, batch = CausalLM(), collate(documents([6, 4], seed=2, prompt=2))
    outputs = torch.randn(2, 6, 50, dtype=torch.float64)
    found = document_cotangent(objective, measurement, weighting)(outputs, batch)
    shifted = weighted(objective, outputs, batch, measurement, weighting)
    check(found, shifted, 1e-9)
    if measurement == "margin" and weighting == "token":
        check(found, objective.loss_gradient(outputs, batch), 1e-12)


def test_an_objective_without_margins_is_refused():
    model = tiny_classifier()
    side = Side(model, track_modules(model, "layers"), SequenceClassification(0))
    assert Plan(side, IndexSettings(measurement="margin")).cotangent is not None
    with pytest.raises(MsifError, match="unknown measurement"):

        class Odd(SequenceClassification):
            def measurements(self):
                return {"loss": self.losses}

        Plan(Side(model, side.tracked, Odd(0)), IndexSettings(measurement="margin"))
