import numpy as np
import pytest
from templates import CHATML, MARKED

from msif.data.corpus import corpus_from_rows
from msif.data.encoding import Encoder
from msif.data.format import Format, check_rows, choose_format, label_index
from msif.data.messages import check_messages
from msif.errors import MsifError

PAIR = Format(prompt="prompt", completion="completion")
TEXT = Format(text="text")
CHAT = [
    {"role": "system", "content": "Be the best."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "She is."},
    {"role": "user", "content": "Where?"},
    {"role": "assistant", "content": "Ørsted, the 2nd"},
]


def encode(format, tokenizer, row, max_length=None):
    (document,) = Encoder(format, tokenizer, max_length).encode([(5, row)])
    assert document.index == 5 and document.input_ids.dtype == np.int32 and document.supervised.dtype == bool
    return document


@pytest.mark.parametrize("bos", [False, True])
def test_text_is_what_the_tokenizer_makes_of_it(tokenizer_of, bos):
    tokenizer = tokenizer_of(bos)
    document = encode(TEXT, tokenizer, {"text": "the cat"})
    assert document.input_ids.tolist() == tokenizer("the cat")["input_ids"]
    assert document.supervised.tolist() == [False] + [True] * (len(document) - 1)
    assert document.label is None
    cut = encode(TEXT, tokenizer, {"text": "the cat"}, 3)
    assert cut.input_ids.tolist() == document.input_ids[:3].tolist() and cut.supervised.tolist() == [False, True, True]


@pytest.mark.parametrize("bos", [False, True])
def test_pair_is_one_text_of_which_the_completion_is_supervised(tokenizer_of, bos):
    tokenizer = tokenizer_of(bos)
    document = encode(PAIR, tokenizer, {"prompt": "a t", "completion": "he x"})
    assert document.input_ids.tolist() == tokenizer("a the x")["input_ids"]
    assert supervised_text(tokenizer, document) == "the x"  # the token that spans the boundary, and all that follow
    first = int(document.supervised.argmax())
    cut = encode(PAIR, tokenizer, {"prompt": "a t", "completion": "he x"}, first + 1)
    assert cut.supervised.sum() == 1


def test_first_token_of_an_empty_prompt_is_not_supervised(tokenizer, tokenizer_of):
    for prompt in ("", None):
        document = encode(PAIR, tokenizer, {"prompt": prompt, "completion": "abc"})
        assert document.supervised.tolist() == [False, True, True]
    begun = encode(PAIR, tokenizer_of(bos=True), {"prompt": "", "completion": "abc"})
    assert begun.supervised.tolist() == [False, True, True, True]


def test_settings_in_the_tokenizer_file_do_not_truncate_or_pad(tokenizer_of):
    tokenizer = tokenizer_of()
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    assert len(encode(TEXT, tokenizer, {"text": "abcdefgh"})) == 8


def supervised_text(tokenizer, document):
    return tokenizer.decode(document.input_ids[document.supervised])


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["prefixes", "generation mark"])
def test_chat_supervises_what_the_assistant_wrote(tokenizer_of, template):
    tokenizer = tokenizer_of(chat_template=template)
    document = encode(Format(messages="m"), tokenizer, {"m": CHAT})
    whole = tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=True)["input_ids"]
    assert document.input_ids.tolist() == whole
    assert supervised_text(tokenizer, document) == "She is.<|im_end|>\nØrsted, the 2nd<|im_end|>\n"


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["prefixes", "generation mark"])
def test_chat_truncated(tokenizer_of, template):
    tokenizer = tokenizer_of(chat_template=template)
    whole = encode(Format(messages="m"), tokenizer, {"m": CHAT})
    first = int(whole.supervised.argmax())
    cut = encode(Format(messages="m"), tokenizer, {"m": CHAT}, first + 3)
    assert supervised_text(tokenizer, cut) == "She"
    with pytest.raises(MsifError, match=f"Truncation to {first} tokens cuts off every assistant turn of row 5"):
        encode(Format(messages="m"), tokenizer, {"m": CHAT}, first)


