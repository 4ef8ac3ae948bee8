"""The page of an influence run: words, what it holds, escaping, and what it refuses."""

import json
import re
import shlex
from html.parser import HTMLParser

import pytest
from result_folders import EVIL, large, scored, shown, small, write_results, write_truth

from msif.errors import MsifError
from msif.page import main
from msif.reporting.about import about
from msif.reporting.blocks import cells, kind_and_layer, kinds_and_layers, strongest_blocks
from msif.reporting.page import embedded, read_run, style, write_page
from msif.reporting.payload import payload
from msif.reporting.truth import Truth, read_truth
from msif.reporting.words import Word, strongest, words
from msif.told import short_fields


def texts(text, tokens):
    return [(unit.text, unit.part) for unit in words(text, tokens)]


def test_tokens_join_to_words_and_keep_their_sum():
    tokens = [(" As", 1.0), (" Pim", 2.0), ("wick", 3.0), (",", -1.0), (" 19", 0.5), ("84", 0.5)]
    assert texts("As Pimwick, 1984", tokens) == [("As", 1.0), ("Pimwick", 5.0), (",", -1.0), ("1984", 1.0)]
    shown = words("a  b\nc", [("a", 1.0), (" ", 0.25), (" b", 2.0), ("\n", 0.5), ("c", 3.0)])
    assert shown[1] == Word(" ", "␣", 0.25) and shown[3] == Word(" ", "↵", 0.5)
    assert sum(unit.part for unit in shown) == 6.75


def test_pieces_of_characters_take_the_text_between_their_neighbours():
    broken = "\ufffd"
    tokens = [(" caf", 1.0), (broken, 2.0), (broken, 3.0), (".", 4.0), (" na", 1.0), (broken, 1.0), ("ve", 1.0)]
    assert texts("café. naïve", tokens) == [("café", 6.0), (".", 4.0), ("naïve", 3.0)]
    assert texts("日本語", [(broken, 1.0), (broken, 1.0), ("本", 2.0), ("語", 3.0)]) == [
        ("日", 2.0),
        ("本", 2.0),
        ("語", 3.0),
    ]


def test_what_is_not_in_the_text_and_what_was_not_read():
    units = words("Ada sang. Then she left.", [("<s>", 1.0), ("Ada", 2.0), (" sang", 3.0), (".", 0.0)])
    assert [(unit.text, unit.part) for unit in units] == [
        ("<s>", 1.0),
        ("Ada", 2.0),
        ("sang", 3.0),
        (".", 0.0),
        ("Then she left.", None),
    ]
    assert words("nothing", []) == [Word("", "nothing", None)]


def test_the_strongest_words_have_the_sign_of_the_score():
    units = words("a b c d", [("a", 1.0), (" b", -2.0), (" c", 4.0), (" d", -5.0)])
    assert strongest(units, 1.0, 5) == [("c → d", 4.0), ("a → b", 1.0)]
    assert strongest(units, -1.0, 1) == [("d", -5.0)]


def test_blocks_are_added_up_by_layer_and_kind():
    assert kind_and_layer("layers.2.attention.query_key_value:k11") == ("attention k", 2)
    assert kind_and_layer("h.3.mlp.c_fc") == ("mlp.c_fc", 3) and kind_and_layer("0") == ("0", 0)
    blocks = {"layers.0.attention.qkv:q0": 1.0, "layers.0.attention.qkv:q1": 2.0, "layers.10.mlp.out": -1.0}
    kinds, layers = kinds_and_layers(blocks)
    assert (kinds, layers) == (["attention q", "mlp.out"], [0, 10])
    assert cells(blocks, kinds, layers, 0.002) == [[1500, None], [None, -500]]
    assert strongest_blocks(blocks, 0.002)[0] == ["layers.0.attention.qkv:q1", 1000]


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read_on_every_colour(scheme):
    found = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", style())
    colours = {name: [int(pair[scheme][i : i + 2], 16) for i in (1, 3, 5)] for name, *pair in found}
    for side in ("pro", "opp"):
        mixed = [0.55 * a + 0.45 * b for a, b in zip(colours[side], colours["back"], strict=True)]
        assert contrast(mixed, colours["text"]) >= 7
    for name in ("pro-solid", "opp-solid", "soft", "good", "bad"):
        assert contrast(colours[name], colours["back"]) >= 4.5, name
    assert contrast(colours["soft"], colours["card"]) >= 4.5


