"""Rows that are in memory: of values of any type, as a file holds them."""

import json
from datetime import date

import numpy as np
import pandas
import pytest
import torch

from msif.data.corpus import as_corpus, corpus_from_rows, load_corpus
from msif.data.format import choose_format
from msif.data.ids import check_ids, written_ids
from msif.errors import MsifError


@pytest.mark.parametrize(
    ("ids", "written"),
    [
        ([2**63, 2**63 + 1], [2**63, 2**63 + 1]),
        ([-(2**70), 5], [str(-(2**70)), "5"]),
        ([1, "x"], ["1", "x"]),
        ([0.5, 1], ["0.5", "1"]),
        ([True, "a"], ["True", "a"]),
        ([date(2026, 1, 2), b"\xff"], ["2026-01-02", "\\xff"]),
        ([["a"], {"b": 1}], ['["a"]', '{"b": 1}']),
        (["\ud800", "a"], ["\\ud800", "a"]),
        (list(np.arange(2)), [0, 1]),
        (list(torch.arange(2)), [0, 1]),
    ],
    ids=str,
)
def test_ids_of_any_type_are_taken(ids, written):
    corpus = as_corpus([{"id": id, "text": "a"} for id in ids])
    check_ids(corpus)
    assert list(written_ids(corpus.ids())) == written
    assert list(written_ids(corpus.ids([1]))) == list(written_ids([corpus.ids()[1]]))


@pytest.mark.parametrize("gap", [None, float("nan"), pandas.NA, pandas.NaT, ""])
def test_an_id_that_is_a_gap_is_named(gap):
    with pytest.raises(MsifError, match="In row 1 of 'rows' the field 'id' is empty"):
        check_ids(as_corpus([{"id": 1, "text": "a"}, {"id": gap, "text": "b"}]))


@pytest.mark.parametrize(
    "values", [[1, "x"], [[1], {"a": 2}], [2**64, 0.5], [None, ["a", 1]], [{"a": 1}, {"a": "b"}]], ids=str
)
def test_fields_hold_what_they_hold_in_a_file(tmp_path, values):
    rows = [{"text": f"text {number}", "kept": value} for number, value in enumerate(values)]
    rows.append({"text": "without"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    memory, file = as_corpus(rows), load_corpus(str(tmp_path / "rows.jsonl"))
    assert list(memory.rows()) == list(file.rows())
    assert list(memory.rows([2, 0], columns=["kept"])) == list(file.rows([2, 0], columns=["kept"]))
    assert memory.fingerprint() == file.fingerprint() and memory.columns == file.columns and len(memory) == 3
    assert memory.texts("text") == file.texts("text") and memory.has("kept") and not memory.has("id")


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("text", ["a", "b\ud800"]),
        ("completion", ["a", "\udfff"]),
        ("messages", [[], [{"role": "assistant", "content": "\ud83d!"}]]),
    ],
)
def test_half_a_character_is_refused_where_it_is_read(field, values):
    rows = [{"prompt": "p", "when": date(2026, 1, 2), "unused": "\ud800", field: value} for value in values]
    with pytest.raises(MsifError, match=rf"Field '{field}' of row 1 of 'rows' holds \\ud.*; mend it or leave the row"):
        choose_format(as_corpus(rows))
    choose_format(as_corpus(rows[:1] * 2))


def test_a_pair_of_halves_is_a_character():
    (half,) = corpus_from_rows([{"text": "\U0001f600"}]).texts("text")
    choose_format(as_corpus([half]))
    with pytest.raises(MsifError, match="of row 0 of 'texts'"):
        choose_format(as_corpus([half.encode("utf-16", "surrogatepass")[2:4].decode("utf-16-le", "surrogatepass")]))


def test_a_list_that_changes_later_leaves_the_corpus_as_it_was():
    rows = [{"text": "a"}, {"text": "b"}]
    corpus = as_corpus(rows)
    rows[0]["text"] = "c"
    rows.append({"text": "d"})
    assert corpus.texts("text") == ["a", "b"]
    with pytest.raises(MsifError, match="has no rows"):
        corpus_from_rows([])
