"""Methods, damping and options of the influence command."""

import json

import pytest
import torch
import yaml
from transformers import GPTNeoXForCausalLM, Trainer
from worlds import ALL, FACTS, QUERY, assert_sums, by_candidate, influence, shown


@pytest.mark.parametrize("method", ["gdp", "cosine"])
def test_without_curvature(world, tmp_path, method):
    assert influence(*world.pair, *QUERY, *ALL, "--method", method, "--output", tmp_path / "out") == 0
    values = by_candidate(tmp_path / "out")
    assert method != "cosine" or max(map(abs, values.values())) <= 1 + 1e-5
    assert_sums(shown(tmp_path / "out"))


def test_single_stage_of_one_model(world, tmp_path, multi_stage):
    model = ["--pretrained", world.base, "--pretrained-factors", world.base_factors]
    flags = ["--corpus", world.folder / "corpus.jsonl", *QUERY, *ALL, "--method", "single-stage"]
    assert influence(*model, *flags, "--output", tmp_path / "out") == 0
    assert by_candidate(tmp_path / "out") != by_candidate(multi_stage)
    # with the fine-tuned model too, the pre-trained one is still what is measured
    both = ["--finetuned", world.tuned, "--finetuned-factors", world.tuned_factors]
    assert influence(*model, *both, *flags, "--output", tmp_path / "both") == 0
    assert by_candidate(tmp_path / "both") == by_candidate(tmp_path / "out")


def test_options_of_scoring(world, tmp_path, multi_stage):
    flags = [*world.pair, *world.factors, *QUERY, *ALL]
    variants = {
        "rank": ["--query-rank", 400],
        "coarse": ["--query-rank", 1],
        "unit": ["--normalize", "unit"],
        "margin": ["--measurement", "margin"],
        "damped": ["--damping", 0.5],
        "scaled": ["--damping-scale", 10],
        "pulled": ["--alpha", 3],
        "mlp": ["--modules", "mlp"],
    }
    results = {"multi-stage": by_candidate(multi_stage)}
    for name, extra in variants.items():
        assert influence(*flags, *extra, "--output", tmp_path / name) == 0
        assert_sums(shown(tmp_path / name))
        results[name] = by_candidate(tmp_path / name)
    assert results["rank"] == pytest.approx(results["multi-stage"], rel=1e-3, abs=1e-5)
    del results["rank"]
    assert len({tuple(values.values()) for values in results.values()}) == len(results)
    errors = json.loads((tmp_path / "coarse" / "manifest.json").read_text())["rank_errors"]
    assert 0 < max(map(max, errors) if isinstance(errors[0], list) else errors) < 1
    assert not any("attention" in name for name in shown(tmp_path / "mlp")[0]["blocks"])


SGD = {"state": {}, "param_groups": [{"lr": 0.002, "momentum": 0.5, "nesterov": False, "params": []}]}
TAU = 0.002 * 100 / 0.5


def copied(model, folder, training=None):
    """A model's folder, beside it what so many steps of a Trainer leave."""
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).symlink_to(file)
    if training is not None:
        history = [{"step": step, "learning_rate": 0.002} for step in (1, 50, 100)]
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": 100, "log_history": history}))
        torch.save(training, folder / "optimizer.pt")
    return folder


def test_natural_damping_from_what_training_left(world, tmp_path):
    """damping auto is 1/τ: beside trainer_state.json and optimizer.pt, or from --learning-rate-sum."""
    models = {name: copied(world.folder / name, tmp_path / name, SGD) for name in ("base", "tuned")}
    pair = ["--pretrained", models["base"], "--finetuned", models["tuned"], "--corpus", world.folder / "corpus.jsonl"]
    flags = [*pair, *world.factors, *QUERY, *ALL]
    assert influence(*flags, "--damping", "auto", "--output", tmp_path / "auto") == 0
    auto = by_candidate(tmp_path / "auto")
    assert influence(*flags, "--damping", 1 / TAU, "--alpha", 0, "--output", tmp_path / "both") == 0
    assert auto == pytest.approx(by_candidate(tmp_path / "both"), rel=1e-4, abs=1e-7)
    for folder in models.values():
        (folder / "optimizer.pt").unlink()
    rates = ["--learning-rate-sum", TAU, TAU]
    assert influence(*flags, "--damping", "auto", *rates, "--output", tmp_path / "given") == 0
    assert by_candidate(tmp_path / "given") == pytest.approx(auto, rel=1e-4, abs=1e-7)
    assert influence(*flags, "--alpha", "auto", *rates, "--output", tmp_path / "alpha") == 0
    assert influence(*flags, "--alpha", 1 / TAU, "--output", tmp_path / "number") == 0
    assert by_candidate(tmp_path / "alpha") == pytest.approx(by_candidate(tmp_path / "number"), rel=1e-4, abs=1e-7)
    # times 1/τ, of both stages or of each its own
    for given, alpha in ((["--damping", "auto:2"], 2), (["--damping", "auto:2", "--alpha", "auto:10"], 10)):
        output = tmp_path / f"times-{alpha}"
        assert influence(*flags, *given, *rates, "--output", output) == 0
        assert yaml.safe_load((output / "config.yaml").read_text())["alpha"] == f"auto:{alpha}"
        first, last = (stage["scales"] for stage in json.loads((output / "manifest.json").read_text())["stages"])
        assert first["damping"] and set(last["damping"].values()) == {0}
        assert list(first["damping"].values()) == pytest.approx([2 / TAU] * len(first["damping"]))
        assert list(last["alpha"].values()) == pytest.approx([alpha / TAU] * len(last["alpha"]))


