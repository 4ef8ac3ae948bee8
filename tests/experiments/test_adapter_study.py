"""The study of a fine-tuning that trained LoRA."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from experiments.adapters.head import AdapterHead
from experiments.adapters.methods import ALL_WEIGHTS, NO_BILINEAR, NO_HOP, adapter_methods
from experiments.common.training import ModelSize, Schedule, build_tokenizer, completion
from experiments.retraining.members import make_member
from experiments.retraining.methods import MULTI_STAGE, member_scores
from experiments.retraining.settings import Recipe
from experiments.retraining.study import REFERENCE
from experiments.retraining.two_stage import Asked, TwoStage
from msif.attribution.scorers import InfluenceScorer
from msif.curvature.adapter_hop import AdapterHop

TEXTS = ["Ada likes the colour red .", "Bob likes the colour blue .", "Eve likes the colour red ."]


@pytest.fixture(scope="module")
def world() -> TwoStage:
    tokenizer = build_tokenizer(TEXTS * 2, 290)
    pairs = [("Ada likes", " red"), ("Bob likes", " blue")]
    examples = [completion(tokenizer, *pair, end=False) for pair in pairs]
    asked = Asked(examples, [a + b for a, b in pairs], ["Ada", "Bob"], ["red", "blue"])
    recipe = Recipe(290, ModelSize(1, 32, 2, 64), Schedule(2, 1e-2, 2), Schedule(8, 1e-2, 2))
    return TwoStage(tokenizer, TEXTS, examples, recipe, AdapterHead(rank=2), asked)


@pytest.fixture(scope="module")
def member(world: TwoStage, tmp_path_factory):
    return make_member(world, tmp_path_factory.mktemp("members") / "00", 0, 3)


def test_only_the_adapter_is_trained(world: TwoStage) -> None:
    pretrained, finetuned = world.train(3)
    base = finetuned.model.get_base_model()
    trained = {name for name, p in finetuned.model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    assert len(finetuned.optimizer.state) == len(trained)
    before = pretrained.model.gpt_neox.layers[0].mlp.dense_h_to_4h.weight
    assert torch.equal(base.gpt_neox.layers[0].mlp.dense_h_to_4h.base_layer.weight, before)


def test_the_member_is_the_merged_model_and_knows_its_adapter(world: TwoStage, member) -> None:
    adapter = member.finetuned.adapter
    name = "gpt_neox.layers.0.mlp.dense_h_to_4h"
    low = adapter.maps[name]
    both = [one.model.get_submodule(name).weight.double() for one in (member.finetuned, member.pretrained)]
    assert torch.allclose(both[0] - both[1], low.scale * low.B @ low.A, atol=1e-6)
    assert low.scale == 2.0 and low.A.shape[0] == 2
    _, finetuned = world.train(3)
    losses = [
        world.measured(member.pretrained.model, one)["finetuned"] for one in (finetuned.model, member.finetuned.model)
    ]
    assert np.allclose(*losses, rtol=1e-4)
    assert member.finetuned.stage.tau.keys() == {
        f"{path}.{side}" for path in adapter.maps for side in ("lora_A", "lora_B")
    }


def test_the_hop_is_through_the_adapter_or_past_it(member) -> None:
    named = {method.name: method for method in adapter_methods(True)}
    assert len(named) == len(adapter_methods(True))
    hop = lambda name: named[name].build(member).preconditioners[1:]  # noqa: E731
    assert isinstance(hop(REFERENCE)[0], AdapterHop)
    flat = hop(f"{NO_BILINEAR}, λ = 0.1 mean, α = 1/τ")[0]
    assert isinstance(flat, AdapterHop) and not any(G.any() for G in flat.gradient.values())
    assert flat.alpha == hop(REFERENCE)[0].alpha and any(G.any() for G in hop(REFERENCE)[0].gradient.values())
    assert not isinstance(hop(f"{ALL_WEIGHTS}, λ = 0.1 mean, α = 0")[0], AdapterHop)
    without = named[f"{NO_HOP}, λ = 0.1 mean"].build(member)
    assert isinstance(without, InfluenceScorer) and len(without.preconditioners) == 1


def test_a_study_scores_them(world: TwoStage, member) -> None:
    chosen = [m for m in adapter_methods(True) if m.family in (MULTI_STAGE, ALL_WEIGHTS, NO_HOP) and m.main]
    found = [member_scores(method, world, member, world.questions) for method in chosen]
    assert len(found) == 3 and not np.allclose(found[0], found[1]) and not np.allclose(found[0], found[2])
