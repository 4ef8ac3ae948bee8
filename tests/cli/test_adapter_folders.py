"""Both commands on a model that is an adapter beside its base."""

import json
import logging

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from worlds import ALL, FACTS, QUERY, by_candidate, fit_factors, influence, write_rows

pytestmark = pytest.mark.filterwarnings("ignore")


def trained(base, folder, task="CAUSAL_LM"):
    """A Trainer's checkpoint of an adapter: without a config.json, and with the adapter's own optimizer."""
    auto = AutoModelForCausalLM if task == "CAUSAL_LM" else AutoModelForSequenceClassification
    options = {} if task == "CAUSAL_LM" else {"num_labels": 3}
    config = peft.LoraConfig(r=2, target_modules=["query_key_value", "dense_h_to_4h"], task_type=task)
    model = peft.get_peft_model(auto.from_pretrained(base, **options), config)
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable)
    model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    log = [{"step": step, "learning_rate": 1e-3} for step in range(10, 50, 10)]
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 40, "log_history": log}))
    return model


@pytest.fixture(scope="module")
def adapter(world, tmp_path_factory):
    """The adapter's folder, with its factors in a folder beside it."""
    folder = tmp_path_factory.mktemp("adapter") / "checkpoint-40"
    trained(world.base, folder)
    flags = ["--model", folder, "--data", world.folder / "pairs.jsonl"]
    assert fit_factors(*flags, "--output", folder.parent / "factors") == 0
    return folder


def pair(world, adapter):
    models = ["--pretrained", world.base, "--finetuned", adapter, "--corpus", world.folder / "corpus.jsonl"]
    return [*models, "--pretrained-factors", world.base_factors, "--finetuned-factors", adapter.parent / "factors"]


def test_two_stages_of_which_the_second_is_an_adapter(world, adapter, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "msif"):
        assert influence(*pair(world, adapter), *QUERY, *ALL, "--output", tmp_path / "out") == 0
    assert "--alpha is 0, since" in caplog.text and "is an adapter" in caplog.text  # its optimizer is not read
    merged = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world.base), adapter)
    merged.merge_and_unload().save_pretrained(tmp_path / "merged")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "merged" / file).write_bytes((world.base / file).read_bytes())
    whole = ["--pretrained", world.base, "--finetuned", tmp_path / "merged"]
    corpus = ["--corpus", world.folder / "corpus.jsonl", "--method", "gdp", *QUERY, *ALL]
    assert influence(*whole, *corpus, "--output", tmp_path / "whole") == 0
    assert influence(*pair(world, adapter)[:4], *corpus, "--output", tmp_path / "adapted") == 0
    assert by_candidate(tmp_path / "adapted") == pytest.approx(by_candidate(tmp_path / "whole"), rel=1e-4, abs=1e-4)


def test_the_models_own_answer(world, adapter, tmp_path):
    assert influence(*pair(world, adapter), "--query", "Where was Ada born?", *ALL, "--output", tmp_path / "o") == 0
    assert len(by_candidate(tmp_path / "o")) == len(FACTS)


def test_a_natural_scale_of_weights_that_were_not_trained(explain, world, adapter):
    given = {"finetuned": adapter, "finetuned_factors": adapter.parent / "factors"}
    sums = ["--learning-rate-sum", 1, 1]
    for flags in (["--alpha", "auto"], ["--alpha", "auto", *sums], ["--damping", "auto", *sums]):
        explain("is an adapter, .* says nothing of the weights that it is merged into: give numbers", *flags, **given)


def test_factors_of_another_adapter(explain, world, adapter, tmp_path):
    other = tmp_path / "other"
    trained(world.base, other)
    settings = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**settings, "lora_alpha": 3}))
    given = {"finetuned": other, "finetuned_factors": adapter.parent / "factors"}
    explain("have changed since the factors", **given)


def test_a_classifiers_adapter(world, tmp_path):
    judge = tmp_path / "judge"
    trained(world.base, judge, "SEQ_CLS")
    rows = [{"text": text, "label": n % 3} for n, text in enumerate(FACTS)]
    data = write_rows(tmp_path / "labels.jsonl", rows)
    flags = ["--task", "classification", "--model", judge, "--data", data]
    assert fit_factors(*flags, "--output", tmp_path / "factors") == 0
    models = ["--pretrained", world.base, "--finetuned", judge, "--corpus", world.folder / "corpus.jsonl"]
    factors = ["--pretrained-factors", world.base_factors, "--finetuned-factors", tmp_path / "factors"]
    query = ["--task", "classification", "--query", "Rain fell", "--completion", "LABEL_2"]
    assert influence(*models, *factors, *query, *ALL, "--output", tmp_path / "out") == 0
    assert any(by_candidate(tmp_path / "out").values())


def test_adapters_that_cannot_be_used(fit, explain, world, adapter, tmp_path):
    fit("is for the task CAUSAL_LM: use --task lm", "--task", "classification", model=adapter,
        data=world.folder / "labels.jsonl")  # fmt: skip
    prompts = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(world.base), prompts)
    model.save_pretrained(tmp_path / "prompts")
    fit("cannot be merged", model=tmp_path / "prompts")
    path = tmp_path / "prompts/adapter_config.json"
    gone = {**json.loads((adapter / "adapter_config.json").read_text()), "base_model_name_or_path": "/gone"}
    path.write_text(json.dumps(gone))
    explain("base model '/gone' of the adapter .* is neither here", finetuned=tmp_path / "prompts")
