"""Which modules are tracked, under which names, and how two models' modules are matched."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from architectures import ARCHITECTURES, tiny_config, tiny_model
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from msif.errors import MsifError
from msif.models.blocks import Block, TrackedModule, Use, matrix_of
from msif.models.parameters import find_parameters
from msif.models.select import coverage, match_modules, track_modules

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
def test_groups(architecture: str, layers: str, layer: list[str], attention: int) -> None:
    model = tiny_model(architecture)
    choices = {"layers": layer, "all": layer, "attention": layer[:attention], "mlp": layer[attention:]}
    for choice, expected in choices.items():
        tracked = track_modules(model, choice)
        assert names(tracked) == [f"{layers}.{i}.{name}" for i in range(2) for name in expected]
        assert [m.path for m in tracked] == [f"{model.base_model_prefix}.{m.name}" for m in tracked]
    assert track_modules(model) == track_modules(model, "maps")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture(architecture: str) -> None:
    model = tiny_model(architecture)
    tracked = {m.name: m for m in track_modules(model, "layers")}
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


@pytest.mark.parametrize("tied", [False, True])
def test_maps_are_the_layers_and_the_unembedding_tied_or_not(tied: bool) -> None:
    model = tiny_model("llama", tie_word_embeddings=tied)
    layers = track_modules(model, "layers")
    maps = track_modules(model)
    assert [m for m in maps if m.name in {one.name for one in layers}] == layers  # with their heads' blocks
    (other,) = [m for m in maps if m not in layers]
    assert (other.name, other.mixed) == (("embed_tokens", True) if tied else ("lm_head", False))
    assert track_modules(model, "all") == layers and other.row_basis == "identity"
    classifier = AutoModelForSequenceClassification.from_config(tiny_config("llama", num_labels=3))
    assert {m.name for m in track_modules(classifier)} - {m.name for m in layers} == {"score"}


def norms(*paths: str) -> list[str]:
    return [f"{path}.{key}" for path in paths for key in ("weight", "bias")]


@pytest.mark.parametrize("tied", [False, True])
def test_rows_of_a_vocabulary_are_as_many_blocks_as_asked(tied: bool) -> None:
    model = tiny_model("llama", tie_word_embeddings=tied)
    found = track_modules(model, "everything", vocabulary_basis="blocks:5")
    (split,) = [m for m in found if len(m.blocks) > 1 and not m.splits_heads]
    assert split.mixed == tied and split.row_basis == "eigenvectors"
    assert [(b.start, b.stop, b.label) for b in split.blocks[:2]] == [(0, 10, "rows0"), (10, 20, "rows1")]
    (dense,) = track_modules(model, "^embed_tokens$" if tied else "lm_head", vocabulary_basis="dense")
    assert dense.row_basis == "eigenvectors" and [b.label for b in dense.blocks] == ["whole"]
    others = [m for m in found if m.name != split.name]
    assert others == [m for m in track_modules(model, "everything") if m.name != split.name]


@pytest.mark.parametrize(
    ("basis", "said"),
    [
        ("blocks:7", "50 rows, which blocks:7 does not divide: give a number of blocks that does (1, 2), or"),
        ("blocks:", "blocks:R"),
        ("block:2", "blocks:R"),
        ("blocks:0", "blocks:R"),
        ("", "blocks:R"),
        ("Dense", "blocks:R"),
    ],
)
def test_vocabulary_bases_that_are_none(basis: str, said: str) -> None:
    with pytest.raises(MsifError, match=re.escape(said)):
        track_modules(tiny_model("llama"), "maps", vocabulary_basis=basis)


def test_everything_is_every_parameter_as_a_matrix() -> None:
    model = tiny_model("gpt_neox")
    tracked = track_modules(model, "everything")
    expected = ["embed_in"]
    for i in range(2):
        both = norms(f"layers.{i}.input_layernorm", f"layers.{i}.post_attention_layernorm")
        expected += [*both, *(f"layers.{i}.{name}" for name in NEOX_LAYER)]
    assert names(tracked) == [*expected, *norms("final_layer_norm"), "lm_head"]
    assert names(track_modules(model, ".*")) == names(tracked)
    first, norm = tracked[0], tracked[1]
    assert (first.shape, first.bias) == ((model.config.vocab_size, model.config.hidden_size), False)
    assert torch.equal(matrix_of(model, first), model.get_input_embeddings().weight)
    assert torch.equal(matrix_of(model, norm), model.gpt_neox.layers[0].input_layernorm.weight[None])
    maps = {m.name: m for m in track_modules(model)}
    assert {m.name: m for m in tracked if m.name in maps} == maps  # heads' blocks, too
    plain = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))
    assert names(track_modules(plain, "everything")) == ["0", "1"]


def test_parameters_are_found_with_their_uses_and_bases() -> None:
    found, left = find_parameters(tiny_model("gpt2"))
    assert left == {}
    expected = ["wte", "wpe"]
    for i in range(2):
        attention, mlp = GPT2_LAYER[:2], GPT2_LAYER[2:]
        expected += [*norms(f"h.{i}.ln_1"), *(f"h.{i}.{name}" for name in attention)]
        expected += [*norms(f"h.{i}.ln_2"), *(f"h.{i}.{name}" for name in mlp)]
    assert names(found) == [*expected, *norms("ln_f")]
    one = {m.name: m for m in found}
    bases = {"row_basis": "identity", "column_basis": "eigenvectors"}
    path, ids = "transformer.wte", Use("transformer.wte", "lookup")
    assert one["wte"] == TrackedModule(
        "wte", path, 32, 50, False, (Block(0, 50),), (ids, Use("lm_head", "linear")), **bases
    )
    assert one["wte"].mixed and one["wte"].is_table and not one["wte"].is_map
    path = "transformer.wpe"
    assert one["wpe"] == TrackedModule("wpe", path, 32, 32, False, (Block(0, 32),), (Use(path, "lookup"),), **bases)
    bases = {"row_basis": "identity", "column_basis": "identity"}
    for key, kind in (("weight", "scale"), ("bias", "shift")):
        name, path = f"ln_f.{key}", "transformer.ln_f"
        assert one[name] == TrackedModule(name, path, 32, 1, False, (Block(0, 1),), (Use(path, kind, key),), **bases)
    path = "transformer.h.0.mlp.c_fc"
    assert one["h.0.mlp.c_fc"] == TrackedModule("h.0.mlp.c_fc", path, 32, 128, True, (Block(0, 128),))
    untied = {m.name: m for m in find_parameters(tiny_model("gpt2", tie_word_embeddings=False))[0]}
    assert untied["wte"].uses == (ids,) and untied["lm_head"].uses == (Use("lm_head"),)
    assert untied["lm_head"].row_basis == "identity" and untied["lm_head"].is_map


def test_what_cannot_be_tracked_has_a_reason() -> None:
    model = tiny_model("mixtral")
    found, left = find_parameters(model)
    experts = {f"model.layers.{i}.mlp.experts.{key}" for i in range(2) for key in ("gate_up_proj", "down_proj")}
    assert left.keys() == experts | {f"model.layers.{i}.mlp.gate.weight" for i in range(2)}
    assert left["model.layers.1.mlp.experts.down_proj"] == "MixtralExperts is no linear map, lookup or norm"
    assert sum(m.d_out * m.shape[1] for m in found) + sum(model.get_parameter(name).numel() for name in left) == sum(
        p.numel() for p in model.parameters()
    )
    mixed = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.LayerNorm(4), "c": nn.Bilinear(2, 3, 4)})
    mixed["b"].weight = mixed["a"].bias
    found, left = find_parameters(mixed)
    assert names(found) == ["a", "b.bias"] and not found[0].bias
    assert left == {
        "a.bias": "it is used in several ways (scale, shift)",
        "c.weight": "Bilinear is no linear map, lookup or norm",
        "c.bias": "Bilinear is no linear map, lookup or norm",
    }


class Gated(nn.Module):
    """A linear map with a scale of its output, in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.scale = nn.Linear(4, 4), nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scale * self.inner(x)


