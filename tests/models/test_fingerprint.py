"""Fingerprints change with what a model computes, and with nothing else."""

from __future__ import annotations

import torch
from architectures import tiny_model
from torch import nn

from msif.models.fingerprint import fingerprint_config, fingerprint_weights


def test_one_number_makes_another_fingerprint() -> None:
    model = tiny_model("gpt_neox")
    before = fingerprint_weights(model)
    assert before == fingerprint_weights(tiny_model("gpt_neox")) and len(before) == 64
    with torch.no_grad():
        model.gpt_neox.layers[1].mlp.dense_4h_to_h.bias[3] += 1e-6
    assert fingerprint_weights(model) != before


def test_dtype_and_names_count() -> None:
    prints = {fingerprint_weights(tiny_model("gpt_neox").to(t)) for t in (torch.float32, torch.bfloat16, torch.float16)}
    assert len(prints) == 3
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    assert fingerprint_weights(nn.Sequential(a, b)) != fingerprint_weights(nn.Sequential(b, a))
    assert fingerprint_weights(nn.ModuleDict({"a": a})) != fingerprint_weights(nn.ModuleDict({"b": a}))


def test_memory_layout_and_training_state_do_not_count() -> None:
    a = nn.Linear(3, 2)
    before = fingerprint_weights(a)
    a.weight.data = a.weight.data.T.contiguous().T
    assert not a.weight.is_contiguous()
    assert fingerprint_weights(a.train().requires_grad_(False)) == before


def test_a_tied_parameter_counts_once() -> None:
    model = tiny_model("gpt2")
    names = [name for name, _ in model.named_parameters()]
    assert "lm_head.weight" not in names
    assert fingerprint_weights(model) == fingerprint_weights(tiny_model("gpt2"))


def test_scalars_and_empty_parameters() -> None:
    module = nn.ParameterDict({"a": nn.Parameter(torch.tensor(1.0)), "b": nn.Parameter(torch.zeros(0, 3))})
    assert len(fingerprint_weights(module)) == 64


def test_configuration() -> None:
    before = fingerprint_config(tiny_model("gpt_neox"))
    assert fingerprint_config(tiny_model("gpt_neox", layer_norm_eps=1e-3)) != before
    assert fingerprint_config(tiny_model("gpt_neox", use_cache=False, pad_token_id=3)) == before
    assert fingerprint_config(tiny_model("gpt_neox", attention="sdpa")) == before
    assert fingerprint_config(nn.Linear(2, 2)) != fingerprint_config(nn.Sequential(nn.Linear(2, 2)))
