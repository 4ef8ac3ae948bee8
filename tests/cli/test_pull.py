"""1/τ of a run that was not told it: whatever lies beside the models, it is no reason to refuse."""

import json
import re

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, GPTNeoXForCausalLM
from worlds import ALL, QUERY, by_candidate, call, fit_factors, influence

from msif import Stage, attribute, evidence_tau
from msif.influence import main

RATE = 0.002


def sgd(**more):
    return {"state": {}, "param_groups": [{"lr": RATE, "momentum": 0.5, "nesterov": False, "params": [], **more}]}


def trainer_state(steps=100, logged=(1, 50, 100), **more):
    history = [{"step": step, "learning_rate": RATE} for step in logged]
    return {"global_step": steps, "max_steps": steps, "log_history": history} | more


@pytest.fixture
def tuned(world, tmp_path):
    """A copy of the fine-tuned model, with what a training left beside it."""

    def make(state=None, optimizer=None, **files):
        folder = tmp_path / "tuned"
        folder.mkdir()
        for file in world.tuned.iterdir():
            (folder / file.name).symlink_to(file)
        if state is not None:
            (folder / "trainer_state.json").write_text(state if isinstance(state, str) else json.dumps(state))
        if optimizer is not None:
            torch.save(optimizer, folder / "optimizer.pt")
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_bytes(content)
        return folder

    return make


@pytest.fixture
def run(world, tmp_path):
    """The default run, by a fine-tuned model; flags more."""

    def call(folder, output=None, *flags):
        pair = ["--pretrained", world.base, "--finetuned", folder, "--corpus", world.folder / "corpus.jsonl"]
        out = ["--output", tmp_path / output] if output else ["--dry-run"]
        return influence(*pair, *world.factors, *QUERY, *ALL, *out, *flags)

    return call


def adam(world, frozen=(), steps=2, **options):
    """The state of two groups, as the Trainer makes them, of the parameters that were trained."""
    model = GPTNeoXForCausalLM.from_pretrained(world.tuned)
    named = [(name, p) for name, p in model.named_parameters() if not any(part in name for part in frozen)]
    groups = [{"params": [p for _, p in named if (p.dim() > 1) == inside]} for inside in (True, False)]
    optimizer = torch.optim.AdamW(groups, lr=RATE, **options)
    for _ in range(steps):
        model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
        optimizer.step()
    return optimizer.state_dict()


def lion(world):
    state = adam(world)
    for entry in state["state"].values():
        del entry["exp_avg_sq"], entry["step"]
    return state


def nan(world):
    state = adam(world)
    for entry in state["state"].values():
        entry["exp_avg_sq"].fill_(float("nan"))
    return state


UNUSABLE = {
    "neither file": (lambda w: {}, "no trainer_state"),
    "no optimizer.pt": (lambda w: {"state": trainer_state()}, r"no optimizer\.pt"),
    "no trainer_state.json": (lambda w: {"optimizer": sgd()}, r"no trainer_state\.json"),
    "damaged state": (lambda w: {"state": "{", "optimizer": sgd()}, "cannot be read"),
    "damaged optimizer": (lambda w: {"state": trainer_state(), "optimizer__pt": b"no"}, "cannot be read"),
    "one rate of many": (
        lambda w: {"state": trainer_state(1000, [3]), "optimizer": sgd(lr=0.5)},
        "logs 1 learning rates in 1000 steps",
    ),
    "no rates, unknown schedule": (
        lambda w: {"state": trainer_state(logged=[]), "optimizer": sgd(initial_lr=1.0), "scheduler__pt": b"no"},
        "logs no learning_rate",
    ),
    "Lion": (lambda w: {"state": trainer_state(), "optimizer": lion(w)}, "is Lion"),
    "unknown optimizer": (
        lambda w: {"state": trainer_state(), "optimizer": {"state": {}, "param_groups": [{"lr": 1.0, "params": []}]}},
        "neither SGD nor Adam",
    ),
    "frozen maps": (lambda w: {"state": trainer_state(), "optimizer": adam(w, ["mlp"])}, "was frozen"),
    "frozen layer": (lambda w: {"state": trainer_state(), "optimizer": adam(w, ["layers.0."])}, "which they are"),
    "NaN moments": (lambda w: {"state": trainer_state(), "optimizer": nan(w)}, "give no scale"),
    "no step": (lambda w: {"state": trainer_state(), "optimizer": adam(w, steps=0)}, "no second moment"),
}


def warnings_of(caplog):
    return [record.message for record in caplog.records if record.levelname == "WARNING"]


def scales_of(folder):
    """Those of each stage, sorted and without repetition."""
    stages = json.loads((folder / "manifest.json").read_text())["stages"]
    return [{kind: sorted(set(own.values())) for kind, own in stage["scales"].items()} for stage in stages]