def test_chat_that_cannot_be_used(tokenizer_of, tokenizer):
    format = Format(messages="m")
    with pytest.raises(MsifError, match="no chat template"):
        encode(format, tokenizer, {"m": CHAT})
    chat = tokenizer_of(chat_template=CHATML)
    with pytest.raises(MsifError, match="no assistant turn"):
        encode(format, chat, {"m": CHAT[:2]})
    for messages in (None, "text", [{"content": "x"}], []):
        with pytest.raises(MsifError, match="row 5"):
            encode(format, chat, {"m": messages})
    strict = tokenizer_of(chat_template="{{ raise_exception('system\nfirst') }}")
    with pytest.raises(MsifError, match=r"does not take the messages of row 5 \(system first\)"):
        encode(format, strict, {"m": CHAT})
    # It shows only the last message's text: earlier turns come out otherwise in the whole than alone.
    forgetful = tokenizer_of(
        chat_template="{% for m in messages %}{{ m['content'] if loop.last else '...' }}|{% endfor %}"
    )
    with pytest.raises(MsifError, match="rewrites earlier turns of row 5"):
        encode(format, forgetful, {"m": CHAT})


def test_classification(tokenizer):
    format = Format(text="text", label="label", label2id={"neg": 0, "pos": 1})
    for label, index in [("pos", 1), (0, 0), ("1", 1), (1.0, 1), (True, 1)]:
        document = encode(format, tokenizer, {"text": "abc", "label": label}, 2)
        assert document.label == index and not document.supervised.any() and len(document) == 2


def test_labels():
    ids = {"neg": 0, "pos": 1}
    with pytest.raises(MsifError, match="'bad', which the model does not know: its labels are neg, pos"):
        label_index("bad", "row 1", ids)
    for value in (2, -1, "7", None, "", [1], 0.5):
        with pytest.raises(MsifError, match="label of row 1"):
            label_index(value, "row 1", ids)
    # The dataset counts the other way round than the model.
    assert label_index(0, "row 1", ids, ("pos", "neg")) == 1
    assert label_index(0, "row 1", ids, ("bad", "good")) == 0
    assert label_index(5, "row 1") == 5


@pytest.mark.parametrize(
    ("format", "row", "max_length", "message"),
    [
        (TEXT, {"text": ""}, None, "Field 'text' of row 5 is empty"),
        (TEXT, {"text": " \n"}, None, "Field 'text' of row 5 is empty"),
        (TEXT, {"text": None}, None, "Field 'text' of row 5 is empty"),
        (TEXT, {"text": 3}, None, "is not text but int"),
        (TEXT, {"text": "a"}, None, "Nothing can be predicted in row 5, of 1 token:"),
        (TEXT, {"text": "ab"}, 1, "Truncation to 1 tokens cuts off every token"),
        (TEXT, {"text": "ab"}, 0, "length of 0 tokens"),
        (PAIR, {"prompt": "a", "completion": ""}, None, "Field 'completion' of row 5 is empty"),
        (PAIR, {"prompt": "a", "completion": None}, None, "Field 'completion' of row 5 is empty"),
        (PAIR, {"prompt": "", "completion": "a"}, None, "Nothing can be predicted in row 5"),
        (
            PAIR,
            {"prompt": "abcd", "completion": "e"},
            4,
            "cuts off the whole completion of row 5, .* at token 5; raise",
        ),
    ],
)
def test_rows_that_cannot_be_used(tokenizer, format, row, max_length, message):
    with pytest.raises(MsifError, match=message) as caught:
        encode(format, tokenizer, row, max_length)
    assert "\n" not in str(caught.value)


def test_choice_of_format():
    text = corpus_from_rows([{"text": "x", "label": 1, "body": "y"}], "D")
    pair = corpus_from_rows([{"prompt": "x", "completion": "y", "answer": "z"}])
    chat = corpus_from_rows([{"messages": CHAT}])
    assert choose_format(text) == TEXT
    assert choose_format(text, text_field="body").text == "body"
    assert choose_format(pair) == PAIR
    assert choose_format(pair, completion_field="answer") == Format(prompt="prompt", completion="answer")
    assert choose_format(chat).kind == "messages"
    classes = choose_format(text, task="classification", label2id={"a": 0, "b": 1})
    assert classes.kind == "classification" and classes.columns == ("text", "label")
    with pytest.raises(MsifError, match=r"'D' has no field 'story': its fields are .*; choose one with --text-field"):
        choose_format(text, text_field="story")
    with pytest.raises(MsifError, match="has no field 'text'"):
        choose_format(corpus_from_rows([{"body": "x"}]))
    for fields in ({"text_field": "text", "prompt_field": "body"}, {"label_field": "label"}):
        with pytest.raises(MsifError):
            choose_format(text, **fields)
    with pytest.raises(MsifError, match="reads one text"):
        choose_format(text, task="classification", prompt_field="body")


