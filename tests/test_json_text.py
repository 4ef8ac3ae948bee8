"""JSON Lines: one end of a line, and every string that JSON can hold."""

import gzip
import json

import pytest

from msif.atomic import write_json, write_json_lines, write_text
from msif.errors import MsifError
from msif.json_text import json_lines, to_json

# what str.splitlines splits at beside "\n", what UTF-8 cannot hold, and what is neither
ODD = [
    "\r",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x1d",
    "\x1e",
    "\x85",
    "\u2028",
    "\u2029",
    "\ud800",
    "\udfff",
    "\x00",
    "\ufeff",
    "日",
]


@pytest.mark.parametrize("odd", ODD, ids=ascii)
def test_a_row_is_one_line_for_every_reader_and_reads_back(tmp_path, odd):
    rows = [{"text": f"a{odd}b", odd: [odd]}, {"text": "c"}]
    write_json_lines(tmp_path / "rows.jsonl", rows)
    assert list(json_lines(tmp_path / "rows.jsonl")) == rows
    written = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in written.splitlines()] == rows  # as others may read it
    write_json(tmp_path / "one.json", rows)
    assert json.loads((tmp_path / "one.json").read_text(encoding="utf-8")) == rows


@pytest.mark.parametrize("odd", ["\x85", "\u2028", "\u2029"], ids=ascii)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_lines_of_other_writers_end_at_the_line_feed_alone(tmp_path, odd, name):
    rows = [{"text": f"a{odd}b"}, {"text": odd}]
    text = "\ufeff" + "\r\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    data = text.encode("utf-8")
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert list(json_lines(tmp_path / name)) == rows


def test_characters_stay_as_they_are_where_that_is_safe():
    assert to_json({"a": "Zürich 日本 \U0001f600 \u2028"}) == '{"a": "Zürich 日本 \U0001f600 \\u2028"}'


@pytest.mark.parametrize("bad", [b"{", b"[1]", b'{"a": "\xff"}', b'{"a": 1} {"b": 2}'])
def test_a_damaged_line_is_named(tmp_path, bad):
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": 1}\n\n' + bad + b"\n")
    with pytest.raises(MsifError, match=r"rows\.jsonl is damaged (in|after) line \d \(.*\): make it again"):
        list(json_lines(tmp_path / "rows.jsonl"))


def test_text_that_utf_8_cannot_hold_is_written_as_its_escape(tmp_path):
    write_text(tmp_path / "x.txt", "a\ud800b\udc80")
    assert (tmp_path / "x.txt").read_text(encoding="utf-8") == "a\\ud800b\\udc80"
