import json
import subprocess
import sys

import pytest
from templates import CHATML, MARKED, QWEN3
from zoo import ZOO, bert, folded, words

from msif.data.encoding import Encoder
from msif.data.format import Format
from msif.data.queries import Query, ask, encode_queries, load_queries
from msif.errors import MsifError, UnusableError
from msif.models.answers import answer_text

WHO = {"role": "user", "content": "Who?"}
SHE = {"role": "assistant", "content": "She is."}
SURE = {"role": "user", "content": "Sure?"}


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
        ({"text": "x"}, "lm", r"need a field 'prompt'; their fields are text \(a conversation goes into 'messages'\)"),
        ({"body": "x"}, "classification", "need a field 'text' or 'prompt'"),
        ({"prompt": ""}, "lm", "Field 'prompt' of row 0 .* is empty"),
        ({"prompt": None, "completion": "x"}, "lm", "Field 'prompt' of row 0 .* is empty"),
        ({"prompt": ["x"]}, "lm", "Field 'prompt' of row 0 .* is not text"),
        ({"prompt": "x", "completion": 3}, "lm", "Field 'completion' of row 0 .* is not text"),
        ({"messages": None}, "lm", "Field 'messages' of row 0 .* is empty"),
        ({"messages": "Who?"}, "lm", "messages of row 0 .* must be a list"),
        ({"messages": [{"role": "user", "content": 3}]}, "lm", "messages of row 0 .* must be a list"),
        ({"messages": []}, "lm", "messages of row 0 .* ask nothing"),
        ({"messages": [SHE]}, "lm", "messages of row 0 .* ask nothing"),
        ({"messages": [WHO], "prompt": "Who?"}, "lm", "row 0 .* has both messages and a prompt; leave one out"),
        ({"messages": [WHO], "completion": "She."}, "lm", "row 0 .* has both messages and a completion; leave one out"),
        ({"messages": [WHO]}, "classification", "need a field 'text' or 'prompt'; their fields are messages"),
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


def test_conversations_as_queries(tmp_path):
    empty = {"role": "assistant", "content": ""}
    calls = [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
    rows = [
        {"id": "asked", "messages": [WHO]},
        {"id": "answered", "messages": [WHO, SHE]},
        {"id": "asked again", "messages": [WHO, SHE, SURE]},
        {"id": "to fill", "messages": [WHO, empty]},
        {"id": "a call", "messages": [WHO, {"role": "assistant", "tool_calls": calls}]},
        {"id": "text", "prompt": "Who?", "completion": " She."},
    ]
    asked, answered, again, fill, call, text = load_queries(write(tmp_path / "q.jsonl", rows))
    assert asked == Query("asked", "Who?", messages=[WHO])
    assert answered == Query("answered", "Who?", "She is.", messages=[WHO, SHE]) and answered.text == "Who? She is."
    assert again == Query("asked again", "Who?\nShe is.\nSure?", messages=[WHO, SHE, SURE])
    assert fill == Query("to fill", "Who?", messages=[WHO])
    assert json.loads(call.completion) == calls and call.messages[1]["tool_calls"] == calls
    assert text == Query("text", "Who?", " She.")
    parts = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}
    (of_parts,) = load_queries(write(tmp_path / "parts.jsonl", [{"messages": [parts]}]))
    assert of_parts == Query("0", "What?", messages=[parts])


@pytest.mark.parametrize("template", [CHATML, MARKED, QWEN3])
def test_of_a_conversation_the_last_turn_is_explained_as_it_is_trained_on(tokenizer_of, template):
    tokenizer = tokenizer_of(bos=True, chat_template=template)
    messages = [WHO, SHE, SURE, {"role": "assistant", "content": "Yes."}]
    (document,) = encode_queries([Query("a", "", "Yes.", messages=messages)], tokenizer)
    (trained,) = Encoder(Format(messages="m"), tokenizer).encode([(0, {"m": messages})])
    assert document.input_ids.tolist() == trained.input_ids.tolist()
    said = tokenizer.decode(document.input_ids[document.supervised])
    assert said == ("<think>\n\n</think>\n\n" if template == QWEN3 else "") + "Yes.<|im_end|>\n"
    assert tokenizer.decode(trained.input_ids[trained.supervised]).endswith(said)
    # it goes on where the model would
    given = ask(Query("a", "", messages=messages[:-1]), tokenizer)
    assert document.input_ids[: len(given)].tolist() == given
    assert document.supervised.tolist() == [False] * len(given) + [True] * (len(document) - len(given))


