"""Both commands on trainings with checkpoints."""

import json

import numpy as np
import pytest
import torch
import yaml
from transformers import GPTNeoXForCausalLM
from worlds import ALL, QUERY, assert_sums, by_candidate, fit_factors, influence, near, scores, shown

import msif

RATE = 0.02


def leave(folder, steps):
    """What a Trainer leaves after so many steps of a training of forty, by Adam."""
    model = GPTNeoXForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    history = [{"step": step, "learning_rate": RATE} for step in range(1, steps + 1)]
    state = {"global_step": steps, "max_steps": 40, "log_history": history}
    (folder / "trainer_state.json").write_text(json.dumps(state))


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    """Both models with files of their training, and a checkpoint of pre-training."""
    root = tmp_path_factory.mktemp("runs")
    for name in ("base", "tuned"):
        model = GPTNeoXForCausalLM.from_pretrained(world.folder / name)
        if name == "base":
            near(model, root / name / "checkpoint-10", seed=5)
            leave(root / name / "checkpoint-10", 10)
            model = GPTNeoXForCausalLM.from_pretrained(world.base)
        near(model, root / name, seed=1)
        leave(root / name, 40)
        data = ["--data", world.folder / ("corpus.jsonl" if name == "base" else "pairs.jsonl")]
        more = ["--checkpoints", root / name] if name == "base" else []
        assert fit_factors("--model", root / name, *data, "--output", root / f"{name}_factors", *more) == 0
    return root


def given(runs, *flags):
    factors = ["--pretrained-factors", runs / "base_factors", "--finetuned-factors", runs / "tuned_factors"]
    models = ["--pretrained", runs / "base", "--finetuned", runs / "tuned", *factors]
    return [*models, *QUERY, *ALL, "--method", "source", *flags]


def test_source_over_checkpoints(world, runs, tmp_path):
    """Equal to the library's, with its own factors; interrupted, shown and repeated as any other run."""
    config = yaml.safe_load((runs / "base_factors" / "checkpoint-10" / "config.yaml").read_text())
    assert config["model"] == str(runs / "base" / "checkpoint-10") and config["checkpoints"] is None
    config = yaml.safe_load((runs / "base_factors" / "config.yaml").read_text())
    assert (config["model"], config["checkpoints"]) == (str(runs / "base"), str(runs / "base"))
    corpus = world.folder / "corpus.jsonl"
    flags = given(runs, "--corpus", corpus, "--checkpoints", runs / "base", runs / "tuned")
    assert influence(*flags, "--output", tmp_path / "out") == 0
    assert_sums(shown(tmp_path / "out"))
    plain = given(runs, "--corpus", corpus, "--output", tmp_path / "plain")
    assert influence(*plain) == 0
    found, whole = (by_candidate(tmp_path / name) for name in ("out", "plain"))
    assert list(found) and found != whole

    pretrained = msif.Stage(runs / "base", corpus, tmp_path / "factors", checkpoints=runs / "base")
    finetuned = msif.Stage(
        runs / "tuned", world.folder / "pairs.jsonl", runs / "tuned_factors", checkpoints=runs / "tuned"
    )
    assert [str(stage.model) for stage in pretrained.segments] == [
        str(runs / "base" / "checkpoint-10"),
        str(runs / "base"),
    ]
    result = msif.attribute([pretrained, finetuned], [("Where was Ada born?", " Linz")], "all", method="source")
    again = {row.candidate_id: row.score for row in result.to_pandas().itertuples()}
    assert set(again) == set(found)
    for id, score in found.items():
        assert again[id] == pytest.approx(score, rel=1e-4, abs=1e-4 * max(map(abs, found.values())))
    assert (tmp_path / "factors" / "checkpoint-10" / "manifest.json").is_file()
    assert len(scores(tmp_path / "out")) == len(found) and np.isfinite(list(found.values())).all()


def test_other_methods_leave_checkpoints_alone(world, runs, monkeypatch):
    monkeypatch.setattr("msif.stage.training_segments", None)
    stage = msif.Stage(runs / "base", None, runs / "base_factors", checkpoints=runs / "base")
    corpus = world.folder / "corpus.jsonl"
    result = msif.attribute(stage, [("Where was Ada born?", " Linz")], "all", corpus=corpus, method="single-stage")
    assert len(result.scores()) == 8


def test_a_checkpoint_that_moved_makes_other_scores(world, runs):
    """Σ η of the segments is that of the training."""
    stage = msif.Stage(runs / "base", None, runs / "base_factors", checkpoints=runs / "base")
    (early, late), whole = (part.tau for part in stage.segments), stage.tau
    for name in whole:
        torch.testing.assert_close(late[name], whole[name] * 30 / 40)
        assert (early[name] > 0).all()


def test_what_does_not_go_with_checkpoints_is_said(refused, runs, world):
    """Before any model is loaded, where the flags tell."""
    corpus = ["--corpus", world.folder / "corpus.jsonl"]
    refused(influence, "one folder for each model", *given(runs, *corpus, "--checkpoints", runs / "base"))
    rates = ["--learning-rate-sum", 1, 1, "--checkpoints", runs / "base", runs / "tuned"]
    refused(influence, "leave --learning-rate-sum out", *given(runs, *corpus, *rates))
    wrong = given(runs, *corpus, "--checkpoints", world.folder, runs / "tuned")
    refused(influence, "holds no checkpoint-N", *wrong)
    multi = [flag if flag != "source" else "multi-stage" for flag in given(runs, *corpus)]
    refused(influence, "does not read --checkpoints", *multi, "--checkpoints", runs / "base", runs / "tuned")
    with pytest.raises(msif.MsifError, match="folder"):
        msif.Stage(GPTNeoXForCausalLM.from_pretrained(world.base), tokenizer=object(), checkpoints=runs / "base")