def test_class_names_of_the_dataset_are_carried():
    from datasets import ClassLabel, Dataset, Features, Value

    from msif.data.corpus import Corpus

    features = Features({"text": Value("string"), "label": ClassLabel(names=["pos", "neg"])})
    corpus = Corpus(Dataset.from_list([{"text": "a", "label": 0}], features=features), "D")
    format = choose_format(corpus, task="classification", label2id={"neg": 0, "pos": 1})
    assert format.label_of({"label": 0}, "row 0") == 1


def test_rows_are_checked_before_work():
    check_rows(corpus_from_rows([{"text": "a"}, {"text": "b"}]), TEXT)
    # what is empty will be skipped
    check_rows(corpus_from_rows([{"text": ""}, {"text": " "}, {"text": "a"}, {"text": None}]), TEXT)
    check_rows(corpus_from_rows([{"prompt": "a", "completion": None}, {"prompt": None, "completion": "b"}]), PAIR)
    chats = [{"messages": CHAT[:2]}, {"messages": []}, {"messages": None}, {"messages": CHAT}]
    check_rows(corpus_from_rows(chats), Format(messages="messages"))
    labelled = corpus_from_rows([{"text": "a", "label": "neg"}, {"text": "", "label": None}])
    check_rows(labelled, choose_format(labelled, task="classification", label2id={"neg": 0}))
    labelled = corpus_from_rows([{"text": "a", "label": "neg"}, {"text": "b", "label": "odd"}])
    with pytest.raises(MsifError, match="The label of row 1"):
        check_rows(labelled, choose_format(labelled, task="classification", label2id={"neg": 0}))


@pytest.mark.parametrize(
    ("format", "rows"),
    [
        (TEXT, [{"text": ""}, {"text": None}, {"text": " \n"}]),
        (PAIR, [{"prompt": "a", "completion": ""}, {"prompt": "", "completion": None}]),
        (Format(messages="m"), [{"m": []}, {"m": CHAT[:2]}]),
        (Format(text="text", label="label"), [{"text": "", "label": 0}]),
    ],
)
def test_a_corpus_of_empty_rows_is_refused(format, rows):
    with pytest.raises(MsifError, match="Every row of 'D' is empty in its field"):
        check_rows(corpus_from_rows(rows, "D"), format)


@pytest.mark.parametrize(
    ("format", "row", "message"),
    [
        (TEXT, {"text": 3}, "Field 'text' of row 0 of 'D' is not text but int"),
        (PAIR, {"prompt": 1.5, "completion": "a"}, "Field 'prompt' of row 0 of 'D' is not text"),
        (PAIR, {"prompt": "a", "completion": ["b"]}, "Field 'completion' of row 0 of 'D' is not text"),
        (Format(messages="m"), {"m": "text"}, "messages of row 0 of 'D' must be a list"),
        (Format(messages="m"), {"m": [{"content": "x"}]}, "messages of row 0 of 'D' must be a list"),
        (Format(messages="m"), {"m": [{"role": "user", "content": 3}]}, "messages of row 0 of 'D' must be a list"),
        (Format(messages="m"), {"m": [{"role": "user", "content": ["x"]}]}, "messages of row 0 of 'D' must be a list"),
    ],
)
def test_a_field_of_another_type_is_refused(format, row, message):
    with pytest.raises(MsifError, match=message):
        check_rows(corpus_from_rows([row], "D"), format)


def test_what_a_row_says():
    assert PAIR.text_of({"prompt": "Who? ", "completion": " She."}, "") == "Who? She."
    assert PAIR.text_of({"prompt": None, "completion": ""}, "") == TEXT.text_of({"text": None}, "") == ""
    assert Format(messages="m").text_of({"m": CHAT[:2]}, "") == "Be the best.\nWho?"
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}, {"type": "text", "text": "And who?"}]
    assert Format(messages="m").text_of({"m": [{"role": "user", "content": parts}]}, "") == "What?\nAnd who?"
    assert Format(messages="m").text_of({"m": None}, "") == ""


def test_keys_that_a_table_adds_to_turns_are_gone():
    part, call = {"type": "image", "text": None}, {"name": "f", "arguments": {"x": 1, "y": None}}
    turn = {"role": "user", "content": [part], "tool_calls": [call], "name": None}
    expected = {"role": "user", "content": [{"type": "image"}], "tool_calls": [{"name": "f", "arguments": {"x": 1}}]}
    assert check_messages([turn, {"role": "tool", "content": None}], "", exact=False) == [expected, {"role": "tool"}]
    assert TEXT.texts(corpus_from_rows([{"text": "a"}, {"text": "b"}])) == ["a", "b"]
