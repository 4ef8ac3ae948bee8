"""Loading from saved folders, and each kind of folder, name or device that cannot be loaded."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import tiny_config, tiny_model
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from saved import save_tokenizer
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    GPTNeoXForCausalLM,
    T5Config,
    ViTConfig,
)
from transformers.utils import logging as transformers_logging

from msif import distributed
from msif.attribution.gradients import Side, query_gradients
from msif.data.documents import Document, collate
from msif.errors import MsifError
from msif.models.fingerprint import fingerprint_config, fingerprint_weights
from msif.models.loading import load_model, resolve_device
from msif.models.objectives import CausalLM
from msif.models.select import track_modules


@pytest.fixture
def lm(tmp_path: Path) -> Path:
    folder = tmp_path / "lm"
    tiny_model("gpt_neox").save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_classifier(folder: Path, pad: str | None = "<pad>", pad_token_id: int | None = None) -> Path:
    config = tiny_config("gpt_neox", num_labels=3, pad_token_id=pad_token_id)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    save_tokenizer(folder, pad)
    return folder


def refused(match: str, *args: object, **kwargs: object) -> str:
    with pytest.raises(MsifError, match=match) as error:
        load_model(*args, **kwargs)  # type: ignore[arg-type]
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_language_model(lm: Path) -> None:
    verbosity = transformers_logging.get_verbosity()
    loaded = load_model(lm, device="cpu")
    assert type(loaded.model).__name__ == "GPTNeoXForCausalLM" and not loaded.model.training
    assert all(p.requires_grad and p.device.type == "cpu" for p in loaded.model.parameters())
    assert loaded.tokenizer("a b")["input_ids"] == [2, 3]
    original = tiny_model("gpt_neox")
    assert loaded.weights == fingerprint_weights(original) and loaded.config == fingerprint_config(original)
    tokens = torch.tensor([[2, 3, 4]])
    assert torch.allclose(loaded.model(tokens).logits, original(tokens).logits, atol=1e-6)  # sdpa against eager
    assert transformers_logging.get_verbosity() == verbosity


def test_nothing_is_printed(lm: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(lm, device="cpu")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(lm: Path, stored: torch.dtype) -> None:
    tiny_model("gpt_neox").to(stored).save_pretrained(lm)
    loaded = load_model(lm, device="cpu")
    assert {p.dtype for p in loaded.model.parameters()} == {stored}
    tokens = torch.tensor([[2, 3, 4]])
    assert torch.isfinite(loaded.model(tokens).logits).all()  # float16 runs on a CPU
    for name in ("float32", "bfloat16", "float16"):
        cast = load_model(lm, dtype=name, device="cpu")
        assert {p.dtype for p in cast.model.parameters()} == {getattr(torch, name)}
        assert cast.weights == loaded.weights  # of the stored weights
        assert all(b.dtype == torch.float32 for n, b in cast.model.named_buffers() if "inv_freq" in n)


def test_a_classifier(tmp_path: Path) -> None:
    loaded = load_model(save_classifier(tmp_path), task="classification", device="cpu")
    assert loaded.model.config.num_labels == 3
    assert loaded.model.config.pad_token_id == 0  # the tokenizer's
    alone = loaded.model(torch.tensor([[2, 3]])).logits
    padded = loaded.model(torch.tensor([[2, 3, 0], [4, 5, 6]]), attention_mask=torch.tensor([[1, 1, 0], [1, 1, 1]]))
    assert torch.allclose(alone[0], padded.logits[0], atol=1e-6)


def test_a_classifier_without_padding_token(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path, pad=None)
    refused(r"no padding token.*tokenizer\.pad_token", folder, task="classification")
    folder = save_classifier(tmp_path, pad=None, pad_token_id=1)
    assert load_model(folder, task="classification", device="cpu").model.config.pad_token_id == 1


def test_a_language_model_needs_no_padding_token(lm: Path) -> None:
    save_tokenizer(lm, pad=None)
    assert load_model(lm, device="cpu").tokenizer.pad_token is None


def test_missing_folders_are_not_looked_for_on_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for name in (tmp_path / "none", "./none", "../none", "~/no-such-folder", "a/b/c", "models/none", "no such model"):
        message = refused(r"folder .* does not exist", name)
        assert not any(word in message.lower() for word in ("hub", "network", "connect", "online", "http"))


def test_a_hub_name_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect to 'https://huggingface.co'.\nCheckout your internet connection")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(HfApi, "model_info", unreachable)
    for name in ("nobody/nothing", "nothing"):
        message = refused(rf"no model folder '{name}' here, nor could a model of this name be had", name)
        assert "connect" not in message


def test_folders_that_are_no_model(lm: Path, tmp_path: Path) -> None:
    refused("no config.json", tmp_path)
    refused("is a file", lm / "config.json")
    (lm / "model.safetensors").unlink()
    refused("no weights", lm)
    (lm / "config.json").write_text("{")
    refused(r"config\.json cannot be read", lm)
    (lm / "config.json").write_text("{}")
    refused("model_type", lm)
    (lm / "config.json").write_text('{"model_type": "unheard-of"}')
    refused("configuration", lm)
    (lm / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}')
    refused("configuration", lm)  # and asks no question about running the model's own code


def test_a_truncated_weight_file(lm: Path) -> None:
    file = lm / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    refused("cannot be loaded", lm)


def test_missing_weights(lm: Path) -> None:
    weights = load_file(lm / "model.safetensors")
    name = "gpt_neox.layers.1.mlp.dense_h_to_4h.weight"
    del weights[name]
    save_file(weights, lm / "model.safetensors", metadata={"format": "pt"})
    refused(rf"lacks weights .*{name}", lm)


def test_other_shapes(lm: Path) -> None:
    weights = load_file(lm / "model.safetensors")
    weights["gpt_neox.layers.1.mlp.dense_h_to_4h.weight"] = torch.zeros(3, 3)
    save_file(weights, lm / "model.safetensors", metadata={"format": "pt"})
    refused(r"dense_h_to_4h\.weight' of .* has shape \(3, 3\), .* \(48, 32\)", lm)


def test_heads_must_be_in_the_checkpoint(lm: Path, tmp_path: Path) -> None:
    refused(r"no classification head \(score\.weight\)", lm, task="classification")
    refused("no language-modelling head", save_classifier(tmp_path / "classifier"))
    bare = tmp_path / "bare"
    AutoModel.from_config(tiny_config("gpt_neox")).save_pretrained(bare)
    save_tokenizer(bare)
    refused("no language-modelling head", bare)


def test_a_tied_head_is_not_missing(tmp_path: Path) -> None:
    AutoModel.from_config(tiny_config("gpt2")).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    assert load_model(tmp_path, device="cpu").model.lm_head.weight.shape == (50, 32)


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "NaN"), (float("inf"), "infinity")])
def test_weights_must_be_finite(lm: Path, value: float, kind: str) -> None:
    model = tiny_model("gpt_neox")
    with torch.no_grad():
        model.gpt_neox.layers[0].mlp.dense_h_to_4h.weight[1, 2] = value
    model.save_pretrained(lm)
    refused(rf"'gpt_neox\.layers\.0\.mlp\.dense_h_to_4h\.weight' .* holds {kind}", lm)


def test_weights_that_overflow_in_the_asked_dtype(lm: Path) -> None:
    model = tiny_model("gpt_neox")
    with torch.no_grad():
        model.gpt_neox.layers[0].mlp.dense_h_to_4h.weight[1, 2] = 1e6
    model.save_pretrained(lm)
    refused(r"as float16.* holds infinity", lm, dtype="float16")


def test_architectures_that_are_not_decoder_only(tmp_path: Path) -> None:
    T5Config().save_pretrained(tmp_path)
    refused(r"\(t5\) is an encoder-decoder", tmp_path)
    BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(tmp_path)
    refused(r"\(bert\) is an encoder", tmp_path)
    refused(r"\(bert\) is an encoder", tmp_path, task="classification")
    ViTConfig().save_pretrained(tmp_path)
    refused("is not a language model", tmp_path)
    tiny_config("codegen").save_pretrained(tmp_path)
    refused("no classifier", tmp_path, task="classification")


@pytest.mark.parametrize("architecture", ["gpt_neox", "gpt2", "llama"])
def test_a_folder_without_tokenizer(tmp_path: Path, architecture: str) -> None:
    tiny_model(architecture).save_pretrained(tmp_path)
    refused("has no tokenizer", tmp_path)


def test_a_folder_that_moved_is_the_same_model(lm: Path, tmp_path: Path) -> None:
    shutil.copytree(lm, tmp_path / "copy")
    first, second = load_model(lm, device="cpu"), load_model(tmp_path / "copy", device="cpu")
    assert (first.weights, first.config) == (second.weights, second.config)


def changed(folder: Path, **settings: object) -> Path:
    """The folder, with other settings in its config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize(
    "kernel",
    [
        "flash_attention_2",
        "flash_attention_3",
        "flash_attention_4",
        "flex_attention",
        "kernels-community/flash-attn",
        "paged|sdpa",
        "paged|eager",
        "paged|flash_attention_2",
        "triton",
    ],
)
def test_attention_by_a_kernel_that_is_not_here(
    lm: Path, kernel: str, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = load_model(lm, device="cpu")
    with caplog.at_level(logging.INFO, "msif"):
        loaded = load_model(changed(lm, **{key: kernel}), device="cpu")
    assert loaded.model.config._attn_implementation == "sdpa"
    assert f"asks for attention by '{kernel}'" in caplog.text
    assert (loaded.weights, loaded.config) == (before.weights, before.config)
    tokens = torch.tensor([[2, 3, 4]])
    loaded.model(tokens, attention_mask=torch.ones_like(tokens)).logits.sum().backward()


def test_attention_of_an_architecture_without_sdpa(tmp_path: Path) -> None:
    tiny_model("mpt").save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    for kernel in ("flash_attention_2", "sdpa", None):
        loaded = load_model(changed(tmp_path, attn_implementation=kernel), device="cpu")
        assert loaded.model.config._attn_implementation == "eager"


def test_eager_attention_is_kept(lm: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "msif"):
        loaded = load_model(changed(lm, attn_implementation="eager"), device="cpu")
    assert loaded.model.config._attn_implementation == "eager" and not caplog.text


@pytest.mark.parametrize(
    "settings",
    [
        {"output_attentions": True},
        {"output_attentions": True, "attn_implementation": "flash_attention_2"},
        {"output_hidden_states": True},
        {"return_dict": False},
        {"torchscript": True},
        {"use_cache": True},
        {"gradient_checkpointing": True},
        {"auto_map": {"AutoModelForCausalLM": "own.Model", "AutoConfig": "own.Config"}},
        {"dtype": "fp16"},
        {"dtype": "torch.bfloat16"},
        {"dtype": "float8_e4m3fn"},
        {"dtype": "auto"},
        {"dtype": "int8"},
        {"torch_dtype": "nonsense", "dtype": None},
        {"pad_token_id": -1},
        {"pad_token_id": 50},
        {"pad_token_id": 99999},
    ],
    ids=str,
)
@pytest.mark.parametrize("architecture", ["gpt_neox", "llama"])
def test_settings_of_how_a_model_was_run_elsewhere(
    tmp_path: Path, architecture: str, settings: dict[str, object]
) -> None:
    tiny_model(architecture).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    before = load_model(tmp_path, dtype="float32", device="cpu")
    loaded = load_model(changed(tmp_path, **settings), dtype="float32", device="cpu")
    tokens = torch.tensor([[2, 3, 4]])
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    output = loaded.model.train()(**batch)  # in training mode, in which a checkpointed layer would be run twice
    assert output.attentions is None and output.hidden_states is None
    assert not loaded.model.is_gradient_checkpointing
    loaded.model.eval()
    # stored in float32 and read at a lower precision where the configuration says so, as transformers does
    low = settings.get("dtype") in ("fp16", "torch.bfloat16")
    torch.testing.assert_close(
        loaded.model(**batch).logits, before.model(**batch).logits, atol=0.1 if low else 0, rtol=0
    )
    assert loaded.config == before.config or "auto_map" in settings or "torchscript" in settings


def test_a_negative_padding_token_is_an_embedding_that_was_never_trained(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    model = load_model(changed(tmp_path, pad_token_id=-1), device="cpu").model
    embedding = model.get_input_embeddings()
    assert embedding.padding_idx == 49
    tokens = torch.tensor([[2, 49]])
    side = Side(model, track_modules(model, "embed_tokens"), CausalLM())
    document = Document(0, np.array([2, 49, 3], dtype=np.int32), np.array([False, True, True]))
    found = query_gradients(side, [collate([document])])["embed_tokens"][0]
    for gradient in (found, *torch.autograd.grad(model(tokens).logits.sum(), embedding.weight)):
        assert not gradient[49].any() and gradient[2].any()


def test_weights_in_float8(lm: Path) -> None:
    stored = {name: weight.to(torch.float8_e4m3fn) for name, weight in load_file(lm / "model.safetensors").items()}
    save_file(stored, lm / "model.safetensors", metadata={"format": "pt"})
    loaded = load_model(changed(lm, dtype="float8_e4m3fn"), device="cpu").model
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    name = "gpt_neox.layers.1.mlp.dense_h_to_4h.weight"
    assert torch.equal(loaded.get_parameter(name), stored[name].float())


def test_a_head_that_is_no_head(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path)
    # some versions of transformers refuse it themselves
    refused(
        "problem_type.*'token_classification'", changed(folder, problem_type="token_classification"), "classification"
    )


def test_a_classifiers_padding_token_that_cannot_be_looked_up(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path, pad=None)
    for token in (-1, 50, 99999):
        refused("no padding token", changed(folder, pad_token_id=token), "classification")
        save_tokenizer(folder)
        assert load_model(folder, "classification", device="cpu").model.config.pad_token_id == 0
        save_tokenizer(folder, pad=None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    for number in range(50):
        tokenizer.add_tokens(f"more{number}")
    tokenizer.pad_token = "more45"
    tokenizer.save_pretrained(folder)
    refused(r"padding token of .* \('more45', 55\) is beyond its 50 embeddings", folder, "classification")


@pytest.mark.parametrize("device", ["mps", "mps:0"])
def test_devices_without_float64(device: str) -> None:
    refused(f"Device '{device}' has no float64.*--device cpu", "x", device=device)


def test_a_device_that_turns_out_to_have_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    def zeros(*_: object, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        if device.type != "cpu" and dtype == torch.float64:
            raise RuntimeError("Required aspect fp64 is not supported on the device")

    monkeypatch.setattr(torch, "zeros", zeros)
    refused("Device 'xpu' has no float64", "x", device="xpu")


def test_a_model_that_does_not_fit(lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def moved(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(GPTNeoXForCausalLM, "to", moved)
    refused("does not fit into the memory of cpu: give --dtype bfloat16", lm, device="cpu")
    monkeypatch.undo()

    def loaded(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(GPTNeoXForCausalLM, "from_pretrained", loaded)
    refused("does not fit into the memory of this machine", lm, device="cpu")


def test_arguments() -> None:
    refused("no task 'regression'", "x", task="regression")
    refused("no dtype 'int8'", "x", dtype="int8")
    refused("no device 'gpu'", "x", device="gpu")


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_more_processes_than_devices(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(distributed._devices, "sharing", 2)
    refused("2 processes would share one CUDA device.*--nproc-per-node.*--device cpu", "x", device=device)
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda() -> None:
    refused("no CUDA device", "x", device="cuda")
    refused("no CUDA device", "x", device="cuda:1")
    assert resolve_device("auto") == torch.device("cpu")
