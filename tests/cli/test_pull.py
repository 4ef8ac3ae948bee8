"""α of a run that was not given one: whatever lies beside the fine-tuned model, it is no reason to refuse."""

import json
import re

import pytest
import torch
import yaml
from transformers import GPTNeoXForCausalLM
from worlds import ALL, QUERY, by_candidate, influence

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


@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_training_that_tells_nothing_is_no_refusal(world, tuned, run, caplog, capfd, kind):
    """A warning with the reason and the ways out, and α = 0; asked for by name it is an error with all ways out."""
    make, reason = UNUSABLE[kind]
    folder = tuned(**make(world))
    assert run(folder) == 0
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert re.fullmatch(
        rf"--alpha is 0, since .* beside \S+tuned tell .*{reason}.*: give --alpha X .* --learning-rate-sum\.", warning
    )
    capfd.readouterr()
    assert run(folder, None, "--alpha", "auto") == 2
    error = capfd.readouterr().err
    assert re.search(rf"error: .*{reason}.*--alpha \(--alpha 0 does without it\).*\.\n$", error)
    assert run(folder, None, "--alpha", 0) == 0
    assert run(folder, None, "--alpha", 0.3) == 0


def test_the_alpha_that_was_taken_is_written_down(world, tuned, run, tmp_path, multi_stage, caplog):
    folder = tuned(trainer_state(), lion(world))
    assert run(folder, "out") == 0
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["alpha"] == 0.0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["config"]["alpha"] == 0.0
    assert by_candidate(tmp_path / "out") == pytest.approx(by_candidate(multi_stage), rel=1e-5)
    assert run(folder, "out") == 0  # the same command asks for the same again
    assert influence("--config", tmp_path / "out" / "config.yaml", "--output", tmp_path / "again") == 0
    assert by_candidate(tmp_path / "again") == by_candidate(tmp_path / "out")
    # where the training can be used after all, its results are others
    torch.save(sgd(), folder / "optimizer.pt")
    assert run(folder, "out") == 2
    assert run(folder, "known") == 0
    assert yaml.safe_load((tmp_path / "known" / "config.yaml").read_text())["alpha"] == "auto"
    assert by_candidate(tmp_path / "known") != by_candidate(tmp_path / "out")


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


def test_damping_by_name_needs_both_trainings(world, tuned, run, capfd):
    capfd.readouterr()
    assert run(tuned(trainer_state(), lion(world)), None, "--damping", "auto", "--learning-rate-sum", 1, 1) == 2
    assert re.search(r"is Lion.*give numbers for --damping and --alpha", capfd.readouterr().err)
