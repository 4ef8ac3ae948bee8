"""Characters that end lines for some readers, ids of every type, and terminals that cannot show them, to the end."""

import datetime
import decimal
import io
import json
import re
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from worlds import ALL, FACTS, QUERY, influence, scores, shown, write_rows

from msif.page import main as page

ENDS = ["\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]


def test_characters_that_end_lines_are_text(world, tmp_path, capsys):
    """In documents, their ids, prompts, completions and queries' ids: scores, JSON Lines, page and tables."""
    texts = {f"d{end}{n}": f"{FACTS[n % len(FACTS)]}{end}And {end} more." for n, end in enumerate(ENDS)}
    corpus = write_rows(tmp_path / "corpus.jsonl", [{"id": id, "text": text} for id, text in texts.items()])
    asked = [
        {"id": f"q{end}{n}", "prompt": f"Where{end}was she?", "completion": f" Li{end}nz"} for n, end in enumerate(ENDS)
    ]
    queries = write_rows(tmp_path / "queries.jsonl", asked)
    flags = [
        *world.pair,
        "--corpus",
        corpus,
        "--queries",
        queries,
        *ALL,
        "--method",
        "gdp",
        "--output",
        tmp_path / "out",
    ]
    assert influence(*flags) == 0
    table = scores(tmp_path / "out").to_pylist()
    assert {row["candidate_id"] for row in table} == set(texts) and len(table) == len(ENDS) ** 2
    assert [row["query_id"] for row in table[:: len(ENDS)]] == [query["id"] for query in asked]
    documents = shown(tmp_path / "out")
    assert {d["query_id"]: (d["prompt"], d["completion"]) for d in documents} == {
        query["id"]: (query["prompt"], query["completion"]) for query in asked
    }
    assert all(document["text"] == texts[document["candidate_id"]] for document in documents)
    assert all("".join(t for t, _ in d["tokens"]) == d["text"] for d in documents if d["text"].isascii())
    for line in (tmp_path / "out" / "top.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line)  # for readers that split at more than the line feed, too
    before = (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    page([str(tmp_path / "out")])
    assert (tmp_path / "out" / "page.html").read_text(encoding="utf-8") == before
    shown_there = re.findall(r'<script type="application/json" id="data-query-\d+">(.*)</script>', before)
    assert sum(len(json.loads(part)["runs"][0]["entries"]) for part in shown_there) == len(documents)
    assert influence(*flags) == 0  # the same again, by its configuration


@pytest.mark.parametrize("end", [*ENDS, "\n", "\udcff", "\x00", "\x1b[2J", "[/b]", ": #'\"", "\ufeff"], ids=ascii)
def test_a_query_of_the_command_line_is_repeated_by_its_configuration(tmp_path, end):
    import argparse

    from msif.cli.checks import check_output
    from msif.cli.parsing import write_configuration
    from msif.influence import parser

    for text in (f"a{end}b", f"{end}", f" {end} {end}{end} x " * 12):
        flags = parser().parse(["--corpus", "c", "--query", text, "--completion", f"{end}y"])
        write_configuration(tmp_path / "config.yaml", flags)
        check_output(tmp_path, flags)
        again = parser().parse(["--config", str(tmp_path / "config.yaml")])
        assert argparse.Namespace(**{**vars(again), "config": None}) == flags


IDS = {
    "date": [datetime.date(2020, 1, n + 1) for n in range(8)],
    "datetime": [datetime.datetime(2020, 1, 1, n) for n in range(8)],
    "Decimal": [decimal.Decimal(f"{n}.50") for n in range(8)],
    "bytes": [bytes([200 + n, 0]) for n in range(8)],
    "float": [n + 0.5 for n in range(8)],
    "list": [[n, n + 1] for n in range(8)],
    "dict": [{"page": n, "part": "\u2028"} for n in range(8)],
    "uint64": pa.array([2**64 - 1 - n for n in range(8)], pa.uint64()),
    "int64": pa.array([-(2**63) + n for n in range(8)], pa.int64()),
    "markup": [f"[/b]{n}[red]\x1b[2J<script>" for n in range(8)],
}


@pytest.mark.parametrize("kind", IDS)
def test_ids_of_every_type_come_through(world, tmp_path, kind):
    pq.write_table(pa.table({"text": FACTS, "id": IDS[kind]}), tmp_path / "corpus.parquet")
    corpus = ["--corpus", tmp_path / "corpus.parquet"]
    assert influence(*world.pair, *corpus, *QUERY, *ALL, "--method", "gdp", "--output", tmp_path / "out") == 0
    table = scores(tmp_path / "out")
    named = dict(zip(table["row"].to_pylist(), table["candidate_id"].to_pylist(), strict=True))
    assert len(set(named.values())) == len(FACTS)
    assert {d["candidate_id"]: d["text"] for d in shown(tmp_path / "out")} == {named[n]: t for n, t in enumerate(FACTS)}
    if kind in ("uint64", "int64"):
        assert table.schema.field("candidate_id").type == IDS[kind].type
        assert [named[row] for row in range(8)] == IDS[kind].to_pylist()


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([{"text": "fine", "id": "a"}, {"text": "bad", "id": None}], r"In row 1 of '.*' the field 'id' is empty"),
        (
            [{"text": "fine", "id": 1}, {"text": "b"}, {"text": "c", "id": 2}],
            r"In row 1 of '.*' the field 'id' is empty",
        ),
        ([{"text": "fine", "id": ""}, {"text": "bad", "id": "b"}], r"In row 0 of '.*' the field 'id' is empty"),
        (
            [{"text": t, "id": i} for t, i in zip("abc", "xyx", strict=True)],
            r"Rows 0 and 2 of '.*' have the same id 'x'",
        ),
        ([{"text": t, "id": i} for t, i in zip("abc", [7, 8, 8], strict=True)], r"Rows 1 and 2 of .* the same id '8'"),
    ],
)
@pytest.mark.parametrize("candidates", ["all", "bm25:1"])
def test_ids_that_results_cannot_use_are_refused_before_a_model_is_read(
    explain, data, monkeypatch, rows, match, candidates
):
    def load_model(*_):
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("msif.stage.load_model", load_model)
    explain(match, corpus=data("corpus.jsonl", rows), candidates=candidates)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp437"])
def test_a_terminal_that_cannot_show_a_character(world, tmp_path, monkeypatch, encoding):
    rows = [
        {"id": f"日{n}\u2028", "text": f"{text} \u2028 日本 \U0001f600 \x1b[2J [/b]"} for n, text in enumerate(FACTS)
    ]
    corpus = write_rows(tmp_path / "corpus.jsonl", rows)
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    query = ["--query", "Who? \u2028 日", "--completion", " Ada 日"]
    flags = [*world.pair, "--corpus", corpus, "--method", "gdp", *ALL]
    assert influence(*flags, *query, "--output", tmp_path / "日") == 0
    sys.stdout.flush()
    said = written.getvalue().decode(encoding)
    assert "results are in" in said and "[/b]" in said and "\x1b" not in said
