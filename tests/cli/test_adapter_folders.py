"""Both commands on a model that is an adapter beside its base."""

import json
import logging

import peft
import pytest
import torch
import yaml
from helpers import dense_gradients, dense_hop
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from worlds import ALL, FACTS, QUERY, by_candidate, call, fit_factors, influence, shown, write_rows

from msif.attribution.damping import Damping
from msif.attribution.gradients import query_gradients
from msif.attribution.hops import build_hop
from msif.attribution.scorers import InfluenceScorer
from msif.build_index import main as build_index
from msif.curvature.filters import DampedInverse, ProximalHop
from msif.curvature.preconditioners import EKFAC
from msif.data.batching import batches_of
from msif.data.queries import Query, encode_queries
from msif.influence import main
from msif.run import attribute
from msif.stage import Stage

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
    nothing = "is an adapter, .* says nothing of the weights that it is merged into"
    for flags in (["--alpha", "auto", *sums], ["--damping", "auto", *sums]):
        explain(f"{nothing}: give numbers", *flags, **given)
    explain(f"{nothing}, and 'layers.0.attention.dense' has not moved", "--alpha", "auto", **given)
    explain("the evidence has no α of an adapter's own", "--adapter-hop", "--alpha", "evidence:2", **given)


def test_an_adapter_as_a_training_of_all_weights(world, adapter, tmp_path):
    """Of the maps that it moved the evidence tells α."""
    flags = [*pair(world, adapter), *QUERY, *ALL, "--modules", ADAPTED]
    assert influence(*flags, "--output", tmp_path / "out") == 0
    assert yaml.safe_load((tmp_path / "out/config.yaml").read_text())["alpha"] == "evidence"
    assert influence(*flags, "--alpha", 0, "--output", tmp_path / "zero") == 0
    assert by_candidate(tmp_path / "out") != by_candidate(tmp_path / "zero")


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


ADAPTED = "query_key_value|dense_h_to_4h"  # of the other maps a query's gradient passes unchanged