class Checked(HTMLParser):
    """Fails on tags that do not match, and keeps the tags, the text and the data."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.text, self.data, self.raw = [], [], [], {}, []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        attributes = self.tags[-1][1] if self.tags else {}
        if self.open[-1:] == ["script"] and attributes.get("type") == "application/json":
            self.data[attributes["id"]] = json.loads(data)
            self.raw.append(data)
        else:
            self.text.append(data)


@pytest.fixture
def results(tmp_path):
    return small(tmp_path / "out")


def read(page):
    return Checked(page.read_text(encoding="utf-8"))


def test_data_is_no_markup_and_ends_no_script():
    odd = f"{EVIL} </script> <!-- \u2028 \u2029 ]]>"
    text = embedded({"text": odd})
    assert not set("<>&\u2028\u2029") & set(text) and json.loads(text) == {"text": odd}


def test_the_page_holds_all_and_no_markup_of_its_data(results):
    page = write_page(results)
    assert page == results / "page.html"
    parsed = read(page)
    names = [tag for tag, _ in parsed.tags]
    assert not {"img", "link", "iframe", "b>"} & set(names)
    scripts = [attributes for tag, attributes in parsed.tags if tag == "script"]
    assert [one for one in scripts if one.get("type") != "application/json"] == [{}]  # the page's own
    assert not [key for _, attributes in parsed.tags for key in attributes if key.startswith("on") or key == "src"]
    text = "".join(parsed.text)
    assert EVIL in text and "no <b>" in text and "alpha" not in text.split("const ")[0]
    index = parsed.data["data-index"]
    assert [query["id"] for query in index["queries"]] == ["a", "b", "c"]
    assert EVIL in index["queries"][0]["prompt"] and index["queries"][1]["answer"] == "class odd"
    assert [document["id"] for document in parsed.data["data-documents"]] == ["p1", EVIL, "p1"]
    first = parsed.data["data-query-0"]["runs"][0]
    assert first["entries"][0]["words"] == [1500, -500] and first["entries"][0]["share"] == pytest.approx(4 / 4.5)
    assert first["entries"][1]["words"] == [-1500, 500] and first["scored"] == 3
    assert parsed.data["data-query-2"]["runs"][0]["entries"] == []


def test_what_is_known_of_queries_and_documents(tmp_path):
    truth = read_truth(write_truth(tmp_path / "truth.jsonl"))
    found = payload([read_run(large(tmp_path / "out"))], truth)
    first, second, *_ = found.index["queries"]
    assert first["correct"] is True and second["correct"] is False and found.index["queries"][2]["correct"] is None
    assert first["runs"][0]["mrr"] == 0.5 and second["runs"][0]["mrr"] == 0.25
    assert first["probability"] == pytest.approx(0.1225, abs=1e-3) and found.index["fields"] == ["fact", "relation"]
    view = found.queries[0]["runs"][0]
    assert view["sources"][0] == {"id": "Linz-1", "rank": 2} and view["sources"][-1]["rank"] is None
    assert [entry.get("source", False) for entry in view["entries"]] == [False, True, False, False, True, False, False]
    assert view["entries"][0]["common"] == [6, 6] and "common" not in view["entries"][1]
    documents = found.documents
    one, other = (documents[view["entries"][place]["d"]] for place in (1, 2))
    assert one["group"] == other["group"] and one["group"] != documents[view["entries"][0]["d"]]["group"]
    assert [len(token["words"]) for token in view["entries"][0]["answer"]] == [len(view["entries"][0]["words"])] * 2


def test_runs_are_compared_by_the_ids_of_documents(tmp_path):
    runs = [read_run(large(tmp_path / "one")), read_run(large(tmp_path / "two", shift=3, queries=5))]
    found = payload(runs, Truth())
    (pair,) = found.index["agreement"]
    assert len(pair["rows"]) == 6 and pair["rows"][5] is None
    assert pair["rows"][0]["overlap"] == 8 and pair["rows"][0]["common"] == 12 and pair["rows"][0]["spearman"] < 0.5
    entries = found.queries[0]["runs"][0]["entries"]
    assert [entry["ranks"] for entry in entries[:3]] == [[1, 1], [2, 10], [3, 11]]
    assert found.queries[5]["runs"][1] is None and len(found.index["queries"][5]["runs"]) == 2
    same = payload(runs[:1] * 2, Truth()).index["agreement"][0]["rows"][0]
    assert same["spearman"] == 1.0 and same["overlap"] == same["of"] == 10


@pytest.mark.parametrize("odd", ["\x85", "\u2028", "\u2029", "\\u000b", "\\u000c", "\\u001d", "\\ud800"], ids=ascii)
def test_lines_of_results_end_at_the_line_feed_alone(results, odd):
    """As files of other writers, or of earlier versions, have these characters: as they are, or escaped."""
    row = shown("a", "proponent", 1, 4.0, text="one ODD two", prompt="Who ODD?", candidate_id="p ODD", query_id="a")
    line = json.dumps({**row, "tokens": [["one", 3.0], [" ODD", 0.5], [" two", 0.5]]}).replace("ODD", odd)
    (results / "top.jsonl").write_text(line + "\n" + line + "\r\n", encoding="utf-8")
    assert [row["text"] for row in read_run(results).shown] == [json.loads(f'"one {odd} two"')] * 2
    entries = read(write_page(results)).data["data-query-0"]["runs"][0]["entries"]
    assert len(entries) == 2


@pytest.mark.parametrize("odd", [float("inf"), float("-inf"), float("nan")])
def test_a_page_is_valid_whatever_numbers_it_is_given(tmp_path, odd):
    parts = {"tokens": [["a", odd], [" b", 1.0]], "blocks": {"layers.0.mlp": odd, "layers.1.mlp": 1.0}}
    fields = {"perplexity": odd, "list": [odd, 1.0], "kept": 2.5}
    rows = [shown("a", "proponent", 1, odd, **parts, fields=fields, norm=odd), shown("a", "proponent", 2, 1.0, **parts)]
    told = [{"id": "a", "prompt": "Who?", "completion": "x", "fields": fields, "tokens": [["x", odd]]}]
    page = read(write_page(write_results(tmp_path / "out", rows, scored("a", [odd, 1.0, -1.0]), told)))
    for text in page.raw:
        json.loads(text, parse_constant=pytest.fail)
    found = page.data["data-index"]["queries"][0]["fields"]
    assert found == {"perplexity": None, "list": [None, 1.0], "kept": 2.5}
    entries = page.data["data-query-0"]["runs"][0]["entries"]
    assert entries[0]["score"] is None and entries[1]["score"] == 1.0 and entries[1]["words"] == [0, 1000]
    assert short_fields(fields) == {"kept": 2.5}


@pytest.mark.parametrize("name", ["out", "of two words"])
def test_a_page_says_how_to_run_again_where_a_run_left_its_flags(tmp_path, name):
    """Results that were saved from Python have none."""
    folder = small(tmp_path / name)
    assert about(read_run(folder))["again"] is None and "The same again" not in write_page(folder).read_text()
    (folder / "config.yaml").write_text("corpus: c.jsonl\n")
    command = shlex.split(about(read_run(folder))["again"])
    assert command == ["python", "-m", "msif.influence", "--config", str(folder / "config.yaml")]
    assert "The same again" in write_page(folder).read_text()


def test_the_command_writes_where_it_is_told(results, capsys):
    main([str(results), "--page", str(results / "new" / "x.html")])
    assert (results / "new" / "x.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "x.html" in capsys.readouterr().out


def test_results_of_earlier_versions_are_read(results):
    """Without queries.jsonl, and without what has been added to the rows of top.jsonl."""
    (results / "queries.jsonl").unlink()
    rows = [json.loads(line) for line in (results / "top.jsonl").read_text().splitlines()]
    kept = [{key: row[key] for key in row if key not in ("fields", "norm", "completion", "label")} for row in rows]
    (results / "top.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    assert read(write_page(results)).data["data-index"]["queries"][0]["answer"] == ""


def test_wrong_folders_are_refused_with_a_sentence(results, tmp_path):
    with pytest.raises(MsifError, match=r"holds no manifest.json"):
        read_run(tmp_path / "nowhere")
    good = (results / "top.jsonl").read_text()
    (results / "top.jsonl").write_text(good + "{\n")
    with pytest.raises(MsifError, match="damaged in line 4"):
        read_run(results)
    (results / "top.jsonl").write_text('{"query_id": "a"}\n')
    with pytest.raises(MsifError, match="no 'kind' in line 1"):
        read_run(results)
    (results / "top.jsonl").write_text(good)
    (results / "scores.parquet").write_text("no table")
    with pytest.raises(MsifError, match=r"scores.parquet cannot be read"):
        read_run(results)
    (results / "manifest.json").write_text("[]")
    with pytest.raises(MsifError, match="no JSON object"):
        read_run(results)
    with pytest.raises(MsifError, match="no 'id' in line 1"):
        read_truth(results / "top.jsonl")


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (
            '{"id": "nobody", "answer": "Linz"}\n',
            r"about none of the queries \(its ids are nobody, theirs are .*\): give the truth",
        ),
        ('{"id": "0", "sources": "Linz-1"}\n', r"'sources' in line 1 of .*truth\.jsonl is text: give a list"),
        ("", r"truth\.jsonl has no rows: give what is true"),
    ],
)
def test_truth_that_cannot_be_of_these_queries(tmp_path, rows, match):
    folder, truth = large(tmp_path / "out"), tmp_path / "truth.jsonl"
    truth.write_text(rows)
    for output in (["--output", str(tmp_path / "page.html")], ["--export", str(tmp_path / "viewer.jsonl")]):
        with pytest.raises(MsifError, match=match):
            main([str(folder), "--truth", str(truth), *output])
    assert not (tmp_path / "page.html").exists() and not (tmp_path / "viewer.jsonl").exists()


def test_a_large_page_is_made_in_seconds_and_holds_each_text_once(tmp_path):
    rows, scores = [], []
    for query in range(40):
        scores += scored(f"q{query}", [100.0 - rank for rank in range(100)])
        for rank in range(1, 101):
            text = f"document {rank} " + "word " * 50
            tokens = [[word, 0.1] for word in text.split(" ")]
            rows.append(shown(f"q{query}", "proponent", rank, 101.0 - rank, text=text, tokens=tokens))
    found = payload([read_run(write_results(tmp_path / "out", rows, scores))], Truth())
    assert len(found.documents) == 100 and sum(len(part["runs"][0]["entries"]) for part in found.queries) == 4000
