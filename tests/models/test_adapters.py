"""Adapters of PEFT: each kind merges into what it computes beside its base, or is refused in one sentence."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from architectures import tiny_model
from helpers import MLP, spread
from huggingface_hub import HfApi
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from saved import save_tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from msif import merge_adapter
from msif.errors import MsifError
from msif.models.adapters import is_adapter
from msif.models.blocks import matrix_of, stored
from msif.models.loading import LoadedModel, load_model
from msif.models.select import match_modules, track_modules

pytestmark = pytest.mark.filterwarnings("ignore")

QUERY = {"gpt_neox": "query_key_value", "gpt2": "c_attn", "llama": "q_proj", "bloom": "query_key_value"}
QUERY |= {"qwen2": "q_proj", "qwen3_moe": "q_proj"}
LM, CLASSES = {"task_type": "CAUSAL_LM"}, {"task_type": "SEQ_CLS"}
IDS = torch.tensor([[2, 3, 4, 5]])


def lora(architecture: str = "llama", **changes: Any) -> LoraConfig:
    return LoraConfig(**{"r": 2, "target_modules": [QUERY[architecture]], **LM, **changes})


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    for architecture in QUERY:
        spread(tiny_model(architecture)).save_pretrained(folder / architecture)
        save_tokenizer(folder / architecture)
    return folder


def adapted(base: Path, config: Any, rows: int | None = None, **options: Any) -> nn.Module:
    """An unmerged model, none of whose adapter's weights is what it was before training."""
    auto: Any = AutoModelForCausalLM
    if config.task_type == "SEQ_CLS":
        auto, options = AutoModelForSequenceClassification, {"num_labels": 4, "pad_token_id": 0, **options}
    model = auto.from_pretrained(base, attn_implementation="eager", **options)
    if rows:
        model.resize_token_embeddings(rows)
    model = peft.get_peft_model(model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.float()


def refused(match: str, *args: Any, **options: Any) -> str:
    with pytest.raises(MsifError, match=match) as error:
        load_model(*args, device="cpu", **options)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
    return str(error.value)


KINDS: dict[str, tuple[str, Callable[[], Any], dict[str, Any]]] = {
    # architecture, adapter, and how its base was changed
    "lora, fused q/k/v": ("gpt_neox", lambda: lora("gpt_neox"), {}),
    "lora, Conv1D": ("gpt2", lambda: lora("gpt2", fan_in_fan_out=True), {}),
    "lora, BLOOM": ("bloom", lambda: lora("bloom"), {}),
    "lora, every map": ("llama", lambda: lora(target_modules="all-linear"), {}),
    "lora, no task": ("llama", lambda: lora(task_type=None), {}),
    "lora, ranks by layer": ("llama", lambda: lora(rank_pattern={"layers.0": 3}, alpha_pattern={"layers.1": 5}), {}),
    "lora and biases": ("llama", lambda: lora(bias="all"), {}),
    "rslora": ("llama", lambda: lora(use_rslora=True), {}),
    "dora": ("llama", lambda: lora(use_dora=True), {}),
    "lora, experts": ("qwen3_moe", lambda: lora("qwen3_moe", target_parameters=["mlp.experts.down_proj"]), {}),
    "lora and embedding": ("llama", lambda: lora(target_modules=["q_proj", "embed_tokens", "lm_head"]), {}),
    "lora, tied unembedding": ("gpt2", lambda: lora("gpt2", target_modules=["c_attn", "lm_head"]), {}),
    "lora, tied embedding": ("gpt2", lambda: lora("gpt2", target_modules=["c_attn", "wte"]), {}),
    "a module of its own": ("llama", lambda: lora(modules_to_save=["lm_head", "norm"]), {}),
    "added tokens": ("llama", lambda: lora(), {"rows": 60}),
    "added tokens, trained": ("llama", lambda: lora(modules_to_save=["embed_tokens", "lm_head"]), {"rows": 60}),
    "added tokens, tied": ("gpt2", lambda: lora("gpt2", modules_to_save=["wte"]), {"rows": 60}),
    "a few tokens": ("llama", lambda: lora(trainable_token_indices=[3, 5]), {}),
    "a few tokens, tied": ("gpt2", lambda: lora("gpt2", trainable_token_indices=[3, 5]), {}),
    "ia3": ("llama", lambda: peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[], **LM), {}),
    "loha": ("llama", lambda: peft.LoHaConfig(r=2, target_modules=["q_proj"], **LM), {}),
    "norms": ("llama", lambda: peft.LNTuningConfig(**LM), {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_adapter_computes_what_it_computed_beside_its_base(bases: Path, tmp_path: Path, kind: str) -> None:
    architecture, config, changes = KINDS[kind]
    unmerged = adapted(bases / architecture, config(), **changes)
    unmerged.save_pretrained(tmp_path)
    expected = logits(unmerged)
    plain = AutoModelForCausalLM.from_pretrained(bases / architecture, attn_implementation="eager")
    assert (logits(plain)[..., :50] - expected[..., :50]).norm() > 0.01 * expected.norm()  # it is no small thing
    loaded = load_model(tmp_path, device="cpu")
    torch.testing.assert_close(logits(loaded.model), expected, rtol=1e-4, atol=1e-4)
    assert loaded.adapter and not loaded.model.training
    shared, left_out = match_modules(track_modules(loaded.model, "layers"), track_modules(plain, "layers"))
    assert shared and not left_out
    in_memory = merge_adapter(unmerged)
    torch.testing.assert_close(logits(in_memory), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(unmerged), expected)  # as it was given
    assert track_modules(in_memory) == track_modules(loaded.model)


LORA = {
    "lora, fused q/k/v",
    "lora, Conv1D",
    "lora, BLOOM",
    "lora, every map",
    "lora, no task",
    "lora, ranks by layer",
    "rslora",
    "lora and embedding",
    "lora, tied unembedding",
    "lora, tied embedding",
    "a module of its own",
    "added tokens",
    "added tokens, trained",
    "added tokens, tied",
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_adapter_trained_is_kept(bases: Path, tmp_path: Path, kind: str) -> None:
    """c·BA of each map is what was added to its weight; other kinds than LoRA are named."""
    architecture, config, changes = KINDS[kind]
    adapted(bases / architecture, config(), **changes).save_pretrained(tmp_path)
    loaded = load_model(tmp_path, device="cpu")
    assert loaded.adapter is not None
    if kind not in LORA:
        with pytest.raises(MsifError, match=r"^--adapter-hop is for LoRA, and the adapter '.*' is \S.*: leave it out"):
            loaded.adapter.checked()
        return
    base = AutoModelForCausalLM.from_pretrained(bases / architecture)
    maps, whole = loaded.adapter.checked().maps, loaded.adapter.whole
    compared = set()
    for one in track_modules(loaded.model, "everything"):
        grown = stored(base, one)[0].shape != stored(loaded.model, one)[0].shape
        if grown or one.path in whole:
            assert one.path not in maps
            continue
        added = (matrix_of(loaded.model, one) - matrix_of(base, one))[:, : one.d_in]
        low = maps.get(one.path)
        expected = torch.zeros_like(added) if low is None else (low.scale * low.B @ low.A).float()
        torch.testing.assert_close(added, expected, rtol=1e-4, atol=1e-5)
        compared.add(one.path)
    assert maps.keys() <= compared and (maps or whole)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_classifiers_adapter_brings_its_head(bases: Path, tmp_path: Path, architecture: str) -> None:
    unmerged = adapted(bases / architecture, lora(architecture, **CLASSES))
    unmerged.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, task="classification", device="cpu")
    torch.testing.assert_close(logits(loaded.model), logits(unmerged), rtol=1e-4, atol=1e-4)
    assert loaded.model.config.num_labels == 4 and loaded.model.config.pad_token_id == 0
    assert loaded.weights == load_model(tmp_path, task="classification", device="cpu").weights  # no random head in it


def test_names_of_labels_from_a_config_beside_a_classifiers_adapter(bases: Path, tmp_path: Path) -> None:
    adapted(bases / "llama", lora(**CLASSES)).save_pretrained(tmp_path)
    names = {str(n): name for n, name in enumerate("abcd")}
    config = {"model_type": "llama", "id2label": names, "problem_type": "multi_label_classification"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_model(tmp_path, task="classification", device="cpu").model.config
    assert loaded.label2id == {"a": 0, "b": 1, "c": 2, "d": 3} and loaded.problem_type == "multi_label_classification"


LOW = {
    "lora": lora,
    "dora": lambda: lora(use_dora=True),
    "ia3": lambda: peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[], **LM),
    "oft": lambda: peft.OFTConfig(r=0, oft_block_size=4, target_modules=["q_proj"], **LM),
}


@pytest.mark.parametrize("kind", LOW)
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_a_low_precision_base_is_merged_in_float32_and_rounded_once(
    bases: Path, tmp_path: Path, stored: torch.dtype, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(bases / "llama").to(stored).save_pretrained(base)
    save_tokenizer(base)
    adapted(base, LOW[kind]()).save_pretrained(tmp_path / "adapter")
    with caplog.at_level(logging.INFO, "msif"):
        loaded = load_model(tmp_path / "adapter", device="cpu")
    assert "merged in memory" in caplog.text and "--dtype float32 keeps all of it" in caplog.text
    kept = load_model(tmp_path / "adapter", dtype="float32", device="cpu")
    assert kept.weights == loaded.weights
    for (name, rounded), exact in zip(loaded.model.named_parameters(), kept.model.parameters(), strict=True):
        assert rounded.dtype == stored and exact.dtype == torch.float32
        assert torch.equal(rounded, exact.to(stored)), name
    path = "model.layers.0.self_attn.q_proj"
    before = AutoModelForCausalLM.from_pretrained(base).get_submodule(path).weight
    assert not torch.equal(loaded.model.get_submodule(path).weight, before)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_a_low_precision_model_in_memory(bases: Path, stored: torch.dtype) -> None:
    """Its adapter is of low precision, too, and is multiplied out in float32."""
    unmerged = adapted(bases / "llama", lora()).to(stored)
    path = "model.layers.0.self_attn.q_proj"
    layer = unmerged.get_base_model().get_submodule(path)
    A, B = (part["default"].weight.float() for part in (layer.lora_A, layer.lora_B))
    exact = layer.base_layer.weight.float() + layer.scaling["default"] * (B @ A)
    merged = merge_adapter(unmerged)
    assert {parameter.dtype for parameter in merged.parameters()} == {stored}
    assert torch.equal(merged.get_submodule(path).weight, exact.to(stored))
    assert layer.lora_A["default"].weight.dtype == layer.base_layer.weight.dtype == stored


def test_fingerprints_are_of_base_and_adapter(bases: Path, tmp_path: Path) -> None:
    def prints(folder: Path) -> LoadedModel:
        return load_model(folder, device="cpu")

    adapted(bases / "llama", lora()).save_pretrained(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "moved")
    shutil.copytree(bases / "llama", tmp_path / "base")
    settings = json.loads((tmp_path / "a/adapter_config.json").read_text())
    settings |= {"base_model_name_or_path": str(tmp_path / "base"), "peft_version": "9", "inference_mode": False}
    (tmp_path / "moved/adapter_config.json").write_text(json.dumps(settings))
    first = prints(tmp_path / "a")
    assert (first.weights, first.config) == (prints(tmp_path / "moved").weights, prints(tmp_path / "moved").config)
    assert first.weights != prints(bases / "llama").weights
    # another scaling, other adapter weights, another base
    (tmp_path / "moved/adapter_config.json").write_text(json.dumps({**settings, "lora_alpha": 9}))
    assert prints(tmp_path / "moved").weights != first.weights
    (tmp_path / "moved/adapter_config.json").write_text(json.dumps(settings))
    tensors = load_file(tmp_path / "moved/adapter_model.safetensors")
    tensors[min(tensors)][0, 0] += 1e-3
    save_file(tensors, tmp_path / "moved/adapter_model.safetensors")
    assert prints(tmp_path / "moved").weights != first.weights
    shutil.copy(tmp_path / "a/adapter_model.safetensors", tmp_path / "moved/adapter_model.safetensors")
    weights = load_file(tmp_path / "base/model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    assert prints(tmp_path / "moved").weights != first.weights


def test_where_the_base_is(bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, path = tmp_path / "run/adapter", tmp_path / "run/adapter/adapter_config.json"
    adapted(bases / "llama", lora()).save_pretrained(adapter)
    shutil.copytree(bases / "llama", tmp_path / "run/base")
    settings = json.loads(path.read_text())

    def named(base: Any) -> None:
        path.write_text(json.dumps({**settings, "base_model_name_or_path": base}))

    monkeypatch.chdir(tmp_path)
    for base in ("run/base", "./run/base", "../base", str(tmp_path / "run/base")):
        named(base)
        assert load_model(adapter, device="cpu").adapter
    mend = r"write the base model's folder or Hub name into base_model_name_or_path of .*adapter_config\.json"
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: (_ for _ in ()).throw(OSError("no connection")))
    for base in ("/gone/base", "../gone", "nobody/nothing", "gone"):
        named(base)
        assert base in refused(f"The base model '{base}' of the adapter .* {mend}", adapter)
    for base in (None, ""):
        named(base)
        refused(f"names no base model: {mend}", adapter)
    shutil.copytree(adapter, tmp_path / "other")
    named("../../other")
    refused("is an adapter itself", adapter)


def test_the_tokenizer_is_the_adapters_or_its_bases(bases: Path, tmp_path: Path) -> None:
    adapted(bases / "llama", lora()).save_pretrained(tmp_path)
    assert len(load_model(tmp_path, device="cpu").tokenizer) == 9
    save_tokenizer(tmp_path, more=3)
    assert len(load_model(tmp_path, device="cpu").tokenizer) == 12


def test_a_checkpoint_of_the_trainer(bases: Path, tmp_path: Path) -> None:
    """Adapter, optimizer and trainer's state, and no config.json."""
    checkpoint = tmp_path / "checkpoint-40"
    adapted(bases / "llama", lora()).save_pretrained(checkpoint)
    save_tokenizer(checkpoint)
    (checkpoint / "trainer_state.json").write_text('{"global_step": 40, "log_history": []}')
    torch.save({"state": {}, "param_groups": []}, checkpoint / "optimizer.pt")
    (checkpoint / "README.md").write_text("---\nlibrary_name: peft\n---\n")
    assert load_model(checkpoint, device="cpu").adapter
    refused(r"has no config\.json: give '.*checkpoint-40'", tmp_path)


def test_pickled_weights(bases: Path, tmp_path: Path) -> None:
    unmerged = adapted(bases / "llama", lora())
    unmerged.save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / "adapter_model.bin").is_file()
    torch.testing.assert_close(logits(load_model(tmp_path, device="cpu").model), logits(unmerged), rtol=1e-4, atol=1e-4)


PROMPTS = {
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=3, **LM),
    "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, **LM),
    "p-tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8, **LM),
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_adapters_that_change_no_weight(bases: Path, tmp_path: Path, kind: str) -> None:
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(bases / "gpt2"), PROMPTS[kind]())
    model.save_pretrained(tmp_path)
    refused(r"vectors before the text.*cannot be merged", tmp_path)
    with pytest.raises(MsifError, match="vectors before the text"):
        merge_adapter(model)
    with pytest.raises(MsifError, match=r"has an adapter.*msif\.merge_adapter"):
        track_modules(model)


def test_an_adapter_that_acts_on_some_positions_only(bases: Path, tmp_path: Path) -> None:
    adapted(bases / "llama", lora(alora_invocation_tokens=[3])).save_pretrained(tmp_path)
    refused("cannot be merged", tmp_path)


def test_an_adapter_that_cannot_be_merged_whatever_it_is(
    bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The merged model's outputs are looked at."""
    from peft.tuners.lora.layer import Linear

    adapted(bases / "llama", lora()).save_pretrained(tmp_path)
    monkeypatch.setattr(Linear, "merge", lambda *_, **__: None)
    refused("the model would compute something else", tmp_path)


def test_tasks(bases: Path, tmp_path: Path) -> None:
    adapted(bases / "llama", lora()).save_pretrained(tmp_path / "lm")
    adapted(bases / "llama", lora(**CLASSES)).save_pretrained(tmp_path / "head")
    refused("is for the task CAUSAL_LM: use --task lm", tmp_path / "lm", task="classification")
    refused("is for the task SEQ_CLS: use --task classification", tmp_path / "head")
    path = tmp_path / "lm/adapter_config.json"
    for task in ("SEQ_2_SEQ_LM", "TOKEN_CLS", "FEATURE_EXTRACTION"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "task_type": task}))
        refused(f"is for the task {task}: give one of a language model", tmp_path / "lm")


def test_damaged_and_ambiguous_folders(bases: Path, tmp_path: Path) -> None:
    adapted(bases / "llama", lora()).save_pretrained(tmp_path)
    assert is_adapter(tmp_path)
    config, weights = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    tensors, whole, settings = load_file(weights), weights.read_bytes(), config.read_text()
    save_file({name: tensor[:0] if "lora_B" in name else tensor for name, tensor in tensors.items()}, weights)
    refused("was not saved whole.*lora_B", tmp_path)  # as by one process of many
    name = next(name for name in tensors if "lora_B" in name)
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, weights)
    refused(r"has no '.*lora_B.*', which its settings ask for", tmp_path)
    save_file({**tensors, name.replace("layers.0", "layers.7"): tensors[name].clone()}, weights)
    refused(r"does not fit its base model, which has no '.*layers\.7", tmp_path)
    save_file({**tensors, name: torch.zeros(3, 2)}, weights)
    refused("cannot be merged into its model", tmp_path)
    weights.write_bytes(whole[:-8])
    refused("weights of the adapter .* cannot be read", tmp_path)
    weights.unlink()
    refused("has no weights", tmp_path)
    weights.write_bytes(whole)
    config.write_text(json.dumps({**json.loads(settings), "target_modules": ["c_attn"]}))
    refused("cannot be merged into its model", tmp_path)
    for broken in ("{", "[]", "{}"):
        config.write_text(broken)
        refused(r"adapter_config\.json cannot be read", tmp_path)
    config.write_text(settings)
    shutil.copy(bases / "llama/model.safetensors", tmp_path)
    refused("holds an adapter and the weights of a whole model", tmp_path)


def test_a_quantised_base(bases: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(bases / "llama", base)
    config = json.loads((base / "config.json").read_text())
    quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": quantised}))
    adapted(bases / "llama", lora()).save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(base)}))
    refused(r"are quantised .* base_model_name_or_path", tmp_path / "adapter")
    refused("are quantised", base)


