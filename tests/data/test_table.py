"""The table that rows of files are kept in: what it is called, when it is read, where it cannot be written."""

import json
import os
from pathlib import Path

import pytest

from msif.data import file_rows
from msif.data.corpus import load_corpus
from msif.errors import MsifError

ROWS = [{"id": number, "text": f"text {number}", "side": [number]} for number in range(2500)]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
    return folder


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def written(monkeypatch):
    """The columns of the tables that are written from now on."""
    calls = []
    write = file_rows.write_table
    monkeypatch.setattr(
        file_rows, "write_table", lambda path, rows, columns: (calls.append(columns), write(path, rows, columns))
    )
    return calls


def test_only_fields_in_use_and_ids_are_kept(cache, path, written):
    corpus = load_corpus(str(path))
    assert corpus.texts("text") == [row["text"] for row in ROWS]
    assert corpus.ids([2400, 3, 3]) == [2400, 3, 3] and corpus.size == 2500
    assert written == [["id", "text"]]
    assert list(corpus.rows([7], columns=["side", "text"])) == [(7, {"side": [7], "text": "text 7"})]
    assert load_corpus(str(path)).texts("text") == corpus.texts("text")
    assert written == [["id", "text"], ["id", "side", "text"]]
    load_corpus(str(path), max_examples=2).texts("text")
    assert len(written) == 3
    assert len(list(cache.rglob("*.arrow"))) == len(list(cache.rglob("*.*"))) == 3


def test_rows_out_of_order_over_batches(cache, path):
    corpus = load_corpus(str(path))
    numbers = [2499, 0, 1000, 999, 1000, 1]
    assert list(corpus.rows(numbers)) == [(number, ROWS[number]) for number in numbers]
    with pytest.raises(IndexError):
        list(corpus.rows([2500]))


def test_a_damaged_table_is_written_again(cache, path, written):
    load_corpus(str(path)).texts("text")
    (table,) = cache.rglob("*.arrow")
    table.write_bytes(table.read_bytes()[:-5000])
    assert load_corpus(str(path)).texts("text") == [row["text"] for row in ROWS]
    for content in (b"", b"nonsense", table.read_bytes()[:-8]):
        table.write_bytes(content)
        assert load_corpus(str(path)).texts("text") == [row["text"] for row in ROWS]
    assert len(written) == 5


def test_a_file_that_grows_while_it_is_read(cache, path, monkeypatch):
    write = file_rows.write_table

    def grow(*arguments):
        write(*arguments)
        with open(path, "a") as file:
            file.write("\n")

    monkeypatch.setattr(file_rows, "write_table", grow)
    with pytest.raises(MsifError, match=r"a\.jsonl' changed while it was read"):
        load_corpus(str(path)).texts("text")
    assert not list(cache.rglob("*.arrow"))


def test_an_interruption_leaves_nothing(cache, path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    corpus = load_corpus(str(path))
    monkeypatch.setattr("msif.data.table._encode", stop)
    with pytest.raises(KeyboardInterrupt):
        corpus.texts("text")
    assert not list(cache.rglob("*.*"))


def test_a_cache_that_cannot_be_written_is_named_and_not_the_corpus(tmp_path, path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper", Path("/proc/none")):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
        with pytest.raises(
            MsifError, match=rf"^{folder}.* cannot be written .*HF_DATASETS_CACHE.* cache folder"
        ) as caught:
            load_corpus(str(path)).texts("text")
        assert "a.jsonl" not in str(caught.value) and "format" not in str(caught.value)
        assert len(list(load_corpus(str(path), streaming=True).rows())) == 2500  # needs none


@pytest.mark.parametrize("number", [28, 30, 13, 122], ids=["full", "read-only", "rights", "quota"])
def test_a_cache_that_refuses_in_the_middle(cache, path, monkeypatch, number):
    import pyarrow

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    corpus = load_corpus(str(path))
    monkeypatch.setattr(pyarrow, "record_batch", refuse)
    message = "disk is full while writing" if number == 28 else os.strerror(number)
    with pytest.raises(MsifError, match=rf"{message}.*HF_DATASETS_CACHE") as caught:
        corpus.texts("text")
    assert str(cache) in str(caught.value) and not list(cache.rglob("*.*"))
