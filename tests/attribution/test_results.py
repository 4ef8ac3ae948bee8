"""Scores on disk: ids exact and apart, whoever writes them."""

import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from msif.attribution.results import Ranking, Shown, write_scores, write_shown
from msif.data.queries import Query
from msif.errors import MsifError
from msif.json_text import json_lines

RANKINGS = [Ranking(Query("q", "Who?"), np.array([2, 0]), np.array([1.0, -1.0]))]


@pytest.mark.parametrize(
    ("ids", "kind", "written"),
    [
        ({0: 2**63 - 1, 2: -(2**63)}, pa.int64(), [-(2**63), 2**63 - 1]),
        ({0: 2**63, 2: 2**64 - 1}, pa.uint64(), [2**64 - 1, 2**63]),
        ({0: 2**63, 2: -1}, pa.string(), ["-1", "9223372036854775808"]),
        ({0: 2**64, 2: 1}, pa.string(), ["1", "18446744073709551616"]),
        ({0: 1, 2: "b"}, pa.string(), ["b", "1"]),
        ({0: datetime.date(2020, 1, 2), 2: b"\xff"}, pa.string(), ["\\xff", "2020-01-02"]),
        ({0: "a\ud800", 2: "b\u2028"}, pa.string(), ["b\u2028", "a\\ud800"]),
    ],
)
def test_ids_are_written_exactly(tmp_path, ids, kind, written):
    write_scores(tmp_path / "scores.parquet", RANKINGS, ids, {"of": "a\ud800"})
    table = pq.read_table(tmp_path / "scores.parquet")
    assert table.schema.field("candidate_id").type == kind and table["candidate_id"].to_pylist() == written
    assert table["row"].to_pylist() == [2, 0] and table["rank"].to_pylist() == [1, 2]


@pytest.mark.parametrize("ids", [{0: "a", 2: "a"}, {0: 1, 2: "1"}, {0: True, 2: "True"}, {0: 7, 2: 7}], ids=str)
def test_candidates_of_one_id_are_not_written(tmp_path, ids):
    with pytest.raises(MsifError, match="Rows 0 and 2 have the same id"):
        write_scores(tmp_path / "scores.parquet", RANKINGS, ids, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("odd", ["\u2028", "\x85", "\x1c", "\ud800", "\n"], ids=ascii)
def test_shown_documents_read_back(tmp_path, odd):
    text = f"a{odd}b"
    tokens = [(text, 1.0)]
    document = Shown(text, "proponent", 1, text, 1.0, text, text, text, text, tokens, {"layers.0": 1.0})
    write_shown(tmp_path / "top.jsonl", [document, document])
    (row, _) = json_lines(tmp_path / "top.jsonl")
    assert row == {**vars(document), "tokens": [[text, 1.0]]}