@pytest.fixture(scope="module")
def evident(world):
    """1/τ of both stages as the evidence has it."""
    stages = [Stage(model, factors=own) for model, own in zip(world.pair[1:4:2], world.factors[1::2], strict=True)]
    tokens = [stage.store.manifest["counts"]["supervised"] for stage in stages]
    sides = [stage.side for stage in stages]
    first = evidence_tau(sides[0], stages[0].store, tokens[0])
    last = evidence_tau(sides[1], stages[1].store, tokens[1], sides[0])
    return [sorted({float(1 / value) for own in tau.values() for value in own}) for tau in (first, last)]


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_training_that_files_do_not_tell_is_told_by_the_evidence(world, tuned, run, evident, tmp_path, caplog, kind):
    """With the reason, unasked and by the name of auto alike; no file has a say by its own name."""
    make, reason = UNUSABLE[kind]
    folder = tuned(**make(world))
    pair = ["--pretrained", world.base, "--finetuned", folder, "--corpus", world.folder / "corpus.jsonl"]
    told = [*pair, *world.factors, *QUERY, *ALL]
    assert call(main, *told, "--dry-run") == 0
    assert "the evidence" not in caplog.text  # an estimate does not take it
    assert call(main, *told, "--output", tmp_path / "out") == 0
    assert re.search(rf"the evidence has 1/τ of \S+tuned from \S+ to \S+, for .*{reason}", caplog.text)
    assert not warnings_of(caplog)
    _, last = scales_of(tmp_path / "out")
    assert last["alpha"] == pytest.approx(evident[1], rel=1e-4) and len(evident[1]) > 3
    for name in ("auto", "evidence"):
        assert run(folder, name, "--alpha", name) == 0
        assert by_candidate(tmp_path / name) == by_candidate(tmp_path / "out")
    assert run(folder, None, "--alpha", 0) == run(folder, None, "--alpha", 0.3) == 0


def test_the_alpha_that_was_taken_is_written_down(world, tuned, run, tmp_path, multi_stage, caplog):
    folder = tuned(trainer_state(), lion(world))
    assert run(folder, "out") == 0
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["alpha"] == "evidence"
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["config"]["alpha"] == "evidence"
    assert by_candidate(tmp_path / "out") == pytest.approx(by_candidate(multi_stage), rel=1e-5)
    assert run(folder, "out") == 0  # the same command asks for the same again
    assert influence("--config", tmp_path / "out" / "config.yaml", "--output", tmp_path / "again") == 0
    assert by_candidate(tmp_path / "again") == by_candidate(tmp_path / "out")
    assert run(folder, "named", "--alpha", "auto") == 0
    # where the training can be used after all, its results are others
    torch.save(sgd(), folder / "optimizer.pt")
    assert run(folder, "out") == 2
    assert run(folder, "known") == 0
    assert yaml.safe_load((tmp_path / "known" / "config.yaml").read_text())["alpha"] == "auto"
    assert by_candidate(tmp_path / "known") != by_candidate(tmp_path / "out")
    assert run(folder, "evidence", "--alpha", "evidence") == 0
    assert by_candidate(tmp_path / "evidence") == by_candidate(tmp_path / "out")


def test_scores_of_another_tau_are_not_gone_on_with(world, tuned, run, tmp_path, monkeypatch):
    """auto by name is the same setting, whatever tells it."""
    folder = tuned(trainer_state(), lion(world))
    monkeypatch.setattr("msif.cli.output.explained", lambda *_: 1 / 0)
    assert run(folder, "out", "--alpha", "auto") != 0
    monkeypatch.undo()
    shown = by_candidate(tmp_path / "out")
    torch.save(sgd(), folder / "optimizer.pt")
    assert run(folder, "out", "--alpha", "auto") == 0
    assert by_candidate(tmp_path / "out") != shown


@pytest.mark.parametrize("method", ["multi-stage", "source"])
def test_both_trainings_are_told_by_the_evidence(world, tuned, run, evident, tmp_path, method):
    """λ by the way of the first stage's weights from zero, α by that of the second's from the first's."""
    flags = ["--damping", "auto:3"] if method == "multi-stage" else ["--method", "source"]
    assert run(tuned(), "out", *flags) == 0
    first, last = scales_of(tmp_path / "out")
    if method == "source":
        assert [1 / tau for tau in reversed(first["tau"])] == pytest.approx(evident[0], rel=1e-4)
        assert [1 / tau for tau in reversed(last["tau"])] == pytest.approx(evident[1], rel=1e-4)
    else:
        assert first["damping"] == pytest.approx([3 * value for value in evident[0]], rel=1e-4)
        assert last["alpha"] == pytest.approx([3 * value for value in evident[1]], rel=1e-4)
        assert set(last["damping"]) == {0.0}