def test_a_scale_around_other_parameters_is_left_out() -> None:
    found, left = find_parameters(nn.Sequential(Gated(), nn.Linear(4, 3)))
    assert names(found) == ["0.inner", "1"] and left == {"0.scale": "Gated is no linear map, lookup or norm"}


def test_modules_that_learn_in_training_mode_are_asked_in_evaluation_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2), nn.Linear(2, 3)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    track_modules(model, "everything")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules()) and all(p.requires_grad for p in model.parameters())


def test_what_is_not_tracked_is_told_with_its_share() -> None:
    model = tiny_model("gpt2")
    total = sum(p.numel() for p in model.parameters())
    whole = coverage(model, track_modules(model, "everything"))
    assert whole == f"{total:,} of {total:,} parameters are tracked (100.0%)"
    tracked = track_modules(model, "layers")
    held = sum(m.d_out * m.shape[1] for m in tracked)
    assert held + 1600 + 1024 + 5 * 64 == total  # 50 · 32 of tokens, 32 · 32 of positions, and five norms of 64
    rest = [f"wte.weight {1600 / total:.1%}", f"wpe.weight {1024 / total:.1%}"]
    rest += [f"{name} {32 / total:.1%}" for name in norms("h.0.ln_1")]
    said = f"{held:,} of {total:,} parameters are tracked ({held / total:.1%}); left out: {', '.join(rest)}, and 8 more"
    assert coverage(model, tracked) == said