def test_natural_damping_under_adam(world, tmp_path):
    model = GPTNeoXForCausalLM.from_pretrained(world.tuned)
    decayed = Trainer.get_decay_parameter_names(None, model)
    named = list(model.named_parameters())
    groups = [[p for n, p in named if (n in decayed) == inside] for inside in (True, False)]
    optimizer = torch.optim.AdamW([{"params": group} for group in groups], lr=1e-3)
    model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    optimizer.step()
    for file in world.tuned.iterdir():
        (tmp_path / file.name).symlink_to(file)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    state = {"global_step": 1, "log_history": [{"step": 1, "learning_rate": 1e-3}]}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    flags = ["--finetuned", tmp_path, "--finetuned-factors", world.tuned_factors, "--method", "single-stage"]
    data = ["--corpus", world.folder / "corpus.jsonl", *QUERY, *ALL]
    assert influence(*flags, *data, "--damping", "auto", "--output", tmp_path / "out") == 0
    assert len(by_candidate(tmp_path / "out")) == len(FACTS)


def alpha_of(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())["alpha"]


def warnings_of_alpha(caplog):
    return [record.message for record in caplog.records if "--alpha" in record.message]


def same_scores(one, other):
    return by_candidate(one) == pytest.approx(by_candidate(other), rel=1e-4, abs=1e-7)


def test_alpha_by_default_where_fine_tuning_is_known(world, tmp_path, multi_stage, caplog):
    tuned = copied(world.tuned, tmp_path / "tuned", SGD)
    flags = [*world.pair, "--finetuned", tuned, *world.factors, *QUERY, *ALL]
    rates = ["--finetuned", world.tuned, "--learning-rate-sum", 1, TAU]
    assert influence(*flags, "--output", tmp_path / "known") == 0
    assert influence(*flags, *rates, "--output", tmp_path / "given") == 0
    assert influence(*flags, "--damping", 0.5, "--output", tmp_path / "damped") == 0
    assert influence(*flags, "--alpha", 1 / TAU, "--output", tmp_path / "number") == 0
    assert influence(*flags, "--damping", 0.5, "--alpha", 1 / TAU, "--output", tmp_path / "damped number") == 0
    assert influence(*flags, "--alpha", 0, "--output", tmp_path / "zero") == 0
    assert influence(*flags, "--method", "gdp", "--output", tmp_path / "gdp") == 0
    assert not warnings_of_alpha(caplog)
    assert [alpha_of(tmp_path / name) for name in ("known", "given", "damped")] == ["auto"] * 3
    assert alpha_of(tmp_path / "zero") == 0 and alpha_of(tmp_path / "gdp") is None
    assert same_scores(tmp_path / "known", tmp_path / "number") and same_scores(tmp_path / "given", tmp_path / "number")
    assert same_scores(tmp_path / "damped", tmp_path / "damped number")
    assert alpha_of(multi_stage) == "evidence"
    assert not same_scores(tmp_path / "known", multi_stage) and not same_scores(tmp_path / "zero", multi_stage)
    # the file repeats it, and asks again for what the same command asks for
    assert influence("--config", tmp_path / "known" / "config.yaml", "--output", tmp_path / "again") == 0
    assert by_candidate(tmp_path / "again") == by_candidate(tmp_path / "known")
    assert influence(*flags, "--output", tmp_path / "known") == 0


def test_alpha_by_default_where_files_do_not_tell_it(world, tmp_path, caplog):
    tuned = copied(world.tuned, tmp_path / "tuned", SGD)
    (tuned / "trainer_state.json").unlink()
    flags = [*world.pair, "--finetuned", tuned, *world.factors, *QUERY, *ALL]
    assert influence(*flags, "--output", tmp_path / "out") == 0
    assert alpha_of(tmp_path / "out") == "evidence"
    # once written down it is what was asked for, also where training has become known
    copied(world.tuned, tmp_path / "known", SGD)
    repeated = ["--config", tmp_path / "out" / "config.yaml", "--finetuned", tmp_path / "known"]
    assert influence(*repeated, "--output", tmp_path / "again") == 0
    assert by_candidate(tmp_path / "again") == by_candidate(tmp_path / "out")
    assert not warnings_of_alpha(caplog)
