"""Single files: what their bytes mean, and what is said of those that cannot be read."""

import bz2
import gzip
import json
import lzma

import pytest
import zstandard

from msif.data.corpus import load_corpus
from msif.errors import MsifError

PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.compress}
ROW = b'{"text": "a"}\n'


def read(path, content, **options):
    path.write_bytes(content)
    return [row for _, row in load_corpus(str(path), **options).rows()]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n\n", "is empty|has no rows"),
        ("a.json", b"", "is empty"),
        ("a.json", b"[]", "has no rows"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"text\n", "has no rows"),
        ("a.tsv", b"text\tn\n\n", "has no rows"),
        ("a.txt", b"\n \n", "has no rows"),
        ("a.json", b'[{"text": "a"},\n{"text": "b"]', "Line 2 of"),
        ("a.json", b'[{"text": "a"}\n{"text": "b"}]', r"Line 2 of '.*' is not valid JSON \(Expecting ',' delimiter\)"),
        ("a.json", b'[{"text": "a"},\n', "Line 2 of '.*' is not valid JSON"),
        ("a.json", b'[{"text": "a"}', "Line 1 of '.*' is not valid JSON"),
        ("a.json", b'[{"text": "a"}]\n[]', r"Line 2 of '.*' is not valid JSON \(Extra data\)"),
        ("a.json", b'[{"text": "a"},\n\n3]', "Line 3 of '.*' is not a JSON object"),
        ("a.json", b'{"text":\n\n"a", }', "Line 3 of '.*' is not valid JSON"),
        ("a.jsonl", b'{"text": "a"}\n3\n', "Line 2 of .* is not a JSON object"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": "b"\n', r"Line 3 of .* is not valid JSON"),
        ("a.jsonl", b'{"text": "a"}\r\n{"text": "caf\xe9"}\r\n', "Line 2 of .* is not UTF-8 text"),
        ("a.jsonl", '{"text": "a"}\n'.encode("utf-16"), "is not UTF-8 text"),
        ("a.txt", b"caf\xe9\n", "not UTF-8"),
        ("a.csv", b"text\ncaf\xe9\n", "not UTF-8"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", "Expected 2 fields in line 3"),
        ("a.csv", b"a,a\n1,2\n", "two columns named 'a'"),
        ("a.csv", b'id,text\n1,"fine\nlines"\n2,"not closed\n3,x\n', "row that begins in line 4 .* is not valid CSV"),
        ("a.csv", b'id,text\n1,"so" it goes\n', "row that begins in line 2 .* is not valid CSV"),
        ("a.tsv", b'id\ttext\n1\t"so" it goes\n', "row that begins in line 2 .* is not valid TSV"),
        ("a.parquet", b"nonsense", "Cannot read .* as parquet"),
        ("a.parquet", b"PAR1 cut off PAR1", "Cannot read .* as parquet"),
        ("a.docx", b"x", "Cannot tell the format"),
    ],
)
def test_unreadable_files(tmp_path, name, content, message, streaming):
    with pytest.raises(MsifError, match=message) as caught:
        read(tmp_path / name, content, streaming=streaming)
    assert "\n" not in str(caught.value) and name in str(caught.value)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("damage", ["cut", "cut in a later part", "plain", "other", "changed"])
