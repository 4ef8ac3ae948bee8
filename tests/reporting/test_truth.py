"""What is given as true of queries, however it is written."""

import json

import pytest
from result_folders import large

from msif.errors import MsifError
from msif.reporting.page import write_page
from msif.reporting.payload import payload
from msif.reporting.runs import read_run
from msif.reporting.truth import Truth, read_truth


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def known(tmp_path, *rows):
    return read_truth(written(tmp_path / "truth.jsonl", *rows)).of("q", {})


@pytest.mark.parametrize(
    ("value", "right"),
    [(1815, ["1815"]), (0, ["0"]), (1.5, ["1.5"]), (True, ["True"]), ([1815, " a"], ["1815", " a"])],
)
def test_answers_that_are_no_text_are_taken_as_text(tmp_path, value, right):
    for key in ("answers", "answer", "completion"):
        found = known(tmp_path, {"id": "q", key: value})
        assert found.answers == right
        assert found.says(f" {right[0].lower()}.") is True and found.says("Linz") is False
    found = Truth().of("q", {"answer": value})
    assert found.answers == right
    assert json.loads(json.dumps(found.answers)) == right


@pytest.mark.parametrize("value", ["", " ", [""], [" ", None], [], "\u200b", None])
def test_an_empty_answer_makes_none_right(tmp_path, value):
    assert known(tmp_path, {"id": "q", "answers": value, "answer": "Linz"}).answers == ["Linz"]
    found = known(tmp_path, {"id": "q", "answers": value, "sources": ["a"]})
    assert found.says("Rom") is None and found.answers == []
    assert Truth().of("q", {}, {"answers": value}).says("Rom") is None


def test_one_source_may_be_a_number(tmp_path):
    assert known(tmp_path, {"id": "q", "sources": 12}).sources == {"12"}
    assert known(tmp_path, {"id": "q", "sources": [12, "a"]}).sources == {"12", "a"}
    assert Truth().of("q", {"sources": 12}).sources == {"12"}
    assert known(tmp_path, {"id": "q", "sources": None, "answer": "a"}).sources is None


def test_a_page_of_queries_whose_data_say_numbers(tmp_path):
    folder = large(tmp_path / "out", queries=2)
    rows = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    rows[0] |= {"completion": " 1815", "fields": {"answer": 1815}}
    written(folder / "queries.jsonl", *rows)
    write_page(folder)
    found = payload([read_run(folder)], Truth())
    assert found.index["queries"][0]["correct"] is True and found.queries[0]["answers"] == ["1815"]


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"sources": True}, "'sources' in line 2 of .* is True: give a list"),
        ({"sources": {"a": 1}}, "'sources' in line 2 of .* is {'a': 1}: give a list"),
        ({"correct": 1}, "'correct' in line 2 of .* is 1: write true or false"),
        ({"answer": {"a": 1}}, "'answer' in line 2 of .* is a mapping: give the right answer"),
    ],
)
def test_what_cannot_be_true_is_refused(tmp_path, row, match):
    with pytest.raises(MsifError, match=match):
        known(tmp_path, {"id": "p", "answer": "a"}, {"id": "q", **row})


def test_rows_of_one_id_are_put_together(tmp_path):
    one = written(tmp_path / "one.jsonl", {"id": "q", "answer": "Linz", "fact": "f"}, {"id": 7, "sources": ["a"]})
    other = written(tmp_path / "other.jsonl", {"id": "q", "sources": ["b"], "answer": None}, {"id": "7", "answer": 3})
    for paths in ((one, other), (other, one)):
        truth = read_truth(*paths)
        assert truth.of("q", {}) == truth.of("x", {"fact": "q"})
        assert (truth.of("q", {}).answers, truth.of("q", {}).sources) == (["Linz"], {"b"})
        assert (truth.of("7", {}).answers, truth.of("7", {}).sources) == (["3"], {"a"})
    for change in ({"answer": "Rom"}, {"sources": ["c"]}, {"correct": False}):
        written(other, {"id": "q", "correct": True, "sources": ["b"]}, {"id": "q", "answer": "Linz", **change})
        with pytest.raises(MsifError, match=f"'{next(iter(change))}' of 'q' in line 2 of .*other.jsonl is not what an"):
            read_truth(one, other)