def test_the_models_own_answer_keeps_its_tokens(tokenizer_of):
    """Tokenised together they would be "the", and apart "t" and "he", and what ends within a character is no text."""
    tokenizer = tokenizer_of(bos=True)
    given = tuple(ask(Query("a", "a t"), tokenizer))
    assert given == tuple(tokenizer("a t")["input_ids"])
    letters = tokenizer.convert_tokens_to_ids(["h", "e", "Ã"])
    query = Query("a", "a t", "he", prompt_ids=given, completion_ids=letters)
    (document,) = encode_queries([query], tokenizer, max_length=20)
    assert document.input_ids.tolist() == [*given, *letters]
    assert document.supervised.tolist() == [False] * len(given) + [True] * 3
    assert encode_queries([query], tokenizer, max_length=len(given) + 1)[0].supervised.sum() == 1
    with pytest.raises(UnusableError, match="the whole completion of query 'a'"):
        encode_queries([query], tokenizer, max_length=len(given))


@pytest.mark.parametrize("make", ZOO.values(), ids=ZOO)
def test_what_an_answer_says(make):
    tokenizer = make()
    for prompt, said in (("At?", " London"), ("the cat", " the"), ("At?\n", "London the"), ("", "London")):
        ids = tokenizer(prompt + said, add_special_tokens=False)["input_ids"]
        given = ask(Query("a", prompt), tokenizer)
        begun = len(given) - len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        text = answer_text(tokenizer, given, ids[len(given) - begun :])
        assert "".join(text.lower().split()) == "".join(said.lower().split())  # some tokenizers have no spaces
        assert not prompt or text[0] == said[0] or make in (bert, folded, words)


def test_an_answer_that_ends_within_a_character(tokenizer):
    e, acute = tokenizer("é")["input_ids"]
    letters = tokenizer("ab")["input_ids"]
    assert answer_text(tokenizer, letters, [*letters, e]) == "ab"
    assert answer_text(tokenizer, letters, [*letters, e, acute]) == "abé"
    assert answer_text(tokenizer, [*letters, e], [acute, *letters]) == "éab"
    assert answer_text(tokenizer, letters, [e]) == "\ufffd"  # not nothing


def test_importing_is_cheap():
    code = (
        "import sys, msif.data, msif.data.corpus, msif.data.format, msif.data.queries, msif.candidates.selection, "
        "msif.candidates.bm25, msif.candidates.embedding; "
        "print([name for name in ('torch', 'datasets', 'sklearn', 'sentence_transformers', 'transformers') "
        "if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_an_answer_that_is_cut_in_part_is_told(tokenizer, caplog):
    queries = [
        Query("whole", "ab", "cd"),
        Query("given", "ab", "cdefghi"),
        Query("own", "ab", "cdefghi", prompt_ids=(0, 1), completion_ids=(2, 3, 4, 5, 6, 7, 8)),
    ]
    kept = [int(document.supervised.sum()) for document in encode_queries(queries, tokenizer, max_length=5)]
    assert kept == [2, 3, 3]
    said = "query '{}' is cut at --max-length 5: 3 of 7 tokens of its answer are explained"
    assert caplog.messages == [said.format("given"), said.format("own")]
    caplog.clear()
    encode_queries(queries, tokenizer, max_length=5, tell=False)
    encode_queries(queries, tokenizer)
    assert not caplog.messages
    labels = {"task": "classification", "label2id": {"a": 0, "b": 1}}
    encode_queries(
        [Query("text", "abcdefg", label="a"), Query("b", "ab", label="b")], tokenizer, max_length=5, **labels
    )
    assert caplog.messages == ["query 'text' is cut at --max-length 5: 5 of 7 tokens of its text are read"]


def test_an_answer_of_a_conversation_that_is_cut_in_part_is_told(tokenizer_of, caplog):
    tokenizer = tokenizer_of(chat_template=CHATML)
    query = Query("chat", "Who?", "She is.", messages=[WHO, SHE])
    whole = int(encode_queries([query], tokenizer)[0].supervised.sum())
    length = len(ask(Query("asked", "", messages=[WHO]), tokenizer)) + 3
    (document,) = encode_queries([query], tokenizer, max_length=length)
    left = int(document.supervised.sum())
    assert 0 < left < whole
    said = f"query 'chat' is cut at --max-length {length}: {left} of {whole} tokens of its answer are explained"
    assert caplog.messages == [said]
