"""Rankings in the JSON Lines of the TrackStar viewer."""

import json

import pytest
from result_folders import EVIL, large, small, write_truth

from msif.errors import MsifError
from msif.page import main
from msif.reporting.runs import open_run
from msif.reporting.trackstar import NEEDED


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_what_is_written_is_read_again(tmp_path):
    results, truth = large(tmp_path / "out"), write_truth(tmp_path / "truth.jsonl")
    exported = tmp_path / "trackstar.jsonl"
    main([str(results), "--truth", str(truth), "--export", str(exported)])
    rows = lines(exported)
    assert len(rows) == 6 and set(NEEDED) <= set(rows[0])
    first = rows[0]
    assert first["inputs_plaintext"] == "Where is Ada 0?" and first["targets_plaintext"] == " Linz now"
    assert first["proponent_ids"][:2] == ["d0", "Linz-1"] and first["opponent_scores"] == [-5.5]
    assert first["fact_id"] == "f0" and first["relation"] == "lives" and first["groundtruth"] == "Linz"
    assert first["proponent_correct"][:2] == [False, True] and first["c4_frequency"] == 0
    assert "proponent_correct" not in rows[2]  # of which nothing is known

    back, run = open_run(exported), open_run(results)
    assert [row["candidate_id"] for row in back.shown] == [row["candidate_id"] for row in run.shown]
    assert [row["score"] for row in back.shown] == [row["score"] for row in run.shown]
    assert not back.whole and back.told["q0"]["sources"] == ["Linz-1", "Linz-4"]
    again = tmp_path / "again.jsonl"
    main([str(exported), "--export", str(again)])
    changed = {"query_set", "c4_frequency"}
    for one, other in zip(rows, lines(again), strict=True):
        assert {key: one[key] for key in one if key not in changed} == {
            key: other[key] for key in one if key not in changed
        }


def test_a_file_of_others_makes_a_page_beside_a_run(tmp_path):
    results = small(tmp_path / "out")
    row = {"example_id": 7, "query_set": "theirs", "inputs_plaintext": EVIL, "targets_plaintext": "x"}
    row |= {"proponents": [EVIL, "b"], "proponent_ids": [1, 2], "proponent_scores": [2, 1.5]}
    (tmp_path / "their.jsonl").write_text(json.dumps(row) + "\n")
    main([str(tmp_path / "their.jsonl")])
    assert EVIL not in (tmp_path / "their.html").read_text(encoding="utf-8")
    main([str(results), str(tmp_path / "their.jsonl"), "--output", str(tmp_path / "both.html")])
    assert "theirs" in (tmp_path / "both.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"proponent_ids": [1]}, "line 1 has 2 proponents, 1 ids and 2 scores"),
        ({"proponent_scores": [1, "2"]}, "the proponent score '2': write scores as numbers"),
        ({"proponents": None}, "0 proponents, 2 ids"),
        ({"proponent_scores": [1, float("nan")]}, "the proponent score nan: write scores as numbers"),
        ({"proponent_scores": [float("-inf"), 1]}, "the proponent score -inf: write scores as numbers"),
        ({"proponent_ids": None, "proponent_correct": [True]}, "2 proponents, 0 ids"),
        ({"inputs_plaintext": 5}, "line 1 has the inputs_plaintext 5: write it as text"),
        ({"targets_plaintext": ["x"]}, r"the targets_plaintext \['x'\]: write it as text"),
        ({"proponents": "ab"}, "line 1 has 'ab' as proponents: write a list"),
        ({"opponent_ids": 7}, "line 1 has 7 as opponent_ids: write a list"),
        ({"proponent_correct": True}, "line 1 has True as proponent_correct: write a list"),
    ],
)
def test_wrong_files_are_refused_with_a_sentence(tmp_path, change, match):
    row = {"example_id": 7, "inputs_plaintext": "a", "targets_plaintext": "x"}
    row |= {"proponents": ["a", "b"], "proponent_ids": [1, 2], "proponent_scores": [2, 1.5]}
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({**row, **change}) + "\n")
    with pytest.raises(MsifError, match=match):
        open_run(path)


def test_lists_and_texts_that_are_null_are_empty(tmp_path):
    path = tmp_path / "null.jsonl"
    row = {"example_id": 7, "inputs_plaintext": None, "targets_plaintext": None, "proponent_correct": [True]}
    path.write_text(json.dumps({**row, "proponents": None, "proponent_ids": None, "proponent_scores": None}) + "\n")
    run = open_run(path)
    assert not run.shown and run.told["7"]["sources"] == [] and run.told["7"]["prompt"] == ""
    main([str(path)])
    assert (tmp_path / "null.html").is_file()


def test_more_wrong_files(tmp_path):
    path = tmp_path / "bad.jsonl"
    with pytest.raises(MsifError, match="there is no file"):
        open_run(path)
    path.write_text("")
    with pytest.raises(MsifError, match="has no rows"):
        open_run(path)
    path.write_text('{"example_id": 1}\n')
    with pytest.raises(MsifError, match="no 'inputs_plaintext' in line 1"):
        open_run(path)
    with pytest.raises(MsifError, match="writes one run and no page"):
        main([str(path), str(path), "--export", str(tmp_path / "x.jsonl")])
