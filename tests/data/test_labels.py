"""Labels as people write them, and those that can be read in two ways or in none."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value

from msif.data.corpus import Corpus
from msif.data.documents import Document, collate
from msif.data.encoding import Encoder
from msif.data.format import Format, choose_format
from msif.data.labels import describe_label, label_index, read_label
from msif.errors import MsifError

ONE = {"LABEL_0": 0}
TWO = {"x": 0, "y": 1}
THREE = {"calm": 0, "odd": 1, "loud": 2}
MULTI = "multi_label_classification"


def test_one_class():
    ids = {"neg": 0, "pos": 1}
    for value, index in [("pos", 1), (0, 0), ("1", 1), (1.0, 1), ("1.0", 1), (True, 1), (np.int64(1), 1)]:
        assert read_label(value, "row 1", label2id=ids) == index
    with pytest.raises(MsifError, match="'bad', which the model does not know: its labels are neg, pos"):
        label_index("bad", "row 1", ids)
    for value in (None, "", 2, -1, 0.5, "2", "0;1", [1], "nan"):
        with pytest.raises(MsifError, match="label of row 1"):
            read_label(value, "row 1", label2id=ids)
    assert label_index(0, "row 1", ids, ("pos", "neg")) == 1
    assert label_index(0, "row 1", ids, ("bad", "good")) == 0
    assert label_index(5, "row 1") == 5
    with pytest.raises(MsifError, match=r'is a list.*"problem_type": "multi_label_classification"'):
        read_label([0, 1], "row 1", label2id=ids)


@pytest.mark.parametrize("value", [3.5, "3.5", " 3.5 ", [3.5], "[3.5]", np.float32(3.5), np.array([3.5])])
def test_one_number(value):
    assert read_label(value, "row 1", "regression", ONE) == (3.5,)


def test_numbers():
    for value in ([1, -2.5], "[1, -2.5]", "(1, -2.5)", "[1. -2.5]", ["1", "-2.5"], np.array([1, -2.5])):
        assert read_label(value, "row 1", "regression", TWO) == (1.0, -2.5)
    assert read_label([1, 2, 3], "row 1", "regression") == (1.0, 2.0, 3.0)
    for value in (None, "", "good", "3,5", "0;2", float("nan"), "inf", [1.0], [1, 2, 3], [1, None], "[1, x]", {"a": 1}):
        with pytest.raises(MsifError, match="label of row 1"):
            read_label(value, "row 1", "regression", TWO)


@pytest.mark.parametrize(
    "value",
    [
        ["calm", "loud"],
        [0, 2],
        [2.0, 0.0],
        [1, 0, 1],
        [1.0, 0.0, 1.0],
        [True, False, True],
        "[1, 0, 1]",
        "[1 0 1]",
        "[1. 0. 1.]",
        "[true, false, true]",
        '["calm", "loud"]',
        "['calm', 'loud']",
        ["0", "2"],
        ["1", "0", "1"],
        np.array([1, 0, 1]),
    ],
)
def test_several_classes(value):
    assert read_label(value, "row 1", MULTI, THREE) == (1.0, 0.0, 1.0)


def test_no_class_one_class_and_shares():
    for value in ([], "[]", (), [0, 0, 0]):
        assert read_label(value, "row 1", MULTI, THREE) == (0.0, 0.0, 0.0)
    for value in ("odd", 1, "1", ["odd"], [1], "[1]", [0, 1, 0]):
        assert read_label(value, "row 1", MULTI, THREE) == (0.0, 1.0, 0.0)
    assert read_label([0.25, 0.5, 1], "row 1", MULTI, THREE) == (0.25, 0.5, 1.0)
    assert read_label([1], "row 1", MULTI, ONE) == (1.0,)
    assert read_label([0.0, 1.0], "row 1", MULTI, TWO) == (0.0, 1.0)
    assert read_label([1, 1], "row 1", MULTI, TWO) == (1.0, 1.0)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "none",
        "calm, odd",
        "calm|odd",
        "0;2",
        3,
        [3],
        [-1],
        ["none"],
        [0, None],
        [1, 0, 1, 0],  # as many as there are not
        [2, 2],
        [0.5, 0.5],
        "[0, ",
        {"calm": 1},
    ],
)
def test_several_classes_that_are_not_there(value):
    with pytest.raises(MsifError, match="label of row 1"):
        read_label(value, "row 1", MULTI, THREE)


def test_two_readings():
    """With two classes [0, 1] is both of them, or the second."""
    for value, known in (([0, 1], TWO), ([1, 0], TWO), ([0], ONE)):
        with pytest.raises(MsifError, match=r"row 1 is \[.*can be read as classes or as 0 and 1"):
            read_label(value, "row 1", MULTI, known)
    assert read_label([0, 1], "row 1", MULTI, TWO, label_names=("y", "x")) == (1.0, 1.0)


def test_lists_of_declared_classes_go_by_name():
    features = Features({"text": Value("string"), "label": Sequence(ClassLabel(names=["loud", "calm"]))})
    rows = [{"text": "a", "label": [0]}, {"text": "b", "label": [0, 1]}]
    corpus = Corpus(Dataset.from_list(rows, features=features), "D")
    format = choose_format(corpus, task="classification", label2id=THREE, problem=MULTI)
    assert [format.label_of(row, "row") for _, row in corpus.rows()] == [(0.0, 0.0, 1.0), (1.0, 0.0, 1.0)]


class Letters:
    """A tokenizer of letters."""

    def __call__(self, texts, **_):
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


def test_labels_reach_the_batch():
    format = Format(text="text", label="label", label2id=THREE, problem=MULTI)
    rows = [{"text": "ab", "label": ["odd"]}, {"text": "c", "label": []}]
    batch = collate(Encoder(format, Letters()).encode(list(enumerate(rows))))
    assert batch.labels.tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]] and batch.labels.is_floating_point()
    ids, none = np.array([1, 2], np.int32), np.zeros(2, bool)
    assert collate([Document(0, ids, none, 2)]).labels.tolist() == [2]


def test_words_for_labels():
    for label, words in [(2, "class 2"), ("odd", "class odd"), (["a"], "class a"), (["a", "b"], "classes a, b")]:
        assert describe_label(label) == words
    assert (describe_label([]), describe_label(0.25), describe_label([1.0, 2.5])) == (
        "no class",
        "value 0.25",
        "values 1, 2.5",
    )
