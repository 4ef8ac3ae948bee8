import json
import subprocess
import sys

import pytest

from msif.data.queries import Query, encode_queries, load_queries
from msif.errors import MsifError


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_queries_of_a_language_model(tmp_path):
    path = write(tmp_path / "q.jsonl", [{"prompt": "Who?", "completion": " She."}, {"prompt": "Where?"}])
    assert load_queries(path) == [Query("0", "Who?", " She."), Query("1", "Where?")]
    named = write(tmp_path / "named.jsonl", [{"id": "a", "prompt": "Who?", "completion": "1987-05-02"}])
    assert load_queries(named) == [Query("a", "Who?", "1987-05-02")]
    (tmp_path / "q.csv").write_text("prompt,completion\nWhen?,1987\nWhen?,\n")
    assert load_queries(str(tmp_path / "q.csv")) == [Query("0", "When?", "1987"), Query("1", "When?")]


@pytest.mark.parametrize("field", ["text", "prompt"])
def test_queries_of_a_classifier(tmp_path, field):
    path = write(tmp_path / "q.jsonl", [{field: "Good.", "label": "pos"}, {field: "Bad.", "label": None}])
    assert load_queries(path, "classification") == [Query("0", "Good.", label="pos"), Query("1", "Bad.")]


def test_text_for_search_has_one_space():
    assert Query("0", "Who? ", " She.").text == Query("0", "Who?", "She.").text == "Who? She."
    assert Query("0", "Who?").text == "Who?"


@pytest.mark.parametrize(
    ("row", "task", "message"),
    [
        ({"text": "x"}, "lm", "need a field 'prompt'; their fields are text"),
        ({"body": "x"}, "classification", "need a field 'text' or 'prompt'"),
        ({"prompt": ""}, "lm", "Field 'prompt' of row 0 .* is empty"),
        ({"prompt": "x", "completion": 3}, "lm", "Field 'completion' of row 0 .* is not text"),
    ],
)
def test_bad_queries(tmp_path, row, task, message):
    with pytest.raises(MsifError, match=message):
        load_queries(write(tmp_path / "q.jsonl", [row]), task)


def test_ids_must_differ(tmp_path):
    path = write(tmp_path / "q.jsonl", [{"id": 1, "prompt": "x"}, {"id": 1, "prompt": "y"}])
    with pytest.raises(MsifError, match="the id '1'"):
        load_queries(path)


def test_encoding(tokenizer):
    (document,) = encode_queries([Query("a", "ab", "cd")], tokenizer)
    assert document.index == 0 and document.supervised.tolist() == [False, False, True, True]
    (document,) = encode_queries([Query("a", "ab", label="pos")], tokenizer, task="classification", label2id={"pos": 3})
    assert document.label == 3
    with pytest.raises(MsifError, match="Query 'a' has no completion"):
        encode_queries([Query("a", "ab")], tokenizer)
    with pytest.raises(MsifError, match="whole completion of query 'a'"):
        encode_queries([Query("a", "abcd", "e")], tokenizer, max_length=4)
    with pytest.raises(MsifError, match="The label of query 'a' is 'odd'"):
        encode_queries([Query("a", "x", label="odd")], tokenizer, task="classification", label2id={"pos": 0})


def test_importing_is_cheap():
    code = (
        "import sys, msif.data, msif.data.corpus, msif.data.format, msif.data.queries, msif.candidates.selection, "
        "msif.candidates.bm25, msif.candidates.embedding; "
        "print([name for name in ('torch', 'datasets', 'sklearn', 'sentence_transformers', 'transformers') "
        "if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