def dense_scores(world, adapter, alpha):
    """Each document's score through the adapter's hop, by autograd and matrices of H, J and S; and without a hop."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    tensors = load_file(adapter / "adapter_model.safetensors")
    pretrained = Stage(world.base, factors=world.base_factors, modules=ADAPTED)
    tuned = Stage(adapter, factors=adapter.parent / "factors", modules=ADAPTED)
    first, last = pretrained.side, tuned.side
    encoded = encode_queries([Query("0", QUERY[1], QUERY[3])], tuned.loaded.tokenizer)
    vectors = query_gradients(last, batches_of(encoded, 8192))
    for parameter in last.model.parameters():
        parameter.requires_grad_()
    (batch,) = Stage(adapter, world.folder / "pairs.jsonl").batches
    loss = last.objective.losses(last.objective.outputs(last.model, batch), batch).sum()
    gradient = dense_gradients(last.model, last.tracked, loss / last.objective.supervised_counts(batch).sum())
    hopped = {}
    for module in last.tracked:
        A, B = (tensors[f"base_model.model.{module.path}.{side}.weight"].double() for side in ("lora_A", "lora_B"))
        factors = tuned.store[module.name].to("cpu", torch.float64)
        basis = torch.kron(torch.block_diag(*factors.Q_G), factors.Q_A.contiguous())
        H = basis @ torch.diag(factors.Lambda.flatten()) @ basis.T
        given = (A, B, config["lora_alpha"] / config["r"], gradient[module.name].double(), (alpha, alpha))
        hopped[module.name] = dense_hop(vectors[module.name].double(), H, *given).float()
    scorer = InfluenceScorer(first, first, [EKFAC(pretrained.store)])
    documents = Stage(world.base, world.folder / "corpus.jsonl").batches
    scores = [scorer.score_vectors(scorer._through_stages(dict(v)), documents).values[0] for v in (hopped, vectors)]
    return [{f"doc-{n}": float(score) for n, score in enumerate(row)} for row in scores]


def test_the_hop_through_the_adapter(world, adapter, tmp_path):
    flags = [*pair(world, adapter), *QUERY, *ALL, "--modules", ADAPTED, "--adapter-hop"]
    assert influence(*flags, "--alpha", 0.9, "--output", tmp_path / "out") == 0
    expected, without = dense_scores(world, adapter, 0.9)
    found = by_candidate(tmp_path / "out")
    moved, wrong = (max(abs(one[name] - expected[name]) for name in expected) for one in (without, found))
    assert wrong < 0.01 * moved and moved > 0.005 * max(expected.values())
    for one in shown(tmp_path / "out"):  # each token's vector goes through the adapter as well
        parts = [sum(own) for own in one["by_answer"]]
        assert len(parts) == len(" Linz") and sum(parts) == pytest.approx(one["score"], abs=1e-2 * max(map(abs, parts)))
    stages = [
        Stage(world.base, factors=world.base_factors, modules=ADAPTED),
        Stage(adapter, factors=adapter.parent / "factors", modules=ADAPTED),
    ]
    asked = {"corpus": world.folder / "corpus.jsonl", "damping": Damping(alpha=0.9), "adapter_hop": True}
    result = attribute(stages, [(QUERY[1], QUERY[3])], "all", **asked)
    assert found == pytest.approx(
        {row["candidate_id"]: row["score"] for row in result.to_pandas().to_dict("records")}, rel=1e-5
    )
    # its configuration repeats the run
    assert influence("--config", tmp_path / "out/config.yaml", "--output", tmp_path / "again") == 0
    assert by_candidate(tmp_path / "again") == found


def test_alpha_of_an_adapter_is_that_of_its_own_parameters(world, adapter, tmp_path):
    """1/τ = mean(√V + ε)/Σ η of each of A and B, by the order in which the optimizer has them."""
    tau = Stage(adapter).adapter_tau
    state = torch.load(adapter / "optimizer.pt")["state"]
    assert len(state) == len(tau) == 8
    for number, name in enumerate(tau):
        assert name.endswith(("lora_A", "lora_B")[number % 2])
        root = (state[number]["exp_avg_sq"] / (1 - 0.999)).sqrt() + 1e-8
        assert float(tau[name]) == pytest.approx(0.04 / float(root.mean()), rel=1e-5)
    stage, name = Stage(adapter, factors=adapter.parent / "factors"), "layers.0.attention.query_key_value"
    hop = build_hop(stage.side, stage.store, stage.adapter, {key: 1 / value for key, value in tau.items()}, [])
    pulls = [1 / float(tau[f"gpt_neox.{name}.{side}"]) for side in ("lora_A", "lora_B")]
    assert pulls[0] != pytest.approx(pulls[1], rel=0.01) and hop.alpha[name] == pytest.approx(pulls)
    flags = [*pair(world, adapter), *QUERY, *ALL, "--adapter-hop"]
    assert influence(*flags, "--output", tmp_path / "out") == 0
    assert influence(*flags, "--alpha", "auto", "--output", tmp_path / "auto") == 0
    assert by_candidate(tmp_path / "out") == by_candidate(tmp_path / "auto")
    assert yaml.safe_load((tmp_path / "out/config.yaml").read_text())["alpha"] == "auto"


def test_the_hop_of_no_adapter_and_of_other_kinds(explain, world, adapter, tmp_path):
    hop = ["--adapter-hop", "--alpha", 2]
    explain("is for a fine-tuned model that is an adapter's folder, and .* is a whole model", *hop)
    given = {"finetuned": adapter, "finetuned_factors": adapter.parent / "factors"}
    explain("needs its pull to where it started: give --alpha X, above 0", "--adapter-hop", "--alpha", 0, **given)
    explain("module '.*' is not positive definite with --alpha 1e-06.*give a larger one", "--adapter-hop",
            "--alpha", 1e-6, **given)  # fmt: skip
    explain("--adapter-hop is for multi-stage influence with --ihvp ekfac", *hop, "--ihvp", "cg", **given)
    explain("--method gdp does not read --", *hop, "--method", "gdp", **given)
    explain("the data in .* is not what the factors", *hop, **given, finetuned_data=world.folder / "corpus.jsonl")
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (bare / file).write_bytes((adapter / file).read_bytes())
    explain(
        r"1/τ of its training is not known .*: give --alpha X, above 0", "--adapter-hop", **given | {"finetuned": bare}
    )


OTHER = {
    "DoRA": peft.LoraConfig(use_dora=True, r=2, target_modules=["query_key_value"], task_type="CAUSAL_LM"),
    "LoRA that trained biases": peft.LoraConfig(bias="all", r=2, target_modules=["query_key_value"]),
    "IA3": peft.IA3Config(target_modules=["query_key_value"], feedforward_modules=[]),
}


@pytest.mark.parametrize("kind", OTHER)
def test_adapters_that_are_not_lora_alone(explain, world, tmp_path, kind):
    folder = tmp_path / "other"
    base = AutoModelForCausalLM.from_pretrained(world.base)
    peft.get_peft_model(base, OTHER[kind]).save_pretrained(folder)
    assert fit_factors("--model", folder, "--data", world.folder / "pairs.jsonl", "--output", tmp_path / "f") == 0
    given = {"finetuned": folder, "finetuned_factors": tmp_path / "f"}
    explain(f"--adapter-hop is for LoRA, and the adapter .* is {kind}", "--adapter-hop", "--alpha", 2, **given)


def test_how_to_ask_for_the_hop_is_said(world, adapter, caplog):
    flags = [*pair(world, adapter), *QUERY, *ALL, "--dry-run"]
    with caplog.at_level(logging.INFO, "msif"):
        assert call(main, *flags) == 0
        assert caplog.text.count("--adapter-hop takes it as LoRA") == 1
        caplog.clear()
        assert call(main, *flags, "--adapter-hop", "--alpha", 2) == 0
        assert "--adapter-hop" not in caplog.text


def test_a_module_that_was_trained_whole_beside_the_adapter(explain, world, tmp_path):
    """Of it the hop is that of a fine-tuning of all weights, whose constant α is kept here."""
    folder = tmp_path / "adapter"
    config = peft.LoraConfig(r=2, target_modules=["dense"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(world.base), config).save_pretrained(folder)
    assert fit_factors("--model", folder, "--data", world.folder / "pairs.jsonl", "--output", tmp_path / "f") == 0
    given = {"finetuned": folder, "finetuned_factors": tmp_path / "f"}
    explain("'lm_head' was trained whole beside the adapter.*give --alpha X", "--adapter-hop", **given)
    models = ["--pretrained", world.base, "--finetuned", folder, "--corpus", world.folder / "corpus.jsonl"]
    factors = ["--pretrained-factors", world.base_factors, "--finetuned-factors", tmp_path / "f"]
    flags = [*models, *factors, *QUERY, *ALL, "--alpha", 3, "--modules", "lm_head"]
    assert influence(*flags, "--adapter-hop", "--output", tmp_path / "hop") == 0
    stages = [Stage(world.base, factors=world.base_factors), Stage(folder, factors=tmp_path / "f")]
    first, last = (stage.side.restricted(["lm_head"]) for stage in stages)
    filters = [DampedInverse(), ProximalHop(3.0)]
    inverses = [EKFAC(stage.store, filter) for stage, filter in zip(stages, filters, strict=True)]
    encoded = batches_of(encode_queries([Query("0", QUERY[1], QUERY[3])], stages[1].loaded.tokenizer), 8192)
    documents = Stage(world.base, world.folder / "corpus.jsonl").batches
    scores = InfluenceScorer(last, first, inverses).score(encoded, documents).values[0]
    assert by_candidate(tmp_path / "hop") == pytest.approx({f"doc-{n}": s for n, s in enumerate(scores)}, rel=1e-4)


def test_the_hop_in_scores_by_an_index(world, adapter, tmp_path):
    built = ["--model", world.base, "--data", world.folder / "corpus.jsonl", "--factors", world.base_factors]
    leading = ["--projection", "64", "--basis", "leading", "--quiet"]
    assert call(build_index, *built, *leading, "--output", tmp_path / "index") == 0
    flags = [*pair(world, adapter), *QUERY, *ALL]
    assert influence(*flags, "--adapter-hop", "--alpha", 0.9, "--output", tmp_path / "exact") == 0
    given = ["--index", tmp_path / "index", "--adapter-hop", "--alpha", 0.9]
    assert influence(*flags, *given, "--output", tmp_path / "estimated") == 0
    exact, estimated = by_candidate(tmp_path / "exact"), by_candidate(tmp_path / "estimated")
    rounding = 2e-3 * max(exact.values())  # of the features in the index
    assert [estimated[name] for name in exact] == pytest.approx(list(exact.values()), abs=rounding)