def test_without_the_library(bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(bases / "llama", lora())
    model.save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    refused(r"is an adapter, .* pip install 'msif\[adapters\]'", tmp_path)
    with pytest.raises(MsifError, match="pip install"):
        merge_adapter(model)


def test_an_adapter_in_the_hubs_cache(bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from msif.models import sources

    adapted(bases / "llama", lora()).save_pretrained(tmp_path)
    held = {"adapter_config.json": str(tmp_path / "adapter_config.json")}
    monkeypatch.setattr(sources, "try_to_load_from_cache", lambda name, file: held.get(file))
    loaded = load_model("somebody/adapter", device="cpu")
    assert loaded.adapter and loaded.name == "somebody/adapter"


def test_adapters_that_transformers_put_into_a_model(bases: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(bases / "llama")
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    expected = logits(model.eval())
    with pytest.raises(MsifError, match=r"has an adapter.*msif\.merge_adapter"):
        track_modules(model)
    merged = merge_adapter(model)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    assert track_modules(merged) and torch.equal(logits(model), expected)
    model.disable_adapters()
    assert torch.equal(logits(merge_adapter(model)), logits(model))


def test_a_plain_module(bases: Path) -> None:
    model = peft.get_peft_model(MLP([4, 5, 3]), LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)).eval()
    x = torch.randn(6, 4)
    merged = merge_adapter(model)
    torch.testing.assert_close(merged(x), model(x))
    assert isinstance(merged, MLP) and [m.name for m in track_modules(merged)] == ["layers.0", "layers.1"]


def test_a_base_that_holds_nan(bases: Path, tmp_path: Path) -> None:
    shutil.copytree(bases / "llama", tmp_path / "base")
    adapted(tmp_path / "base", lora()).save_pretrained(tmp_path / "adapter")
    weights = load_file(tmp_path / "base/model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    refused("parameter 'model.norm.weight' of .*base' holds NaN", tmp_path / "adapter")


def test_a_model_without_adapter(bases: Path) -> None:
    with pytest.raises(MsifError, match="no adapter that changes weights"):
        merge_adapter(tiny_model("llama"))