@pytest.mark.parametrize(
    ("architecture", "changes", "expected"),
    [
        ("gpt2", {}, ("wte", 2)),
        ("llama", {"tie_word_embeddings": True}, ("embed_tokens", 2)),
        ("llama", {"tie_word_embeddings": False}, ("lm_head", 1)),
    ],
)
def test_a_tied_weight_is_found_by_each_of_its_names(
    architecture: str, changes: dict[str, bool], expected: tuple[str, int]
) -> None:
    (found,) = track_modules(tiny_model(architecture, **changes), "lm_head|score")
    assert (found.name, len(found.uses)) == expected
    (head,) = track_modules(AutoModelForSequenceClassification.from_config(tiny_config("llama")), "lm_head|score")
    assert (head.name, head.row_basis) == ("score", "eigenvectors")


def test_embeddings_that_change_what_they_read_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("gpt_neox")
    model.set_input_embeddings(nn.Embedding(model.config.vocab_size, model.config.hidden_size, max_norm=1.0))
    assert "embed_in" not in names(track_modules(model, "everything"))
    assert "embed_in.weight (Embedding is no linear map, lookup or norm)" in caplog.text


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
    heads = {
        "lm_head": "only in the query's (fine-tuned) model",
        "score": "only in the candidates' (pre-trained) model",
    }
    for other, left_out in ((classifier, heads), (bare, {"lm_head": heads["lm_head"]})):
        assert match_modules(lm, other) == (names(lm)[:-1], left_out)


def test_what_does_not_match_is_left_out_with_a_reason() -> None:
    first = track_modules(tiny_model("gpt_neox"))
    second = track_modules(tiny_model("gpt_neox", intermediate_size=64, num_hidden_layers=1))
    shared, left_out = match_modules(first, second)
    assert shared == ["layers.0.attention.query_key_value", "layers.0.attention.dense", "lm_head"]
    assert (
        left_out["layers.0.mlp.dense_h_to_4h"]
        == "shape (48, 33) in the query's (fine-tuned) model, (64, 33) in the candidates' (pre-trained) model"
    )
    assert left_out["layers.1.mlp.dense_h_to_4h"] == "only in the query's (fine-tuned) model"
    assert (
        match_modules(second, first)[1]["layers.1.mlp.dense_h_to_4h"] == "only in the candidates' (pre-trained) model"
    )
    shared, left_out = match_modules(first, track_modules(tiny_model("gpt_neox"), split_heads=False))
    assert list(left_out) == [f"layers.{i}.attention.query_key_value" for i in range(2)]
    split = left_out["layers.0.attention.query_key_value"]
    assert split.startswith(
        "split into 12 block(s) in the query's (fine-tuned) model, otherwise into 1 in the candidates"
    )


