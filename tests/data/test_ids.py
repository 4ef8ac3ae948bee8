"""Ids of rows as results hold them: exact, apart from each other, and never in the way of writing."""

import datetime
import decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from msif.data.corpus import corpus_from_rows, load_corpus
from msif.data.ids import check_ids, id_text, is_empty, written_ids
from msif.errors import MsifError


@pytest.mark.parametrize(
    "ids",
    [
        [0, -1, 2**63 - 1, -(2**63)],
        [2**63, 2**64 - 1, 0],
        ["a", "1"],
    ],
)
def test_integers_of_64_bits_and_texts_stay_what_they_are(ids):
    assert written_ids(ids) == ids and list(map(type, written_ids(ids))) == list(map(type, ids))


@pytest.mark.parametrize(
    ("ids", "texts"),
    [
        ([2**64, 1], ["18446744073709551616", "1"]),
        ([2**63, -1], ["9223372036854775808", "-1"]),
        ([1, "a"], ["1", "a"]),
        ([True, False], ["True", "False"]),
        ([1.5, 2.0, 1e300], ["1.5", "2.0", "1e+300"]),
        ([b"ab", b"\xff"], ["ab", "\\xff"]),
        ([decimal.Decimal("1.50")], ["1.50"]),
        ([datetime.date(2020, 1, 2)], ["2020-01-02"]),
        ([datetime.datetime(2020, 1, 2, 3, 4)], ["2020-01-02 03:04:00"]),
        ([[1, "ü"], {"a": None}], ['[1, "ü"]', '{"a": null}']),
        ([[datetime.date(2020, 1, 2)]], ['["2020-01-02"]']),
        (["a\ud800"], ["a\\ud800"]),
        ([["\ud800"]], ['["\\ud800"]']),
    ],
    ids=str,
)
def test_all_other_ids_are_written_as_text(ids, texts):
    assert written_ids(ids) == texts
    pa.array(written_ids(ids), pa.string())


@pytest.mark.parametrize("none", [None, "", float("nan")], ids=str)
def test_a_row_without_an_id_is_named(none):
    assert is_empty(none)
    corpus = corpus_from_rows([{"id": "a"}, {"id": None}]) if none is None else None
    rows = [{"id": "a"}, {"id": ""}] if none == "" else [{"id": 1.5}, {"id": none}]
    with pytest.raises(MsifError, match=r"In row 1 of 'rows' the field 'id' is empty; "):
        check_ids(corpus or corpus_from_rows(rows))


@pytest.mark.parametrize("value", [0, False, "0", " ", [], {}, b"", 0.0, datetime.date.min])
def test_other_ids_are_ids(value):
    assert not is_empty(value) and isinstance(id_text(value), str)


@pytest.mark.parametrize("shared", ["d", 7, 2.5, datetime.date(2020, 1, 2), [1, 2], {"a": 1}, b"x", True], ids=str)
def test_two_rows_of_one_id_are_named(shared, tmp_path):
    texts = ["a", "b", "c", "d", "e"]
    others = {
        str: ["x", "y", "z"],
        int: [1, 2, 3],
        float: [1.5, 3.0, 3.5],
        list: [[1], [2], [3]],
        bytes: [b"1", b"2", b"3"],
    }
    others |= {dict: [{"a": n} for n in (2, 3, 4)], datetime.date: [datetime.date(2021, 1, n) for n in (1, 2, 3)]}
    a, b, c = others.get(type(shared), [False, False, False])
    pq.write_table(pa.table({"text": texts, "id": [a, shared, b, shared, c]}), tmp_path / "x.parquet")
    first, second = (0, 2) if shared is True else (1, 3)
    with pytest.raises(
        MsifError, match=rf"Rows {first} and {second} of '.*x\.parquet' have the same id '.+': give each"
    ):
        check_ids(load_corpus(str(tmp_path / "x.parquet")))


class Mixed:
    """Rows of ids that a table cannot hold side by side."""

    name = "rows"

    def __init__(self, *ids):
        self.values = ids

    def has(self, field):
        return field == "id"

    def iterate_ids(self, indices=None):
        return (self.values[index] for index in (range(len(self.values)) if indices is None else indices))


@pytest.mark.parametrize(
    "pair", [(1, "1"), (True, "True"), ("a\ud800", "a\\ud800"), (b"a", "a"), (1.0, "1.0")], ids=str
)
def test_ids_that_are_written_alike_are_shared(pair):
    with pytest.raises(MsifError, match="Rows 1 and 3 of 'rows' have the same id"):
        check_ids(Mixed("x", pair[0], "y", pair[1]))
    check_ids(Mixed("x", pair[0], "y"))


def test_equal_hashes_are_no_equal_ids(monkeypatch):
    import builtins

    from msif.data import ids

    monkeypatch.setattr(ids, "hash", lambda text: builtins.hash(text) % 2, raising=False)
    check_ids(Mixed(*"abcdefgh"))
    with pytest.raises(MsifError, match="Rows 2 and 5 of 'rows' have the same id 'c'"):
        check_ids(Mixed(*"abcdecg"))


def test_rows_without_ids_have_their_numbers():
    corpus = corpus_from_rows([{"text": "a"}] * 3)
    check_ids(corpus)
    assert corpus.ids() == [0, 1, 2]


@pytest.mark.parametrize(("big", "kind"), [(2**63 - 1, pa.int64()), (2**64 - 1, pa.uint64())])
def test_large_integers_of_a_table_are_exact(tmp_path, big, kind):
    pq.write_table(pa.table({"id": pa.array([big, big - 1], kind)}), tmp_path / "x.parquet")
    corpus = load_corpus(str(tmp_path / "x.parquet"))
    check_ids(corpus)
    assert written_ids(corpus.ids()) == [big, big - 1]
