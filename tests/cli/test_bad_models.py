"""Models, factors and damping that cannot be used: exit status 2, one sentence, nothing half-written."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXForCausalLM
from worlds import (
    fit_factors,
    near,
    save_classifier,
    save_lm,
    save_tokenizer,
)


def test_models_that_do_not_exist(fit, explain, tmp_path):
    for name in (tmp_path / "none", "./none", "no/such/model"):
        message = fit("The model folder .* does not exist", model=name)
        assert not re.search("network|connect|hub", message, re.I)
        explain("does not exist", pretrained=name)
        explain("does not exist", finetuned=name)


def test_weights_that_were_cut_off(fit, world, tmp_path):
    shutil.copytree(world.base, tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    fit("cannot be loaded .*: save or download them again", model=tmp_path / "cut")


def test_nan_in_a_model(fit, explain, tmp_path):
    model = save_lm(tmp_path / "model")
    with torch.no_grad():
        model.gpt_neox.layers[1].mlp.dense_h_to_4h.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "model")
    fit(r"parameter 'gpt_neox\.layers\.1\.mlp\.dense_h_to_4h\.weight' of .* holds NaN", model=tmp_path / "model")
    explain("holds NaN", finetuned=tmp_path / "model")


def test_infinity_in_a_pass_names_module_and_rows_and_leaves_nothing(fit, tmp_path):
    model = save_lm(tmp_path / "model")
    with torch.no_grad():
        for parameter in model.gpt_neox.layers[0].mlp.parameters():
            parameter *= 1e30
    model.save_pretrained(tmp_path / "model")
    fit(r"module '\S+' holds NaN or infinity in the batch of row", model=tmp_path / "model")


def test_two_models_with_no_shared_blocks(explain, world, tmp_path):
    torch.manual_seed(0)
    sizes = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 600, "vocab_size": 258}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(tmp_path / "gpt2")
    save_tokenizer(tmp_path / "gpt2")
    explain(
        "share no block|no module in common|no shared",
        "--method",
        "gdp",
        finetuned=tmp_path / "gpt2",
        finetuned_factors=None,
    )


def test_two_models_with_other_shapes(explain, tmp_path):
    save_lm(tmp_path / "wide", hidden_size=16, intermediate_size=20)
    flags = {"finetuned": tmp_path / "wide", "finetuned_factors": None}
    explain(r"shape", "--method", "gdp", **flags)


def test_a_classifier_whose_tokenizer_has_no_padding_token(fit, explain, world, tmp_path):
    save_classifier(tmp_path / "judge", pad=False, pad_token_id=None)
    data = world.folder / "labels.jsonl"
    fit(r"no padding token.*tokenizer\.pad_token", "--task", "classification", model=tmp_path / "judge", data=data)
    explain("no padding token", "--task", "classification", finetuned=tmp_path / "judge", completion="odd")


def test_a_language_model_needs_no_padding_token(world, tmp_path):
    shutil.copytree(world.base, tmp_path / "model")
    save_tokenizer(tmp_path / "model", pad=False)
    data = world.folder / "corpus.jsonl"
    assert fit_factors("--model", tmp_path / "model", "--data", data, "--output", tmp_path / "f") == 0
    layer = "layers.0.safetensors"  # and padding is no part of the result
    assert (tmp_path / "f" / layer).read_bytes() == (world.base_factors / layer).read_bytes()


def test_an_unknown_fused_layout(fit, tmp_path, monkeypatch):
    from msif.models import layouts

    registry = next(value for value in vars(layouts).values() if isinstance(value, dict) and "gpt_neox" in value)
    monkeypatch.delitem(registry, "gpt_neox")
    fit(r"query_key_value.*register_layout.*--no-split-heads|register.*(whole|single|--no-split-heads)")


def test_modules_that_are_not_there(fit, explain):
    fit("'nothing' matches none of the model's parameters: its linear maps are .*", "--modules", "nothing")
    fit("not a regular expression|regular expression", "--modules", "(")
    explain("the factors in .* were not fitted with --no-split-heads", "--no-split-heads")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(fit, explain):
    for device in ("cuda", "cuda:1"):
        fit(f"--device {device} is asked for, but there is no CUDA device here", "--device", device)
        explain("no CUDA device here", "--device", device)
    fit("no device 'gpu'", "--device", "gpu")


def copied_factors(world, tmp_path):
    return shutil.copytree(world.base_factors, tmp_path / "factors")


def test_factors_of_another_model_or_of_changed_weights(explain, world, tmp_path):
    message = explain("were fitted for another model .* than .*base", pretrained_factors=world.judge_factors)
    assert "judge" in message
    explain(r"the weights of .*base have changed", pretrained_factors=world.tuned_factors)
    changed = GPTNeoXForCausalLM.from_pretrained(world.base)
    near(changed, tmp_path / "changed")
    explain(r"the weights of .*changed have changed since .* fit them again", pretrained=tmp_path / "changed")


def test_factors_of_another_schema_incomplete_or_damaged(explain, world, tmp_path):
    folder = copied_factors(world, tmp_path)
    whole = json.loads((folder / "manifest.json").read_text())

    def changed(**changes):
        (folder / "manifest.json").write_text(json.dumps({**whole, **changes}))

    changed(schema=99)
    explain("schema 99", pretrained_factors=folder)
    changed(parts={**whole["parts"], "lambda": False})
    explain(r"incomplete \(lambda is missing\)", pretrained_factors=folder)
    (folder / "manifest.json").write_text("{")
    explain("is damaged", pretrained_factors=folder)
    changed()
    layer = folder / "layers.1.safetensors"
    layer.write_bytes(layer.read_bytes()[:-4])
    explain(r"layers\.1\.safetensors cannot be read", pretrained_factors=folder)
    layer.unlink()
    explain(r"layers\.1\.safetensors cannot be read", pretrained_factors=folder)
    explain("no folder of factors", pretrained_factors=tmp_path / "none")
    explain(r"holds no manifest\.json", pretrained_factors=world.base)
    shutil.copy(world.base_factors / "layers.1.safetensors", layer)
    layer = folder / "layers.1.lambda.safetensors"
    tensors = load_file(layer)
    tensors["layers.1.mlp.dense_h_to_4h:Lambda"] *= float("nan")
    save_file(tensors, layer)
    explain(r"NaN or infinity in layers\.1\.mlp\.dense_h_to_4h:Lambda", pretrained_factors=folder)


def test_factors_that_lack_what_is_asked_for(explain, world, tmp_path):
    flags = ["--model", world.base, "--data", world.folder / "corpus.jsonl", "--modules", "mlp"]
    assert fit_factors(*flags, "--output", tmp_path / "mlp") == 0
    explain("have none for 'layers.0.attention", "--modules", "all", pretrained_factors=tmp_path / "mlp")
    explain("needs --pretrained-factors", pretrained_factors=None)
    explain("needs --finetuned-factors", finetuned_factors=None)


def test_damping_that_cannot_be(explain):
    explain("--damping: '-1' is not a number of 0 or more, nor auto or evidence", "--damping=-1")
    explain("--alpha: 'evident' is not a number of 0 or more, nor auto or evidence", "--alpha", "evident")
    explain("--damping-scale: '-0.5' is not a number", "--damping-scale=-0.5")
    explain("--alpha: 'nan' is not a number", "--alpha", "nan")
    explain("--damping: 'small' is not a number", "--damping", "small")
    for flag, value in (("--alpha", "auto:0"), ("--alpha", "auto:"), ("--damping", "auto:-1"), ("--damping", "auto10")):
        explain(f"'{value}' is no damping: .* auto:X with X above 0 for X/τ", flag, value)
    explain(r"Λ of module '\S+' is singular and the damping does not lift it", "--damping", 0)
    explain("is singular", "--damping-scale", 0)
    for flag in ("--damping-scale", "--damping", "--alpha"):
        explain(r"is 1e\+300, so large that scores would be those of the dot product, or underflow", flag, "1e300")
    for flag in ("--damping", "--alpha"):
        explain(r"'auto:1e13' is so large .* give at most 1e\+12", flag, "auto:1e13")


def test_natural_damping_without_what_it_needs(explain):
    explain("one number for each model", "--damping", "auto", "--learning-rate-sum", 3)
    explain("sum to 0", "--damping", "auto", "--learning-rate-sum", 0, 1)
