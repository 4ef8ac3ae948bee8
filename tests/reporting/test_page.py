"""The page of an influence run: words, escaping, what it shows, and what it refuses."""

import json
import re
from html.parser import HTMLParser

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from msif.errors import MsifError
from msif.page import main
from msif.reporting.document import kind_and_layer, percent, strip
from msif.reporting.markup import Markup, element, escaped
from msif.reporting.page import read_run, write_page
from msif.reporting.style import STYLE
from msif.reporting.words import Word, strongest, words

EVIL = "<script>alert('x')</script> & \"quoted\""


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


def test_everything_is_escaped_but_markup():
    assert escaped(EVIL) == "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; &quot;quoted&quot;"
    inner = element("b", "<", title='"')
    assert element("p", inner, "&", class_="x", open=True, hidden=False) == (
        '<p class="x" open><b title="&quot;">&lt;</b>&amp;</p>'
    )
    assert escaped("a\x00b\ud800") == "a\ufffdb\ufffd" and escaped(Markup("<br>")) == "<br>"


def test_blocks_are_added_up_by_layer_and_kind():
    assert kind_and_layer("layers.2.attention.query_key_value:k11") == ("attention k", 2)
    assert kind_and_layer("h.3.mlp.c_fc") == ("mlp.c_fc", 3) and kind_and_layer("0") == ("0", 0)
    blocks = {"layers.0.attention.qkv:q0": 1.0, "layers.0.attention.qkv:q1": 2.0, "layers.10.mlp.out": -1.0}
    table = strip(blocks, 2.0)
    rows = re.findall(r"<tr>(.*?)</tr>", table)
    assert re.findall(r">([^<]+)<", rows[0]) == ["layer", "0", "10"]
    assert re.findall(r">([^<]+)<", rows[1]) == ["attention q", "+150%"]
    assert re.findall(r">([^<]+)<", rows[2]) == ["mlp.out", "-50%"]
    assert 'class="p" style="--w:1.00"' in rows[1] and 'class="o" style="--w:0.33"' in rows[2]


def test_percentages_lose_their_sign_at_zero():
    assert [percent(value) for value in (0.126, -0.126, -0.001, 1.5)] == ["+13%", "-13%", "0%", "+150%"]


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read_on_the_strongest_tint(scheme):
    def colours(name):
        return re.findall(rf"--{name}: ([^;]+);", STYLE)[scheme]

    def hex_colour(name):
        value = colours(name).lstrip("#")
        value = "".join(2 * digit for digit in value) if len(value) == 3 else value
        return [int(value[i : i + 2], 16) for i in (0, 2, 4)]

    for side in ("pro", "opp"):
        tint = [int(part) for part in colours(side).split()]
        mixed = [0.55 * a + 0.45 * b for a, b in zip(tint, hex_colour("back"), strict=True)]
        low, high = sorted((luminance(mixed), luminance(hex_colour("text"))))
        assert (high + 0.05) / (low + 0.05) >= 7
        low, high = sorted((luminance(hex_colour(f"{side}-solid")), luminance(hex_colour("back"))))
        assert (high + 0.05) / (low + 0.05) >= 4.5


class Checked(HTMLParser):
    """Fails on tags that do not match, and keeps the tags and the text."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def shown(query, kind, rank, score, **changes):
    row = {"query_id": query, "kind": kind, "rank": rank, "candidate_id": f"p{rank}", "score": score}
    row |= {"prompt": f"Who? {EVIL}", "completion": f" Ada {EVIL}", "label": None, "text": EVIL}
    row |= {"tokens": [["<script>alert", 1.5 * score], ["('x')", -0.5 * score]], "blocks": {f"layers.0.{EVIL}": score}}
    return {**row, **changes}


@pytest.fixture
def results(tmp_path):
    """A folder as msif.influence writes it: two queries with documents, one with none."""
    rows = [
        shown("a", "proponent", 1, 4.0),
        shown("a", "opponent", 3, -1.0, candidate_id=EVIL),
        shown("b", "proponent", 1, 2.0, label="odd", completion=None, tokens=[], blocks={}),
    ]
    (tmp_path / "top.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"method": "multi-stage", "pretrained": "m0", "finetuned": EVIL, "corpus": "c.jsonl", "alpha": None}
    manifest = {"config": config, "versions": {"torch": "2"}, "weights": ["abc"], "left_out": {"score": "no <b>"}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    pq.write_table(pa.table({"query_id": ["a"] * 3 + ["b"] * 2 + ["c"]}), tmp_path / "scores.parquet")
    return tmp_path


def test_the_page_parses_and_runs_nothing(results):
    page = write_page(results)
    assert page == results / "page.html" and sorted(p.name for p in results.iterdir()) == [
        "manifest.json",
        "page.html",
        "scores.parquet",
        "top.jsonl",
    ]
    parsed = Checked(page.read_text(encoding="utf-8"))
    names = [tag for tag, _ in parsed.tags]
    assert names.count("article") == 3 and names.count("section") == 3 and names.count("li") == 3
    assert not {"script", "img", "link", "iframe", "b>"} & set(names)
    assert not [key for _, attributes in parsed.tags for key in attributes if key.startswith("on")]
    text = "".join(parsed.text)
    assert text.count(EVIL) >= 6  # prompts, answers, texts, names: as they are, and as text
    assert "class odd" in text and "3 documents were scored" in text and "no score differs from zero" in text
    assert "alpha" not in text and "version of torch" in text and "no <b>" in text


def test_words_have_the_colour_and_number_of_their_part(results):
    parsed = Checked(write_page(results).read_text(encoding="utf-8"))
    spans = [a for tag, a in parsed.tags if tag == "span" and a.get("class") in ("p", "o") and "title" in a]
    first = next(a for a in spans if a["title"].startswith("+150.0% of the score"))
    assert first["class"] == "p" and first["style"] == "--w:1.00"
    opponent = [a for a in spans if a["title"].startswith("-150.0% of the score")]
    assert opponent and all(a["class"] == "o" for a in opponent)


@pytest.mark.parametrize("odd", ["\x85", "\u2028", "\u2029", "\\u000b", "\\u000c", "\\u001d", "\\ud800"], ids=ascii)
def test_lines_of_results_end_at_the_line_feed_alone(results, odd):
    """As files of other writers, or of earlier versions, have these characters: as they are, or escaped."""
    row = shown("a", "proponent", 1, 4.0, text="one ODD two", prompt="Who ODD?", candidate_id="p ODD", query_id="a")
    line = json.dumps({**row, "tokens": [["one", 3.0], [" ODD", 0.5], [" two", 0.5]]}).replace("ODD", odd)
    (results / "top.jsonl").write_text(line + "\n" + line + "\r\n", encoding="utf-8")
    assert [row["text"] for row in read_run(results).shown] == [json.loads(f'"one {odd} two"')] * 2
    parsed = Checked(write_page(results).read_text(encoding="utf-8"))
    assert [tag for tag, _ in parsed.tags].count("article") == 2


def test_the_command_writes_where_it_is_told(results, capsys):
    main([str(results), "--page", str(results / "new" / "x.html")])
    assert (results / "new" / "x.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "x.html" in capsys.readouterr().out


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
