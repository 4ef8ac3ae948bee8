"""Which files of a folder or pattern are read, and what is said of the others."""

import json

import pytest

from msif.data.corpus import load_corpus
from msif.errors import MsifError


def put(folder, *names):
    """Files with one row each, which says the file's name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text\n{name}\n" if name.endswith((".csv", ".tsv")) else json.dumps({"text": name}) + "\n")


def read(folder, **options):
    return sorted(load_corpus(str(folder), **options).texts("text"))


def test_folder_and_glob(tmp_path):
    put(tmp_path, *(f"part{number}.jsonl" for number in range(3)))
    (tmp_path / "notes.md").write_text("not data")
    assert load_corpus(str(tmp_path)).texts("text") == [f"part{number}.jsonl" for number in range(3)]
    assert load_corpus(str(tmp_path / "part[01].jsonl")).size == 2
    with pytest.raises(MsifError, match="No file matches"):
        load_corpus(str(tmp_path / "*.csv"))


@pytest.mark.parametrize("other", ["more.txt", "more.csv", "deep/more.tsv", "zoo.parquet"])
def test_kinds_are_not_mixed(tmp_path, other):
    put(tmp_path, "part.jsonl", other)
    with pytest.raises(
        MsifError, match=r"holds .* and .* files; name one kind with a pattern such as '.*\*\."
    ) as caught:
        load_corpus(str(tmp_path))
    pattern = str(caught.value).split("'")[-2]
    assert load_corpus(pattern).size == 1


METADATA = {
    "dataset_infos.json": '{"default": {"features": {}}}',
    "dataset_info.json": '{\n "features": {}\n}',
    "state.json": '{"step": 1}',
    "croissant.json": '{"@context": {}}',
    "metadata.json": "{}",
    "stats.json": '{\n  "rows": 1\n}',
    "anything.json": '{\n  "rows": 1\n}',
    "README.md": "# Data",
    "README": "Data",
    "readme.txt": "Data",
    "LICENSE": "MIT",
    "LICENSE-APACHE.txt": "Apache",
    "NOTICE.txt": "so",
    ".gitattributes": "*.jsonl filter=lfs",
    ".cache/huggingface/x.jsonl": "not JSON",
    "__MACOSX/wiki.jsonl": "not JSON",
    "_SUCCESS": "",
    "wiki.jsonl.lock": "",
    "wiki.jsonl.md5": "d41d8",
    "SHA256SUMS": "e3b0",
    "sha256sums.txt": "e3b0",
    "checksums.txt": "e3b0",
}


@pytest.mark.parametrize("name", METADATA)
@pytest.mark.parametrize("kind", ["wiki.jsonl", "wiki.json", "wiki.csv"])
def test_what_describes_data_is_passed_over(tmp_path, name, kind):
    put(tmp_path, kind)
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(METADATA[name])
    assert read(tmp_path) == [kind]
    assert read(tmp_path / "*") == [kind]


def test_objects_are_rows_where_there_is_nothing_else(tmp_path):
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(json.dumps({"text": name}, indent=1))
    assert read(tmp_path) == ["a.json", "b.json"]


def test_files_of_unknown_kinds_are_named_once(tmp_path, caplog):
    put(tmp_path, "wiki.jsonl")
    for number in range(7):
        (tmp_path / f"scan{number}.docx").write_text("x")
    assert read(tmp_path) == ["wiki.jsonl"]
    (message,) = (record.message for record in caplog.records if record.name.startswith("msif"))
    assert "7 files" in message and "scan0.docx" in message and "left out" in message


@pytest.mark.parametrize("name", ["RC_2019-01.zst", "dump.gz", "data.parquet.zst"])
def test_packed_files_that_do_not_say_what_they_are(tmp_path, name):
    put(tmp_path, name)
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(MsifError, match=rf"Cannot tell the format of '.*{name}'"):
            load_corpus(str(source))


@pytest.mark.parametrize(
    "names",
    [
        ["wiki.jsonl", "books.jsonl", "train_timetables.jsonl"],
        ["bullet-train.jsonl", "taste_test.jsonl", "wiki.jsonl"],
        ["train_timetables.jsonl", "test_kitchens.jsonl", "dev_blogs.jsonl"],
        ["train.jsonl", "wiki.jsonl"],
        ["dev/guide.jsonl", "ops/guide.jsonl"],
        ["valid_until_2020.jsonl", "retrain.jsonl", "contest.jsonl"],
        ["test-00000-of-00002.jsonl", "test-00001-of-00002.jsonl"],
        ["eval/a.jsonl", "eval/b.jsonl"],
        ["wiki-00000-of-00002.jsonl", "books-00000-of-00001.jsonl"],
    ],
)
def test_words_in_names_decide_nothing(tmp_path, names):
    put(tmp_path, *names)
    assert read(tmp_path) == sorted(names)


@pytest.mark.parametrize(
    ("train", "others"),
    [
        (["train-00.jsonl"], ["test-00.jsonl"]),
        (["train.jsonl"], ["validation.jsonl", "test.jsonl"]),
        (["train.csv"], ["dev.csv"]),
        (["x/train-00000-of-00002-5a7e.jsonl", "x/train-00001-of-00002-c0de.jsonl"], ["x/test-00000-of-00001.jsonl"]),
        (["train/wiki.jsonl", "train/books.jsonl"], ["test/news.jsonl"]),
        (["en/train.jsonl", "de/train.jsonl"], ["en/dev.jsonl", "de/dev.jsonl"]),
        (["wiki.train.raw.jsonl"], ["wiki.valid.raw.jsonl", "wiki.test.raw.jsonl"]),
        (["c4-train.00000-of-01024.jsonl", "c4-train.00001-of-01024.jsonl"], ["c4-validation.00000-of-00008.jsonl"]),
        (["wiki_train.jsonl", "books_train.jsonl"], ["wiki_test.jsonl"]),
    ],
)  # fmt: skip
def test_a_layout_of_splits(tmp_path, caplog, train, others):
    put(tmp_path, *train, *others)
    assert read(tmp_path) == sorted(train)
    assert "the split train is read" in caplog.text
    assert f"{len(others)} file" in caplog.text and others[0] in caplog.text
    assert read(tmp_path, split="train") == sorted(train)
    wanted = "test" if any("test" in name for name in others) else "validation"
    named = [
        name for name in others if any(word in name for word in (("test",) if wanted == "test" else ("dev", "val")))
    ]
    assert read(tmp_path, split=wanted) == sorted(named)


def test_a_layout_without_train_asks(tmp_path):
    put(tmp_path, "validation.jsonl", "test.jsonl")
    with pytest.raises(MsifError, match="has the splits test, validation; choose one with --split"):
        load_corpus(str(tmp_path))
    assert read(tmp_path, split="dev") == ["validation.jsonl"]


def test_splits_of_other_names(tmp_path):
    names = [f"{split}-00000-of-00001.jsonl" for split in ("train_sft", "test_sft", "train_gen", "test_gen")]
    put(tmp_path, *names)
    with pytest.raises(MsifError, match="has the splits test_gen, test_sft, train_gen, train_sft; choose one"):
        load_corpus(str(tmp_path))
    assert read(tmp_path, split="train_sft") == ["train_sft-00000-of-00001.jsonl"]


def test_splits_beside_files_of_none_are_all_read_and_said(tmp_path, caplog):
    put(tmp_path, "train.jsonl", "test.jsonl", "extra.jsonl")
    assert read(tmp_path) == ["extra.jsonl", "test.jsonl", "train.jsonl"]
    assert "all are read" in caplog.text


def test_a_split_that_was_asked_for(tmp_path, caplog):
    caplog.set_level("INFO", logger="msif")
    put(tmp_path, "wiki.jsonl", "books.jsonl", "train_timetables.jsonl")
    assert read(tmp_path, split="train") == ["train_timetables.jsonl"]  # what `--split train` has always read
    assert "2 files (books.jsonl, wiki.jsonl)" in caplog.text
    with pytest.raises(MsifError, match="no files of split 'validation'; its splits are train"):
        load_corpus(str(tmp_path), split="validation")
    (tmp_path / "train_timetables.jsonl").unlink()
    assert read(tmp_path, split="train") == ["books.jsonl", "wiki.jsonl"]
    with pytest.raises(MsifError, match="no files of split 'test'; no name there holds a split"):
        load_corpus(str(tmp_path), split="test")


def test_a_split_of_a_file_is_none(tmp_path, caplog):
    put(tmp_path, "train.jsonl", "test.jsonl")
    assert read(tmp_path / "test.jsonl", split="train") == ["test.jsonl"] and not caplog.messages
    assert read(tmp_path / "*.jsonl", split="test") == ["test.jsonl", "train.jsonl"]
    assert "all are read: --split test is for folders" in caplog.text


def test_empty_files_are_left_out_and_named(tmp_path, caplog):
    put(tmp_path, "wiki.jsonl")
    (tmp_path / "books.jsonl").touch()
    assert read(tmp_path) == ["wiki.jsonl"]
    assert "1 file (" in caplog.text and "books.jsonl" in caplog.text


def test_empty_folder_is_said(tmp_path):
    with pytest.raises(MsifError, match="holds no data files"):
        load_corpus(str(tmp_path))
