"""Which modules are tracked, under which names, and how two models' modules are matched."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from architectures import ARCHITECTURES, tiny_config, tiny_model
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification

from msif.errors import MsifError
from msif.models.blocks import Block, augmented_weight, input_of
from msif.models.select import match_modules, track_modules

NEOX_LAYER = ["attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"]
GPT2_LAYER = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
LLAMA_LAYER = [
    *(f"self_attn.{x}_proj" for x in "qkvo"),
    *(f"mlp.{x}_proj" for x in ("gate", "up", "down")),
]


def names(tracked: list) -> list[str]:  # type: ignore[type-arg]
    return [module.name for module in tracked]


@pytest.mark.parametrize(
    ("architecture", "layers", "layer", "attention"),
    [
        ("gpt_neox", "layers", NEOX_LAYER, 2),
        ("gpt2", "h", GPT2_LAYER, 2),
        ("llama", "layers", LLAMA_LAYER, 4),
    ],
)
def test_defaults(architecture: str, layers: str, layer: list[str], attention: int) -> None:
    model = tiny_model(architecture)
    for choice, expected in (("all", layer), ("attention", layer[:attention]), ("mlp", layer[attention:])):
        tracked = track_modules(model, choice)
        assert names(tracked) == [f"{layers}.{i}.{name}" for i in range(2) for name in expected]
        assert [m.path for m in tracked] == [f"{model.base_model_prefix}.{m.name}" for m in tracked]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(architecture: str) -> None:
    model = tiny_model(architecture)
    tracked = {m.name: m for m in track_modules(model)}
    attention, mlp = track_modules(model, "attention"), track_modules(model, "mlp") if has_linear_mlp(model) else []
    assert {*names(attention), *names(mlp)} == set(tracked) and not {*names(attention)} & {*names(mlp)}
    assert all(re.search(r"(layers|h|blocks)\.[01]\.", name) for name in tracked)
    if architecture == "minimax":  # its layers are not alike
        return
    for first in (name for name in tracked if re.search(r"(layers|h|blocks)\.0\.", name)):
        assert tracked[re.sub(r"\.0\.", ".1.", first, count=1)].blocks == tracked[first].blocks


def has_linear_mlp(model: nn.Module) -> bool:
    return model.config.model_type not in ("gpt_oss", "minimax", "mixtral", "olmoe", "qwen3_moe")  # experts only


def test_shapes_and_blocks() -> None:
    neox = {m.name: m for m in track_modules(tiny_model("gpt_neox"))}
    qkv = neox["layers.0.attention.query_key_value"]
    assert (qkv.shape, qkv.block_rows, len(qkv.blocks)) == ((96, 33), 8, 12)
    assert qkv.blocks[:3] == (Block(0, 8, "q", 0), Block(8, 16, "k", 0), Block(16, 24, "v", 0))
    gpt2 = {m.name: m for m in track_modules(tiny_model("gpt2"))}
    assert gpt2["h.1.mlp.c_fc"].shape == (128, 33)  # Conv1D stores the transpose
    whole = track_modules(tiny_model("gpt_neox"), split_heads=False)
    assert all(m.blocks == (Block(0, m.d_out),) for m in whole)


def test_opt_maps_outside_attention_are_mlp() -> None:
    model = tiny_model("opt", word_embed_proj_dim=16)  # has project_in and project_out outside the layers
    assert names(track_modules(model, "mlp")) == [f"decoder.layers.{i}.{fc}" for i in range(2) for fc in ("fc1", "fc2")]


def test_regular_expression() -> None:
    model = tiny_model("gpt_neox")
    assert names(track_modules(model, r"layers\.1\.mlp")) == [f"layers.1.{name}" for name in NEOX_LAYER[2:]]
    assert names(track_modules(model, "head$")) == ["lm_head"]  # outside the layers only by name


def test_everything_is_all_linear_maps_and_the_input_embedding() -> None:
    model = tiny_model("gpt_neox")
    tracked = track_modules(model, "everything")
    assert [m.name for m in tracked] == ["embed_in", *(m.name for m in track_modules(model, ".*"))]
    first = tracked[0]
    assert (first.d_out, first.d_in, first.bias) == (model.config.hidden_size, model.config.vocab_size, False)
    assert torch.equal(augmented_weight(model.get_submodule(first.path)), model.get_input_embeddings().weight.T)
    plain = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))
    assert [m.name for m in track_modules(plain, "everything")] == ["1"]
    with pytest.raises(MsifError, match=r"'transformer\.wte' and 'lm_head' share one parameter"):
        track_modules(tiny_model("gpt2"), "everything")


def test_an_embeddings_padding_token_is_no_input() -> None:
    one_hot = input_of(nn.Embedding(4, 2, padding_idx=1).double(), (torch.tensor([[0, 1, 3]]),), {})
    assert one_hot.tolist() == [[[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]] and one_hot.dtype == torch.float64


def test_embeddings_that_change_what_they_read_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("gpt_neox")
    model.set_input_embeddings(nn.Embedding(model.config.vocab_size, model.config.hidden_size, max_norm=1.0))
    assert "embed_in" not in [m.name for m in track_modules(model, "everything")]
    assert "embed_in" in caplog.text


def test_any_other_module() -> None:
    mlp = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3))
    tracked = track_modules(mlp)
    assert [(m.name, m.path, m.shape, m.blocks) for m in tracked] == [
        ("0", "0", (5, 4), (Block(0, 5),)),
        ("2", "2", (3, 6), (Block(0, 3),)),
    ]


def test_the_base_model_prefix_does_not_matter() -> None:
    config = tiny_config("gpt_neox", num_labels=3)
    lm = track_modules(tiny_model("gpt_neox"))
    classifier = track_modules(AutoModelForSequenceClassification.from_config(config))
    bare = track_modules(AutoModel.from_config(config))
    for other in (classifier, bare):
        shared, left_out = match_modules(lm, other)
        assert shared == names(lm) and left_out == {}


def test_what_does_not_match_is_left_out_with_a_reason() -> None:
    first = track_modules(tiny_model("gpt_neox"))
    second = track_modules(tiny_model("gpt_neox", intermediate_size=64, num_hidden_layers=1))
    shared, left_out = match_modules(first, second)
    assert shared == ["layers.0.attention.query_key_value", "layers.0.attention.dense"]
    assert left_out["layers.0.mlp.dense_h_to_4h"] == "shape (48, 33) in the first model, (64, 33) in the second"
    assert left_out["layers.1.mlp.dense_h_to_4h"] == "only in the first model"
    assert match_modules(second, first)[1]["layers.1.mlp.dense_h_to_4h"] == "only in the second model"
    shared, left_out = match_modules(first, track_modules(tiny_model("gpt_neox"), split_heads=False))
    assert list(left_out) == [f"layers.{i}.attention.query_key_value" for i in range(2)]
    assert "12 block(s)" in left_out["layers.0.attention.query_key_value"]


def test_models_that_share_nothing_are_refused() -> None:
    neox, gpt2 = track_modules(tiny_model("gpt_neox")), track_modules(tiny_model("gpt2"))
    with pytest.raises(MsifError, match=r"share no block: 'layers.0.attention.query_key_value' is only in the first"):
        match_modules(neox, gpt2)
    with pytest.raises(MsifError, match=r"shape \(96, 33\) in the first model, \(192, 65\) in the second"):
        match_modules(neox, track_modules(tiny_model("gpt_neox", hidden_size=64)))


def test_a_bias_is_no_input_column() -> None:
    narrow = track_modules(nn.ModuleDict({"a": nn.Linear(4, 5), "b": nn.Linear(2, 2)}))
    wide = track_modules(nn.ModuleDict({"a": nn.Linear(5, 5, bias=False), "b": nn.Linear(2, 2)}))
    assert narrow[0].shape == wide[0].shape
    assert match_modules(narrow, wide) == (["b"], {"a": "with a bias in one model only"})


def test_no_match_is_refused() -> None:
    with pytest.raises(MsifError, match=r"'nonsense' matches none.*layers\.0\.attention\.query_key_value"):
        track_modules(tiny_model("gpt_neox"), "nonsense")
    with pytest.raises(MsifError, match="not a regular expression"):
        track_modules(tiny_model("gpt_neox"), "mlp(")
    with pytest.raises(MsifError, match="no linear map"):
        track_modules(nn.LayerNorm(3))


def test_shared_parameters_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    with pytest.raises(MsifError, match="'0' and '1' share one parameter"):
        track_modules(model)
    tied = tiny_model("gpt2")  # the unembedding is the embedding
    with pytest.raises(MsifError, match=r"'lm_head' and 'transformer\.wte' share one parameter"):
        track_modules(tied, "lm_head")
    assert track_modules(tied)


class Router(nn.Linear):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        y = super().forward(x)
        return y, y.softmax(-1)


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Renamed(nn.Linear):
    pass


def test_linear_subclasses_are_tracked_only_if_they_are_linear_maps(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.ModuleDict({name: kind(4, 3) for name, kind in (("a", Renamed), ("b", Router), ("c", Doubled))})
    with caplog.at_level(logging.WARNING):
        assert names(track_modules(model)) == ["a"]
    assert "not plain linear maps: b, c" in caplog.text
    with pytest.raises(MsifError, match=r"plain linear map \(Doubled\)"):
        track_modules(model, "^c$")
    falcon = tiny_model("falcon (multi-head)")  # of FalconLinear
    assert len(track_modules(falcon)) == len(track_modules(falcon.to("meta"))) == 8


def test_adapters_and_quantised_models_are_refused() -> None:
    wrapped = nn.ModuleDict({"q_proj": nn.ModuleDict({"base_layer": nn.Linear(4, 4), "lora_A": nn.Linear(4, 2)})})
    with pytest.raises(MsifError, match="merge_adapter"):
        track_modules(wrapped)
    model = tiny_model("gpt_neox")
    model.is_quantized = True
    with pytest.raises(MsifError, match="quantised"):
        track_modules(model)


def test_experts_are_named_as_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tracked = names(track_modules(tiny_model("mixtral")))
    assert tracked == [f"layers.{i}.self_attn.{x}_proj" for i in range(2) for x in "qkvo"]
    assert "layers.0.mlp.experts.gate_up_proj (2, 96, 32)" in caplog.text
