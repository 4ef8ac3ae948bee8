"""The demo's world states what it says it states, and its two training stages run and leave what they should."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from transformers.trainer_pt_utils import get_parameter_names

from experiments.common import cache, training
from experiments.demo import train
from experiments.demo.world import World, WorldSize, build_world, mentions, write_world
from msif.errors import MsifError
from msif.json_text import json_lines

SMALL = WorldSize(people=6, towns=4, companies=4, wordings=3, distractors=10)


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(0)


def test_the_same_seed_gives_the_same_world(world: World) -> None:
    assert build_world(0) == world
    assert build_world(1) != world


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_passage_states_its_fact_and_no_other(seed: int) -> None:
    world = build_world(seed)
    assert len({passage.text for passage in world.passages}) == len(world.passages)
    for passage in world.passages:
        assert world.statements(passage.text) == list(passage.facts)


def test_every_fact_has_several_sources_with_its_answer(world: World) -> None:
    for fact in world.facts:
        sources = world.sources(fact.id)
        assert len(sources) == WorldSize().wordings >= 3
        for source in sources:
            assert source.text.index(fact.subject) < source.text.index(fact.answer)


def test_there_are_distractors_about_the_same_names(world: World) -> None:
    distractors = [passage for passage in world.passages if not passage.facts]
    assert len(distractors) == WorldSize().distractors
    subjects = {fact.subject for fact in world.facts}
    assert all(any(mentions(passage.text, subject) for subject in subjects) for passage in distractors)


def test_half_of_each_relation_is_only_asked(world: World) -> None:
    relations = {fact.relation for fact in world.facts}
    assert len(relations) >= 4
    for relation in relations:
        halves = {
            half: {fact.id for fact in world.half(half) if fact.relation == relation} for half in ("finetune", "query")
        }
        assert halves["finetune"].isdisjoint(halves["query"])
        assert abs(len(halves["finetune"]) - len(halves["query"])) <= 1
    assert len(world.half("finetune")) + len(world.half("query")) == len(world.facts)


def test_a_world_too_large_for_its_words_is_refused() -> None:
    with pytest.raises(ValueError, match="smaller world"):
        build_world(0, replace(SMALL, towns=1000))


def test_the_files_hold_the_world(world: World, tmp_path) -> None:
    write_world(world, tmp_path)
    rows = {name: list(json_lines(tmp_path / f"{name}.jsonl")) for name in ("corpus", "finetune", "queries", "facts")}
    assert [row["id"] for row in rows["corpus"]] == [passage.id for passage in world.passages]
    assert {row["fact"] for row in rows["queries"]} == {fact.id for fact in world.half("query")}
    assert {row["fact"] for row in rows["finetune"]} == {fact.id for fact in world.half("finetune")}
    facts = {row["id"]: row for row in rows["facts"]}
    for row in rows["queries"]:
        assert row["completion"] == " " + facts[row["fact"]]["answer"]
        assert facts[row["fact"]]["sources"] == [p["id"] for p in rows["corpus"] if row["fact"] in p["facts"]]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line on a world and a model so small that a run takes a second."""
    monkeypatch.setattr(train, "WorldSize", lambda: SMALL)
    monkeypatch.setattr(train, "MODEL", SIZE)
    monkeypatch.setattr(train, "VOCABULARY", 600)
    monkeypatch.setitem(train.PRETRAINING, "epochs", 2)
    monkeypatch.setitem(train.FINETUNING, "epochs", 2)


SIZE = {"layers": 1, "hidden": 32, "heads": 2}


def _pretrained(world: World) -> tuple[training.Trained, training.PreTrainedTokenizerFast]:
    texts = [passage.text for passage in world.passages]
    tokenizer = training.build_tokenizer(texts, 600)
    schedule = training.Schedule(epochs=3, learning_rate=1e-2, batch_size=16)
    model = training.new_model(tokenizer, training.ModelSize(**SIZE), 0)
    return training.train(model, training.plain_text(tokenizer, texts), schedule, 0, "pre-training"), tokenizer


def test_training_learns_and_the_seed_decides_it() -> None:
    world = build_world(0, SMALL)
    (first, tokenizer), (second, _) = _pretrained(world), _pretrained(world)
    assert first.log == second.log
    assert first.log[-1]["loss"] < first.log[0]["loss"]
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    facts = world.half("finetune")
    schedule = training.Schedule(epochs=100, learning_rate=1e-2, batch_size=16)
    examples = [training.completion(tokenizer, fact.prompt, fact.completion) for fact in facts]
    training.train(first.model, examples, schedule, 0, "fine-tuning")
    assert all(training.exact_matches(first.model, examples))
    assert train.chance(facts) < 1.0


def test_only_the_answer_and_the_end_are_supervised() -> None:
    world = build_world(0, SMALL)
    texts = [passage.text for passage in world.passages]
    tokenizer = training.build_tokenizer(texts, 600)
    facts = world.half("finetune")
    examples = [training.completion(tokenizer, fact.prompt, fact.completion) for fact in facts]
    for chosen, ids, labels in training._batches(examples, 3, None):
        for i, row, label in zip(chosen, ids, labels, strict=True):
            fact = facts[i]
            assert fact.prompt in tokenizer.decode(row)
            kept = label[label != training.IGNORED]
            assert kept[-1] == tokenizer.eos_token_id
            assert tokenizer.decode(kept[:-1]) == fact.completion


def test_the_command_leaves_a_pair_and_keeps_it(quick: None, tmp_path) -> None:
    train.main(["--output", str(tmp_path)])
    assert not list(tmp_path.glob("*.part"))
    for name in ("pretrained", "finetuned"):
        model, _ = training.load(tmp_path / name)
        state = json.loads((tmp_path / name / "trainer_state.json").read_text())
        assert [entry["step"] for entry in state["log_history"]] == list(range(1, state["global_step"] + 1))
        assert state["log_history"][-1]["learning_rate"] > 0
        optimizer = torch.load(tmp_path / name / "optimizer.pt")
        decayed = set(get_parameter_names(model, [torch.nn.LayerNorm], training.NO_DECAY))
        named = dict(model.named_parameters())
        order = [key for key in named if key in decayed] + [key for key in named if key not in decayed]
        assert [len(group["params"]) for group in optimizer["param_groups"]] == [
            len(decayed),
            len(named) - len(decayed),
        ]
        for number, key in enumerate(order):
            assert optimizer["state"][number]["exp_avg_sq"].shape == named[key].shape

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    train.main(["--output", str(tmp_path)])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before

    with pytest.raises(MsifError, match="--overwrite"):
        train.main(["--output", str(tmp_path), "--seed", "1"])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    train.main(["--output", str(tmp_path), "--seed", "1", "--overwrite"])
    assert json.loads((tmp_path / "world" / cache.SETTINGS).read_text())["seed"] == 1


def test_an_unfinished_stage_is_made_again(quick: None, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(train, "_finetune", broken)
        with pytest.raises(RuntimeError):
            train.main(["--output", str(tmp_path)])
    assert (tmp_path / "pretrained").exists() and not (tmp_path / "finetuned").exists()
    train.main(["--output", str(tmp_path)])
    assert (tmp_path / "finetuned").exists() and not list(tmp_path.glob("*.part"))


def test_a_folder_of_somebody_else_is_left_alone(quick: None, tmp_path) -> None:
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "pretrained" / "thesis.txt").write_text("years of work")
    with pytest.raises(MsifError, match="was not made by this program"):
        train.main(["--output", str(tmp_path), "--overwrite"])
    assert (tmp_path / "pretrained" / "thesis.txt").exists()
    assert not (tmp_path / "world").exists()
