"""Fields that nobody asked for stop nothing; a field in use that is at fault is named with its file and row."""

import datetime
import json

import pyarrow
import pyarrow.parquet
import pytest

from msif.data.corpus import corpus_from_rows, load_corpus
from msif.data.format import check_rows, choose_format
from msif.errors import MsifError


def put(folder, files):
    """Files by name, of rows or of content."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        path = folder / name
        if name.endswith(".parquet"):
            pyarrow.parquet.write_table(pyarrow.table(content), path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            lines = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
            path.write_text(lines, encoding="utf-8", newline="")
    return folder


def opened(source, streaming=False, **options):
    """What a command does before it works, and the values of the fields in use."""
    corpus = load_corpus(str(source), streaming=streaming)
    format = choose_format(corpus, **options)
    check_rows(corpus, format)
    return corpus, [tuple(row.values()) for _, row in corpus.rows(columns=format.columns)]


def ten_megabytes(last):
    return "".join(json.dumps({"text": f"{i} " + "x" * 100_000, "meta": None}) + "\n" for i in range(110)) + last


SIDE_FIELDS = {
    "numbers and strings": {"a.jsonl": [{"text": "a", "m": 1}], "b.jsonl": [{"text": "b", "m": "one"}]},
    "numbers and objects": {"a.jsonl": [{"text": "a", "m": 1}, {"text": "b", "m": {"k": [1]}}]},
    "objects of other keys": {"a.jsonl": [{"text": "a", "m": {"k": 1}}], "b.jsonl": [{"text": "b", "m": {"k": "x"}}]},
    "lists of anything": {"a.jsonl": [{"text": "a", "m": [1, "x", None, {}]}], "b.jsonl": [{"text": "b", "m": []}]},
    "null in one shard": {"a.jsonl": [{"text": "a", "m": None}], "b.jsonl": [{"text": "b", "m": "x"}]},
    "in later shards only": {"a.jsonl": [{"text": "a"}], "b.jsonl": [{"text": "b", "m": "x", "n": 1.5}]},
    "in later rows only": {"a.jsonl": [{"text": "a"}] * 1500 + [{"text": "b", "m": {"x": 1}}]},
    "twice in an object": {"a.jsonl": b'{"m": 1, "text": "a", "m": "x"}\n'},
    "NaN and infinity": {"a.jsonl": b'{"text": "a", "m": NaN}\n{"text": "b", "m": -Infinity}\n'},
    "half a character": {"a.jsonl": b'{"text": "a", "m": "\\ud83d"}\n'},
    "integers beyond 64 bits": {"a.jsonl": [{"text": "a", "m": 2**63}, {"text": "b", "m": 2**100}]},
    "dates and none": {"a.jsonl": [{"text": "a", "m": "2020-01-01"}, {"text": "b", "m": "unknown"}]},
    "in another order": {"a.jsonl": [{"text": "a", "m": 1}], "b.jsonl": [{"m": "x", "text": "b"}]},
    "in a JSON list": {"a.json": '[{"text": "a", "m": 1},\n {"text": "b", "m": {"x": "y"}}]'},
    "columns of CSV": {"a.csv": "id,text,m\n1,a,2\n", "b.csv": "n,text,id\nx,b,7\n"},
    "columns of TSV": {"a.tsv": "id\ttext\n1\ta\n", "b.tsv": "text\tid\tmore\nb\t2\t3\n"},
    "columns of one name": {"a.csv": "text,m,m,,\na,1,2,3,4\n"},
    "types of Parquet": {"a.parquet": {"text": ["a"], "m": [1]}, "b.parquet": {"m": ["x"], "text": ["b"]}},
    "nested Parquet": {"a.parquet": {"text": ["a"], "m": [{"k": 1}]}, "b.parquet": {"text": ["b"], "m": [[b"x"]]}},
    "columns of Parquet": {
        "a.parquet": {"text": ["a"]},
        "b.parquet": {"n": [datetime.date(2020, 1, 2)], "text": ["b"]},
    },
    "strings of Parquet": {
        "a.parquet": {"text": pyarrow.array(["a"], pyarrow.large_string())},
        "b.parquet": {"text": pyarrow.array(["b"]).dictionary_encode()},
        "c.parquet": {"text": ["c"]},
    },
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("case", SIDE_FIELDS)
def test_fields_that_nobody_asked_for(tmp_path, case, streaming):
    folder = put(tmp_path / "corpus", SIDE_FIELDS[case])
    corpus, rows = opened(folder, streaming)
    assert {text for (text,) in rows} <= {"a", "b", "c"} and rows
    same = corpus_from_rows([{"text": text} for (text,) in rows])
    assert corpus.fingerprint(["text"]) == same.fingerprint()
    if len(list(folder.iterdir())) == 1:  # a pattern and a file are read the same
        (path,) = folder.iterdir()
        assert opened(path, streaming)[1] == opened(folder / f"*{path.suffix}", streaming)[1] == rows


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("late", ['{"text": "end", "meta": {"url": "x"}}\n', '{"text": "end", "more": [1]}\n'])
def test_a_field_that_begins_after_ten_megabytes(tmp_path, late, streaming):
    put(tmp_path, {"a.jsonl": ten_megabytes(late)})
    assert opened(tmp_path, streaming)[1][-1] == ("end",)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_field_in_use_that_begins_late(tmp_path, streaming):
    rows = [{"prompt": "x" if number > 1200 else None, "side": 1} for number in range(1300)]
    rows = [{key: value for key, value in row.items() if value} | {"answer": "y"} for row in rows]
    put(tmp_path, {"a.jsonl": rows})
    corpus, found = opened(tmp_path, streaming, prompt_field="prompt", completion_field="answer")
    assert found[0] == (None, "y") and found[-1] == ("x", "y")
    assert corpus.has("prompt") and not corpus.has("id")
    with pytest.raises(MsifError, match=r"has no field 'body': its fields are side, answer.*--text-field"):
        choose_format(corpus, text_field="body")


def test_the_format_is_what_the_first_rows_have(tmp_path):
    put(tmp_path / "chat", {"a.jsonl": [{"messages": []}] * 1000 + [{"text": "y"}]})
    assert choose_format(load_corpus(str(tmp_path / "chat"))).kind == "messages"
    put(tmp_path / "late", {"a.jsonl": [{"n": 1}] * 1001 + [{"prompt": "x", "completion": "y"}]})
    assert choose_format(load_corpus(str(tmp_path / "late"))).kind == "pair"


AT_FAULT = {
    "a number": ({"b.jsonl": [{"text": "b"}, {"text": 3}]}, r"of row 2 .*row 1 of '.*b\.jsonl'.* not text but int"),
    "an object": ({"b.jsonl": [{"text": {"x": 1}}]}, r"'text' of row 1 .*row 0 of '.*b\.jsonl'.* not text but dict"),
    "a list": ({"b.jsonl": [{"text": ["x"]}]}, r"'text' of row 1 .*b\.jsonl'.* not text but list"),
    "a truth": ({"b.jsonl": [{"text": True}]}, r"'text' of row 1 .*b\.jsonl'.* not text but bool"),
    "NaN": ({"b.jsonl": b'{"text": NaN}\n'}, r"'text' of row 1 .*b\.jsonl'.* not text but float"),
    "half a character": ({"b.jsonl": b'{"text": "b"}\n{"text": "\\uD83D!"}\n'}, r"'text' of line 2 of '.*b\.jsonl'"),
    "missing": ({"b.jsonl": [{"body": "b"}]}, r"No row of '.*b\.jsonl' has the field 'text'"),
    "missing between": ({"b.jsonl": [{"n": 1}], "c.jsonl": [{"text": "c d"}]}, r"No row of '.*b\.jsonl' has the"),
    "no Latin-1": ({"b.jsonl": b'{"text": "b"}\n{"text": "caf\xe9"}\n'}, r"Line 2 of '.*b\.jsonl' is not UTF-8"),
    "too deep": ({"b.jsonl": b'{"text": ' + b"[" * 10**5 + b"\n"}, r"Line 1 of '.*b\.jsonl' is not valid JSON"),
    "too long": ({"b.jsonl": b'{"text": ' + b"9" * 5000 + b"}\n"}, r"Line 1 of '.*b\.jsonl' is not valid JSON"),
    "missing in CSV": ({"a.csv": "text\na\n", "b.csv": "body\nb\n"}, r"No row of '.*b\.csv' has the field 'text'"),
    "missing in Parquet": ({"a.parquet": {"text": ["a"]}, "b.parquet": {"n": ["b"]}}, r"No row of '.*b\.parquet' has"),
    "a number in Parquet": (
        {"a.parquet": {"text": ["a"]}, "b.parquet": {"text": [7]}},
        r"'text' of row 1 .*row 0 of '.*b\.parquet'.* not text but int",
    ),
    "a date in Parquet": (
        {"a.parquet": {"text": ["a"]}, "b.parquet": {"text": [datetime.date(2020, 1, 2)]}},
        r"'text' of '.*b\.parquet' is of type date32",
    ),
    "bytes in Parquet": (
        {"a.parquet": {"text": ["a"]}, "b.parquet": {"text": [b"b"]}},
        r"'text' of '.*b\.parquet' is of type binary",
    ),
}  # fmt: skip


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("case", AT_FAULT)
def test_a_field_in_use_that_is_at_fault(tmp_path, tokenizer, case, streaming):
    from msif.data.batching import TokenBatches

    files, message = AT_FAULT[case]
    if not any(name.startswith("a.") for name in files):
        files = {"a.jsonl": [{"text": "a good text"}]} | files
    put(tmp_path, files | {"README.md": b"#"})
    with pytest.raises(MsifError, match=message) as caught:
        corpus = load_corpus(str(tmp_path), streaming=streaming)
        format = choose_format(corpus)
        check_rows(corpus, format)
        list(TokenBatches(corpus, format, tokenizer))  # a stream is checked as it comes
    assert "\n" not in str(caught.value)


def test_the_file_of_a_row_is_known_in_a_stream_too(tmp_path):
    put(tmp_path, {"a.jsonl": [{"text": "a"}] * 3, "b.jsonl": b"\n \n", "c.jsonl": [{"text": "c"}] * 2})
    for streaming in (False, True):
        corpus = load_corpus(str(tmp_path), streaming=streaming)
        assert len(list(corpus.rows(columns=["text"]))) == 5
        for row, name, inside in ((0, "a.jsonl", 0), (2, "a.jsonl", 2), (3, "c.jsonl", 0), (4, "c.jsonl", 1)):
            assert corpus.where(row) == f"row {row} of '{tmp_path}' (row {inside} of '{tmp_path / name}')"
    alone = load_corpus(str(tmp_path / "a.jsonl"))
    assert alone.where(2) == f"row 2 of '{tmp_path / 'a.jsonl'}'"


def test_only_the_rows_asked_for_are_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' * 1000 + "{broken")
    for streaming in (False, True):
        assert len(list(load_corpus(str(path), max_examples=1000, streaming=streaming).rows())) == 1000


@pytest.mark.parametrize("streaming", [False, True])
def test_values_are_as_they_are_written(tmp_path, streaming):
    ids = [
        1,
        "1",
        1.5,
        2**63,
        2**63 + 1,
        -(2**63) - 1,
        2**64,
        2**200,
        "2020-01-01",
        "007",
        True,
        [1, {"a": None}],
        "\0x",
        "é\u2028",
    ]
    put(tmp_path, {"a.jsonl": [{"text": "x", "id": id} for id in ids]})
    found = load_corpus(str(tmp_path), streaming=streaming).ids()
    assert found == ids and [type(id) for id in found] == [type(id) for id in ids]
    put(tmp_path, {"a.jsonl": b'{"text": "first", "text": "last"}\n'})
    assert load_corpus(str(tmp_path), streaming=streaming).texts("text") == ["last"]


@pytest.mark.parametrize("streaming", [False, True])
def test_ids_of_parquet_are_exact(tmp_path, streaming):
    big = pyarrow.array([2**63, 2**63 + 1], pyarrow.uint64())
    files = {"a.parquet": {"text": ["a", "b"], "id": big}, "b.parquet": {"text": ["c"], "id": ["x"]}}
    files["c.parquet"] = {"text": ["d"], "id": [datetime.date(2020, 1, 2)]}
    put(tmp_path, files)
    assert load_corpus(str(tmp_path), streaming=streaming).ids() == [2**63, 2**63 + 1, "x", "2020-01-02"]


def test_what_is_no_text_is_none_however_it_was_read_before(tmp_path):
    put(tmp_path, {"a.parquet": {"text": [b"x"], "when": [datetime.date(2020, 1, 2)]}})
    for _ in range(2):
        corpus = load_corpus(str(tmp_path))
        assert list(corpus.rows()) == [(0, {"text": "b'x'", "when": "2020-01-02"})]
        with pytest.raises(MsifError, match="is of type binary"):
            choose_format(corpus)


def test_a_part_of_a_file_may_lack_a_field(tmp_path):
    put(tmp_path, {"a.jsonl": [{"text": "a"}] * 3, "b.jsonl": [{"n": 1}] * 3 + [{"text": "b"}]})
    for streaming in (False, True):
        for limit in (3, 5, 7, None):
            corpus = load_corpus(str(tmp_path), max_examples=limit, streaming=streaming)
            choose_format(corpus)
            assert len(list(corpus.rows(columns=["text"]))) == (limit or 7)


def test_columns_of_one_name_in_parquet(tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 3, names=["text", "m", "m"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert opened(tmp_path)[1] == [("a",)]
    with pytest.raises(MsifError, match=r"a\.parquet' has two columns named 'm'"):
        opened(tmp_path, text_field="m")


def test_classes_that_parquet_declares(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    Dataset.from_list([{"text": "a", "label": 1}], features=features).to_parquet(tmp_path / "a.parquet")
    corpus = load_corpus(str(tmp_path))
    assert corpus.label_names("label") == ("bad", "good") and corpus.label_names("text") is None


def test_fingerprints_of_ordinary_files_stay(tmp_path):
    """Factors on disk know their data by these."""
    chats = [
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "calls": [{"f": 1}]}]}
    ]
    rows = [{"id": 1, "text": "One “so”."}, {"id": 2, "text": "1987-05-02"}]
    put(tmp_path, {"a.jsonl": rows, "b.json": json.dumps(rows), "c.csv": "id,text\n1,One “so”.\n2,1987-05-02\n"})
    for name in ("a.jsonl", "b.json", "c.csv"):
        assert load_corpus(str(tmp_path / name)).fingerprint(["text"]) == "c9ae60d6f6d802e8f7eb94ba14eba933"
    assert load_corpus(str(tmp_path / "a.jsonl")).fingerprint() == "607685227a829a8977f04490b1c55fa2"
    put(tmp_path, {"chats.jsonl": chats})
    assert load_corpus(str(tmp_path / "chats.jsonl")).fingerprint() == "cba2b7f0aea07fa36a029afc16f729c3"