def test_packed_files_that_are_damaged(tmp_path, packed, damage, streaming):
    whole = PACK[packed](ROW * 5000)
    content = {
        "cut": whole[:-3],
        "cut in a later part": whole + whole[: len(whole) // 2],
        "plain": ROW,
        "other": PACK["gz" if packed != "gz" else "xz"](ROW),
        "changed": whole[:20] + bytes(8) + whole[28:],
    }[damage]
    message = (
        rf"'.*a\.jsonl\.{packed}' (cannot be read \(.+\); check that the file is complete and packed|is not UTF-8)"
    )
    with pytest.raises(MsifError, match=message) as caught:
        read(tmp_path / f"a.jsonl.{packed}", content, streaming=streaming)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("kind", ["jsonl", "txt", "csv"])
def test_packed_files_whose_names_do_not_say_so(tmp_path, packed, kind):
    with pytest.raises(
        MsifError, match=rf"is compressed, which its name does not say; rename it to 'a.{kind}.{packed}'"
    ):
        read(tmp_path / f"a.{kind}", PACK[packed](ROW * 50))


@pytest.mark.parametrize("packed", PACK)
def test_packed_files_in_several_parts(tmp_path, packed):
    content = b"".join(PACK[packed](ROW * count) for count in (1, 5000, 1))
    assert len(read(tmp_path / f"a.jsonl.{packed}", content)) == 5002


def test_zstandard_with_a_long_window(tmp_path):
    settings = zstandard.ZstdCompressionParameters.from_level(1, window_log=31, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=settings).compressobj()  # of a size not known before
    content = packer.compress(ROW * 3) + packer.flush()
    assert len(read(tmp_path / "a.jsonl.zst", content)) == 3


# What str.splitlines() takes for ends of lines; JSON allows the last few only as escapes.
ODD = "a\u2028b\u2029c\x85d"
CONTROLS = f"{ODD}\x0ce\x0bf\x1cg\x1dh\x1ei"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.txt", f"{CONTROLS}\r\n\r\n \x0c\n{CONTROLS}", CONTROLS),
        ("a.txt", f"\ufeff{CONTROLS}\n{CONTROLS}\n", CONTROLS),
        ("a.csv", f"text,n\n{CONTROLS},1\n{CONTROLS},2\n", CONTROLS),
        ("a.csv", f'\ufefftext\r\n"{CONTROLS}"\r\n\r\n{CONTROLS}\r\n', CONTROLS),
        ("a.tsv", f"n\ttext\n1\t{CONTROLS}\n2\t{CONTROLS}", CONTROLS),
        ("a.jsonl", f'{{"text": "{ODD}"}}\n' * 2, ODD),
        ("a.jsonl", json.dumps({"text": CONTROLS}) + "\n" + json.dumps({"text": CONTROLS}), CONTROLS),
        ("a.json", f'[{{"text": "{ODD}"}}, {{"text": "{ODD}"}}]', ODD),
    ],
)
def test_lines_end_at_newlines_alone(tmp_path, name, content, text, streaming):
    rows = read(tmp_path / name, content.encode(), streaming=streaming)
    assert [row["text"] for row in rows] == [text] * 2


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        b'{"text": "a"}\n{"text": "b"}',
        b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}\r\n',
        b'\n \n{"text": "a"}\n\t\n{"text": "b"}\n\n',
        b'\xef\xbb\xbf{"text": "a"}\n\xef\xbb\xbf{"text": "b"}\n',
        b'[{"text": "a"}, {"text": "b"}]',
        b'\xef\xbb\xbf[\r\n  {"text": "a"},\r\n\r\n  {"text": "b"}\r\n]\r\n',
        b'[\n{\n"text":\n"a"\n}\n,\n{"text": "b"}\n]',
    ],
)
def test_layouts_of_json(tmp_path, content, streaming):
    for name in ("a.json", "a.jsonl"):
        assert read(tmp_path / name, content, streaming=streaming) == [{"text": "a"}, {"text": "b"}]
    (tmp_path / "a.json").write_bytes(b'{"text":\n"a"}')
    assert load_corpus(str(tmp_path / "a.json"), streaming=streaming).texts("text") == ["a"]


@pytest.mark.parametrize("streaming", [False, True])
def test_cells_of_csv(tmp_path, streaming):
    long = "x" * 200_000
    content = f'id,text,\n007,"a ""b"", c\nd",NA\n\n1,   \n"",say "hi",,\n2,{long},z\n'
    rows = read(tmp_path / "a.csv", content.encode(), streaming=streaming)
    assert [tuple(row.values()) for row in rows] == [
        ("007", 'a "b", c\nd', "NA"), ("1", "   ", None), (None, 'say "hi"', None), ("2", long, "z")
    ]  # fmt: skip
    assert list(rows[0]) == ["id", "text", "Unnamed: 2"]


def test_blank_lines_are_counted_once(tmp_path, caplog):
    caplog.set_level("INFO", logger="msif")
    assert len(read(tmp_path / "a.txt", b"a\n\n \nb\n")) == 2
    assert [record.message for record in caplog.records] == ["2 blank lines of a.txt are not rows"]


def test_a_file_without_rights(tmp_path, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "a.jsonl").write_bytes(ROW)
    monkeypatch.setattr("msif.data.json_rows.open_bytes", refuse)
    with pytest.raises(MsifError, match=r"a\.jsonl' cannot be read \(.*Permission denied.*\); check its rights"):
        load_corpus(str(tmp_path / "a.jsonl"))
