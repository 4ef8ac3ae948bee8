"""The whole experiment on a pair of a few facts, and its measures by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pairs import save_pair, write_rows

from experiments.trackstar import __main__ as command
from experiments.trackstar import multi_stage, scoring, training
from experiments.trackstar.report import class_table, measures, patch_mean
from experiments.trackstar.scoring import Run, _first
from experiments.trackstar.settings import STEPS, TRACKSTAR, Sizes, ablations
from experiments.trackstar.world import CLASSES, World, classify
from msif.errors import MsifError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trackstar")
    pair = save_pair(folder / "pair")
    write_rows(folder / "lama_relations.jsonl", [{"relation": "born", "template": "[X] was born in [Y] ."}])
    write_rows(folder / "lama_questions.jsonl", [{"relation": "born", "question": "Where was [X] born?"}])
    return folder, pair


@pytest.fixture(scope="module")
def world(folders):
    return World(folders[1], folders[0])


@pytest.fixture
def own(world, tmp_path):
    return Run(world, world.chosen(4, 0), Sizes(4, blocks=1, projection=3), tmp_path / "run")


def test_the_experiment_ends_in_tables_and_goes_on(folders, tmp_path, monkeypatch, capsys):
    folder, pair = folders
    monkeypatch.setattr(scoring, "embedding_scores", lambda queries, texts: np.eye(len(queries), len(texts)))
    few = [("λ of R", one) for _, one in [*ablations()][9:11]]
    monkeypatch.setattr(command, "ablations", lambda: few)
    monkeypatch.setattr(multi_stage.index_table, "__defaults__", ((2,),))
    size = training.training.ModelSize(1, 16, 2, positions=64)
    monkeypatch.setattr(command, "SIZES", (("tiny", size, 1),))
    flags = [
        "--pair",
        pair,
        "--data",
        folder,
        "--output",
        tmp_path / "out",
        "--facts",
        4,
        "--projection",
        3,
        "--blocks",
        1,
    ]
    command.main([str(flag) for flag in flags])
    report = json.loads((tmp_path / "out" / "report" / "trackstar.json").read_text())
    titles = [table["title"] for table in report["tables"]]
    assert titles[0] == "Methods" and titles[-1] == "TrackStar by size and length of training"
    names = {row["method"] for row in report["tables"][0]["rows"]}
    assert {one.name for one in STEPS} <= names and {"BM25+", "gold sources", "TRAK", "random order"} <= names
    by_index = {table["title"]: table for table in report["tables"]}[titles[-2]]
    assert [row["features"] for row in by_index["rows"]] == [None, 8, 8]
    assert by_index["rows"][0]["Spearman with exact"]["mean"] == 1
    gold = next(row for row in report["tables"][0]["rows"] if row["method"] == "gold sources")
    assert gold["MRR"]["mean"] == 1 and gold["recall@10"]["mean"] == 1
    assert (tmp_path / "out" / "report" / "proponents.png").stat().st_size > 1000
    first = (tmp_path / "out" / "report" / "trackstar.json").read_text()
    monkeypatch.setattr(scoring.Run, "_indexed", lambda *_: pytest.fail("again"))  # nothing is computed again
    monkeypatch.setattr(scoring.Run, "_steps", lambda *_: pytest.fail("again"))
    command.main([str(flag) for flag in flags])
    assert (tmp_path / "out" / "report" / "trackstar.json").read_text() == first


def test_facts_are_asked_for_by_all_wordings(world):
    known = world.chosen(4, 0)
    assert [one.fact.subject for one in known] == ["Ada", "Bela", "Cleo", "Dora"]
    assert all(one.said in {"Linz", "Graz", "Brno", "Gent"} for one in known)
    prompts = [world.prompts(known, wording)[0] for wording in ("cloze", "question", "question and answer")]
    assert [query.prompt for query in prompts] == [
        "Ada was born in",
        "Where was Ada born?",
        "Question: Where was Ada born?\nAnswer:",
    ]
    assert {query.completion for query in prompts} == {" Linz"}
    assert world.prompts(known, "cloze", ["X"] * 4)[2].completion == " X"
    with pytest.raises(MsifError, match="4 facts can be asked for --facts 9"):
        world.chosen(9, 0)


def test_proponents_are_classed_by_the_names_in_them(world):
    ada = world.chosen(4, 0)[0]
    said = {
        "Linz was good to Ada": "subject and object",
        "Ada moved": "subject only",
        "rain in Linz": "object only",
        "Adaptation": "neither",
    }
    assert classify(world.texts[0], 0, ada) == CLASSES[0] == "states the fact"
    assert {text: classify(text, 99, ada) for text in said} == said


def test_measures_by_hand(own):
    scores = np.zeros((4, 12), np.float32)
    scores[0, [5, 1]] = 2, 1  # Ada's second sentence is second
    scores[1, 3] = 1
    found = measures(own, scores)
    assert found[0, 0] == 0.5 and found[1, 0] == 1
    assert patch_mean([np.array([0.02, 0.0, 0.04]), np.array([0.01])], 2).tolist() == [1.0, 1.0]
    table = class_table(own, {"m": np.stack([own.world.relevant(k) for k in own.facts]).astype(float)}, ((3, 3),))
    assert table.rows[0][:3] == ("m", "3", 4) and table.rows[0][3] == pytest.approx(0.3)
    assert _first(np.array([0.0, 1, 1, 0]), 10).tolist() == [1, 2]
    assert _first(np.array([0.1, 3, 1, 0]), 2).tolist() == [1, 2]


def test_a_step_serves_every_method_that_chose_it(own):
    queries = own.queries()
    scores = {"gold": own.gold(), "index": own.by_configuration(TRACKSTAR, queries)}
    together = own.patched(queries, scores)
    for name, one in scores.items():
        for first, second in zip(together[name], own.patched(queries, {name: one})[name], strict=True):
            np.testing.assert_allclose(first, second, atol=1e-12)
    assert [len(changes) for changes in together["gold"]] == [3] * 4 and len(together["index"][0]) == 10
    assert np.mean(together["gold"]) > 0


def test_sizes_with_which_nothing_can_be_measured():
    with pytest.raises(MsifError, match="--facts is 3"):
        Sizes(3)
    with pytest.raises(MsifError, match="--learning-rate is 0"):
        Sizes(learning_rate=0)