def test_the_evidence_of_one_stage_and_where_files_tell_the_other(world, tuned, run, evident, tmp_path):
    folder = tuned(trainer_state(), sgd())
    assert run(folder, "both", "--damping", "auto") == 0
    first, last = scales_of(tmp_path / "both")
    assert first["damping"] == pytest.approx(evident[0], rel=1e-4)
    assert last["alpha"] == [pytest.approx(0.5 / (100 * RATE), rel=1e-3)]
    one = ["--method", "single-stage", "--pretrained", world.base, "--pretrained-factors", world.base_factors]
    out = ["--corpus", world.folder / "corpus.jsonl", *QUERY, *ALL, "--output", tmp_path / "one"]
    assert influence(*one, "--damping", "evidence", *out) == 0
    (only,) = scales_of(tmp_path / "one")
    assert only["damping"] == pytest.approx(evident[0], rel=1e-4)


def test_library_calls_take_it_too(world, tuned, run, tmp_path):
    assert run(tuned(), "out") == 0
    stages = [Stage(world.base, factors=world.base_factors), Stage(world.tuned, factors=world.tuned_factors)]
    result = attribute(stages, [(QUERY[1], QUERY[3])], "all", corpus=world.folder / "corpus.jsonl")
    own = {f"doc-{row}": score for row, score in result.scores().items()}
    assert own == pytest.approx(by_candidate(tmp_path / "out"), rel=1e-5)


def test_what_has_not_moved_tells_nothing(world, tuned, run, tmp_path, caplog, capfd):
    """Unasked α is 0, with a warning; asked for by name it is an error with all ways out."""
    model = AutoModelForCausalLM.from_pretrained(world.tuned)
    base = AutoModelForCausalLM.from_pretrained(world.base)
    still = "gpt_neox.layers.0.mlp.dense_4h_to_h"
    model.get_submodule(still).load_state_dict(base.get_submodule(still).state_dict())
    folder = tuned()
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder)
    factors = ["--finetuned-factors", tmp_path / "factors"]
    flags = ["--model", folder, "--data", world.folder / "pairs.jsonl", "--output", factors[1]]
    assert fit_factors(*flags) == 0
    caplog.clear()
    assert run(folder, "out", *factors) == 0
    (warning,) = warnings_of(caplog)
    nothing = "no trainer_state.*, and 'layers.0.mlp.dense_4h_to_h' has not moved"
    assert re.fullmatch(rf"--alpha is 0, since .* of \S+tuned \(.*{nothing}\): give --alpha X .*-rate-sum\.", warning)
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["alpha"] == 0.0
    capfd.readouterr()
    assert run(folder, "named", *factors, "--alpha", "auto") == 2
    error = capfd.readouterr().err
    ways = "give --learning-rate-sum, leave out with --modules .*, or give numbers .*--alpha 0 does without it"
    assert re.search(rf"error: .*{nothing}: {ways}", error)
    assert run(folder, "few", *factors, "--modules", "query_key_value") == 0


def test_forty_steps_without_a_logged_rate(world, tuned, run, tmp_path, caplog):
    """What a Trainer leaves that logs every 500 steps: Σ η = 20.5 η of a linear decay, said with a warning."""
    folder = tuned(trainer_state(40, []), sgd(initial_lr=RATE, lr=0.0))
    assert run(folder, "out") == 0
    assert "no logged rates in 40 steps, schedule: linear or cosine" in caplog.text
    assert "--alpha is 0" not in caplog.text
    assert run(folder, "number", "--alpha", 0.5 / (20.5 * RATE)) == 0
    assert by_candidate(tmp_path / "out") == pytest.approx(by_candidate(tmp_path / "number"), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("rates", [(1, 0), (1, 3)])
def test_a_given_sum_of_rates(world, tuned, run, caplog, rates):
    """Without an optimizer's state it is SGD's; a sum of nothing is no scale, and not asked for by name no error."""
    assert run(tuned(), None, "--learning-rate-sum", *rates) == 0
    assert ("--alpha is 0" in caplog.text) == (rates[1] == 0) and ("sum to 0" in caplog.text) == (rates[1] == 0)


def test_a_sum_that_was_given_is_not_passed_over(world, tuned, run, capfd):
    capfd.readouterr()
    assert run(tuned(trainer_state(), lion(world)), None, "--damping", "auto", "--learning-rate-sum", 1, 1) == 2
    assert re.search(r"is Lion.*give numbers for --damping and --alpha", capfd.readouterr().err)
