"""Other toolkits get the same tokens and supervision, run in their own environments, and what fails is told."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.common.judging import Judge, random_halves
from experiments.peers import __main__ as command
from experiments.peers import environments, exchange
from experiments.peers import rows as peers_rows
from experiments.peers.environments import Environment
from experiments.peers.methods import METHODS, NEARBY
from experiments.peers.report import absent_toolkits, ceiling_table, score_table
from experiments.peers.rows import Row, bagged_rows, exchanged, peer_rows
from experiments.peers.toolkits import TOOLKITS, Setting, Toolkit
from experiments.retraining import bags as retraining_bags
from experiments.retraining.additive import taught_additive
from experiments.retraining.bags import bags_of
from experiments.retraining.settings import Sizes
from msif.errors import MsifError

TOY = Toolkit("Toy", "toy", "toy", "1.0", (Setting("A", "x", {"sign": 1}), Setting("B", "y", {"sign": -1})))
ROWS = [exchange.Row.supervised_from([5, 6, 7], 1, "a b c"), exchange.Row.supervised_from([8, 9], 1)]
QUERIES = [exchange.Row.supervised_from([5, 6, 9], 2)]


class Answers:
    """In place of ``subprocess.run``: an adapter that scores ±1, fails at some settings, and dies at others."""

    def __init__(self, version: str = "1.0", failing: str = "", deadly: str = "") -> None:
        self.version, self.failing, self.deadly = version, failing, deadly
        self.asked: list[str] = []

    def __call__(self, called: list[str], **_) -> subprocess.CompletedProcess:
        folder = Path(called[-1])
        request = exchange.read_request(folder)
        documents, queries = (exchange.read_rows(folder, name) for name in ("documents", "queries"))
        exchange.write_versions(folder, {"toy": self.version})
        for key, options in request.settings.items():
            self.asked.append(key)
            if self.deadly and key.startswith(self.deadly):
                return subprocess.CompletedProcess(called, -11)
            result = exchange.Result(np.full((len(queries), len(documents)), options["sign"]), 2.0)
            if self.failing and key.startswith(self.failing):
                result = exchange.Result(error="ValueError: no")
            exchange.write_result(folder, key, result)
        return subprocess.CompletedProcess(called, 0)


def test_what_reads_texts_alone_scores_all_documents() -> None:
    (own,) = [own.method for own in METHODS if own.method.search is not None]
    scores = own.search(["red house", "dog"], ["a red house", "a dog", "a cat"])
    assert np.asarray(scores).shape == (2, 3) and scores[0].argmax() == 0 and scores[1].argmax() == 1


def test_trainings_on_halves_are_averaged_by_model(monkeypatch) -> None:
    fake = lambda world, score, cache, name, bag: {"scores": np.full((1, 2), 10.0 * bag.pair + bag.number)}  # noqa: E731
    monkeypatch.setattr(retraining_bags, "bagged_scores", fake)
    bags = bags_of(Sizes(seeds=2, bags=4), 2)
    world, asked = SimpleNamespace(texts=["a", "b"]), [None]
    [row] = bagged_rows(world, bags, asked, None, 1)
    assert row.scores.tolist() == [[[1.5, 1.5]], [[11.5, 11.5]]] and row.seconds is None
    assert row.method.endswith("mean of 4 trained on halves") and row.setting == METHODS[0].method.damping
    pickle.dumps(partial(peers_rows._by_defaults, None, asked))  # as it goes to other processes
    assert bagged_rows(world, [], asked, None, 1) == []


def results(tmp_path: Path, monkeypatch, answers: Answers) -> dict[str, exchange.Result]:
    monkeypatch.setattr(environments.subprocess, "run", answers)
    found = Environment(TOY, "python").results(tmp_path, Path("model"), ROWS, QUERIES, TOY.settings)
    return {setting.method: found[setting.key] for setting in TOY.settings}


def test_rows_go_there_and_back(tmp_path) -> None:
    request = exchange.Request("model", {"a": {"damping": None}}, {"toy": "1.0"})
    exchange.write(tmp_path, request, ROWS, QUERIES)
    assert exchange.read_request(tmp_path) == request
    assert exchange.read_rows(tmp_path, "documents") == ROWS and exchange.read_rows(tmp_path, "queries") == QUERIES
    first = json.loads((tmp_path / "documents.jsonl").read_text().splitlines()[0])
    assert first == {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "text": "a b c"}
    assert QUERIES[0].labels == [-100, -100, 9]


def test_supervision_is_that_of_the_world() -> None:
    """Documents are predicted from their second token on, queries at their completion; no token is added."""

    class World:
        pretraining, texts = [([3, 4, 5], 1), ([6, 7], 1)], ["a", "b"]

    class Asked:
        examples, texts = [([3, 4, 9, 9], 2)], ["q"]

    documents, queries = exchanged(World(), Asked())
    assert [row.input_ids for row in documents] == [[3, 4, 5], [6, 7]]
    assert [row.labels for row in documents] == [[-100, 4, 5], [-100, 7]]
    assert queries == [exchange.Row([3, 4, 9, 9], [-100, -100, 9, 9], "q")]


def test_an_adapter_is_run_once_and_its_scores_are_kept(tmp_path, monkeypatch) -> None:
    answers = Answers()
    found = results(tmp_path, monkeypatch, answers)
    assert found["A"].scores.tolist() == [[1.0, 1.0]] and found["B"].scores.tolist() == [[-1.0, -1.0]]
    assert found["A"].seconds == 2.0 and len(answers.asked) == 2
    results(tmp_path, monkeypatch, answers)
    assert len(answers.asked) == 2


def test_another_version_is_an_error_that_names_the_right_one(tmp_path, monkeypatch) -> None:
    with pytest.raises(MsifError, match=r"has toy 0\.9: install 1\.0"):
        results(tmp_path, monkeypatch, Answers("0.9"))


def test_an_interpreter_that_cannot_run(tmp_path) -> None:
    with pytest.raises(MsifError, match="--toy-python"):
        Environment(TOY, str(tmp_path / "no-python")).results(
            tmp_path / "f", Path("model"), ROWS, QUERIES, TOY.settings
        )


def test_an_adapter_that_does_not_start(tmp_path) -> None:
    """It has no such module."""
    with pytest.raises(MsifError, match="did not start"):
        Environment(TOY, sys.executable).results(tmp_path / "f", Path("model"), ROWS, QUERIES, TOY.settings)


def test_failures_are_of_their_setting_alone_and_tried_again(tmp_path, monkeypatch) -> None:
    found = results(tmp_path, monkeypatch, Answers(failing="A"))
    assert found["A"].error == "ValueError: no" and found["B"].error is None
    found = results(tmp_path, monkeypatch, Answers(deadly="A"))
    assert found["A"].error == "the process was killed by SIGSEGV" and found["B"].scores is not None
    assert results(tmp_path, monkeypatch, Answers())["A"].error is None


def test_a_failed_setting_is_a_row_with_its_error(tmp_path, monkeypatch) -> None:
    answers = Answers(deadly="B")
    monkeypatch.setattr(environments.subprocess, "run", answers)
    monkeypatch.setattr("experiments.peers.rows.exchanged", lambda *_: (ROWS, QUERIES))
    rows = peer_rows(Environment(TOY, "python"), None, [Path("m0"), Path("m1")], None, tmp_path)
    assert rows[0].scores.shape == (2, 1, 2) and rows[0].seconds == 2.0
    assert rows[1] == Row("Toy", "B", "y", error="the process was killed by SIGSEGV")
    assert [key[0] for key in answers.asked] == ["A", "B", "A"]  # what died on one model is not tried on another


def test_the_table(monkeypatch) -> None:
    draw = np.random.default_rng(0)
    masks, true = random_halves(draw, 40, 12), draw.normal(size=(2, 3, 12))
    losses = -np.einsum("mn,sqn->msq", masks, true)
    judge = Judge(masks, losses)
    rows = [
        Row("msif", "EK-FAC", "defaults", true + draw.normal(size=true.shape), 1.0),
        Row("Toy", "A", "x", true, 3.0),
        Row("Toy", "B", "y", error="ValueError: no"),
    ]
    table = score_table(judge, rows, TOOLKITS[:1]).records()
    best, ours, failed, absent = table
    assert best["toolkit"] == "Toy" and best["each model by its own"].startswith("1.000")
    assert best["seconds a model"] == 3.0 and best["msif at defaults, less this"].startswith("-0.")
    assert ours["msif at defaults, less this"] is None
    assert ours["mean scores, mean losses"] == judge.score(rows[0].scores.mean(0))
    assert ours["proponents alone"] == judge.own(np.maximum(rows[0].scores, 0)).mean
    assert failed["each model by its own"] == "failed: ValueError: no" and failed["seconds a model"] is None
    assert absent["each model by its own"] == "not run: --kronfluence-python was not given"
    near = "msif with `--halves 4`, less this"
    assert best[near] is None and NEARBY in [own.method.damping for own in METHODS]
    rows.append(Row("msif", "EK-FAC", NEARBY, true, 2.0))
    with_halves = {row["setting"]: row for row in score_table(judge, rows, []).records()}
    assert with_halves["x"][near].startswith("+0.000") and with_halves[NEARBY][near] is None
    assert with_halves["defaults"][near].startswith("+0.")
    assert with_halves["x"]["msif at defaults, less this"] == best["msif at defaults, less this"]


def test_what_can_be_reached_is_of_the_library_and_its_usual_curvature() -> None:
    draw = np.random.default_rng(1)
    masks, true = random_halves(draw, 40, 12), draw.normal(size=(2, 3, 12))
    judge = Judge(masks, -np.einsum("mn,sqn->msq", masks, true))
    scores = true + draw.normal(size=true.shape)
    rows = [
        *(Row("msif", "EK-FAC", setting, own) for setting, own in (("maps", scores), ("maps, halves", true))),
        *(Row("msif", "BM25+", "", true), Row("Toy", "A", "maps", true), Row("msif", "EK-FAC", "maps, none")),
    ]
    first, taught, halves, _, ceiling = ceiling_table(judge, rows).rows
    assert (first[0], halves[0]) == ("EK-FAC, maps", "EK-FAC, maps, halves")
    assert first[1:] == [judge.own(scores).mean, judge.score(scores.mean(0))]
    by_model = [taught_additive(masks, judge.losses[:, seed], own) for seed, own in enumerate(scores)]
    assert taught[1:] == [np.mean(by_model), taught_additive(masks, judge.measured, scores.mean(0))]
    assert taught[1] > first[1] and ceiling[1:] == [None, judge.ceiling]


def test_toolkits_without_a_row_are_absent() -> None:
    rows = [Row("msif", "a", "b"), *(Row(one.name, "a", "b") for one in TOOLKITS[1:])]
    assert absent_toolkits(rows) == [TOOLKITS[0]]


def test_settings_have_files_of_their_own() -> None:
    for toolkit in TOOLKITS:
        assert len({setting.key for setting in toolkit.settings}) == len(toolkit.settings)
    one = TOY.settings[0]
    assert one.key != replace(one, options={"sign": 2}).key


def test_the_adapters_are_there_and_need_nothing_of_this_project_but_the_exchange() -> None:
    folder = Path(environments.ROOT) / "experiments" / "peers" / "adapters"
    for toolkit in TOOLKITS:
        text = (folder / f"{toolkit.adapter}.py").read_text(encoding="utf-8")
        assert "serve(prepare)" in text and "msif" not in text
    assert "msif" not in (folder.parent / "exchange.py").read_text(encoding="utf-8")


def test_the_command_line_names_what_is_wrong(tmp_path) -> None:
    for flags, named in ((["--data", str(tmp_path)], "--data"), (["--halves", "1"], "--halves")):
        with pytest.raises(MsifError, match=named):
            command.main(["--output", str(tmp_path / "out"), *flags])