def test_models_that_share_nothing_are_refused() -> None:
    neox, gpt2 = track_modules(tiny_model("gpt_neox")), track_modules(tiny_model("gpt2"))
    with pytest.raises(MsifError, match=r"share no block: 'layers.0.attention.query_key_value' is only in the query's"):
        match_modules(neox, gpt2)
    with pytest.raises(MsifError, match=r"shape \(96, 33\) in the query's .* model, \(192, 65\) in the candidates'"):
        match_modules(neox, track_modules(tiny_model("gpt_neox", hidden_size=64)))


def test_a_bias_is_no_input_column() -> None:
    narrow = track_modules(nn.ModuleDict({"a": nn.Linear(4, 5), "b": nn.Linear(2, 2)}))
    wide = track_modules(nn.ModuleDict({"a": nn.Linear(5, 5, bias=False), "b": nn.Linear(2, 2)}))
    assert narrow[0].shape == wide[0].shape
    assert match_modules(narrow, wide) == (["b"], {"a": "with a bias in the query's (fine-tuned) model only"})


def test_no_match_is_refused() -> None:
    with pytest.raises(MsifError, match=r"'nonsense' matches none.*layers\.0\.attention\.query_key_value"):
        track_modules(tiny_model("gpt_neox"), "nonsense")
    with pytest.raises(MsifError, match="not a regular expression"):
        track_modules(tiny_model("gpt_neox"), "mlp(")
    with pytest.raises(MsifError, match="no linear map"):
        track_modules(nn.LayerNorm(3))


def test_shared_parameters_are_one_of_several_uses() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    (weight,) = track_modules(model)
    assert (weight.name, weight.shape, weight.uses) == ("0", (4, 4), (Use("0"), Use("1")))
    assert names(track_modules(model, "everything")) == ["0", "0.bias", "1.bias"]  # of biases that are not shared
    model[1].bias = model[0].bias
    (both,) = track_modules(model, "everything")
    assert (both.shape, both.bias, both.uses) == ((4, 5), True, (Use("0"), Use("1")))
    assert torch.equal(matrix_of(model, both), torch.cat([model[0].weight, model[0].bias[:, None]], 1))
    tied = tiny_model("gpt2")  # the unembedding is the embedding, outside the layers
    assert "wte" not in names(track_modules(tied, "layers"))


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
    for name, kind in (("b", "Router"), ("c", "Doubled")):
        assert f"{name}.weight ({kind} is no linear map, lookup or norm)" in caplog.text
    assert "15 of 45 parameters are tracked" in caplog.text
    with pytest.raises(MsifError, match=r"c\.weight: Doubled is no linear map"):
        track_modules(model, "^c$")
    falcon = tiny_model("falcon (multi-head)")  # of FalconLinear
    assert len(track_modules(falcon)) == len(track_modules(falcon.to("meta"))) == 9


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
        tracked = names(track_modules(tiny_model("mixtral"), "layers"))
    assert tracked == [f"layers.{i}.self_attn.{x}_proj" for i in range(2) for x in "qkvo"]
    assert "layers.0.mlp.experts.gate_up_proj (MixtralExperts is no linear map, lookup or norm)" in caplog.text
    for pattern in ("experts", "gate_up_proj"):
        with pytest.raises(MsifError, match=r"layers\.0\.mlp\.experts\.gate_up_proj: MixtralExperts is no linear map"):
            track_modules(tiny_model("mixtral"), pattern)


def test_modules_that_do_not_run_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """Mamba reads a weight past its module; cross attention is there for an encoder that a decoder alone has not."""
    sizes = {"hidden_size": 8, "state_size": 4, "num_hidden_layers": 1, "time_step_rank": 4, "pad_token_id": 0}
    mamba = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", vocab_size=11, **sizes))
    assert names(track_modules(mamba, "layers")) == [f"layers.0.mixer.{name}_proj" for name in ("in", "x", "out")]
    assert "dt_proj (its module does not run in the forward pass)" in caplog.text
    with pytest.raises(MsifError, match="does not run in the forward pass"):
        track_modules(mamba, "dt_proj")
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    bart = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("bart", vocab_size=11, encoder_attention_heads=2, decoder_attention_heads=2, **sizes)
    )
    assert not [name for name in names(track_modules(bart)) if "encoder_attn" in name]
    assert not [hook for module in bart.modules() for hook in module._forward_hooks]
