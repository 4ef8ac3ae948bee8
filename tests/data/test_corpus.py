import bz2
import gzip
import json
import lzma
import os

import pytest
import zstandard

from msif.data.corpus import Corpus, corpus_from_rows, load_corpus
from msif.errors import MsifError

ROWS = [{"text": "The first one."}, {"text": "NA"}, {"text": "1987-05-02"}, {"text": "007"}, {"text": "Umläute, “so”"}]


PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard.compress}


def write(folder, kind):
    path = folder / f"corpus{kind}"
    if kind.startswith((".jsonl", ".ndjson")):
        content = "".join(json.dumps(row) + "\n" for row in ROWS)
    elif kind.startswith(".json"):
        content = json.dumps(ROWS)
    elif kind.startswith((".csv", ".tsv")):
        content = "text\n" + "".join(f'"{row["text"]}"\n' for row in ROWS)
    elif kind.startswith(".txt"):
        content = "\n\n  \n".join(row["text"] for row in ROWS)
    else:
        from datasets import Dataset

        Dataset.from_list(ROWS).to_parquet(path)
        return path
    packed = PACK.get(kind.rpartition(".")[2], bytes)
    path.write_bytes(packed(content.encode()))
    return path


TEXT_KINDS = [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt"]
KINDS = [kind + packed for kind in TEXT_KINDS for packed in ("", ".gz", ".zst", ".bz2", ".xz")] + [".parquet"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_rows(tmp_path, kind, streaming):
    corpus = load_corpus(str(write(tmp_path, kind)), streaming=streaming)
    assert corpus.columns == ("text",)
    assert list(corpus.rows()) == list(enumerate(ROWS))
    assert corpus.texts("text") == [row["text"] for row in ROWS]
    assert corpus.size == (None if streaming else len(ROWS))
    assert corpus.fingerprint() == corpus_from_rows(ROWS).fingerprint()


def test_saved_dataset_with_splits_and_class_labels(tmp_path):
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    split = Dataset.from_list([{"text": "a", "label": 0}, {"text": "b", "label": 1}], features=features)
    split.save_to_disk(tmp_path / "one")
    DatasetDict({"test": split}).save_to_disk(tmp_path / "dict")
    for corpus in (load_corpus(str(tmp_path / "one")), load_corpus(str(tmp_path / "dict"), split="test")):
        assert [row["label"] for _, row in corpus.rows()] == [0, 1]
        assert corpus.label_names("label") == ("bad", "good")
        assert corpus.label_names("text") is None
    streamed = load_corpus(str(tmp_path / "one"), streaming=True)
    assert streamed.size is None and len(list(streamed.rows())) == 2


def test_split_of_a_saved_dictionary(tmp_path, caplog):
    from datasets import Dataset, DatasetDict

    splits = {name: Dataset.from_list([{"text": name}]) for name in ("train", "test", "dev")}
    for names in (("train", "test"), ("test",), ("test", "dev")):
        DatasetDict({name: splits[name] for name in names}).save_to_disk(tmp_path / "-".join(names))
    assert load_corpus(str(tmp_path / "train-test")).texts("text") == ["train"]
    caplog.set_level("INFO", logger="msif")
    assert load_corpus(str(tmp_path / "test")).texts("text") == ["test"]
    assert "has one split, test, which is read" in caplog.text
    with pytest.raises(MsifError, match=r"no split 'train'; its splits are test, dev: choose one with --split"):
        load_corpus(str(tmp_path / "test-dev"))
    with pytest.raises(MsifError, match=r"no split 'dev'; its splits are train, test"):
        load_corpus(str(tmp_path / "train-test"), split="dev")


def test_a_state_file_of_another_tool_makes_no_saved_dataset(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    for state in ('{"step": 3}', "[]", "no JSON"):
        (tmp_path / "state.json").write_text(state)
        assert load_corpus(str(tmp_path)).texts("text") == ["x"]


def test_path_with_pattern_characters_is_still_a_path(tmp_path):
    folder = tmp_path / ".hidden [1]"
    folder.mkdir()
    (folder / "a?.jsonl").write_text('{"text": "x"}\n')
    assert load_corpus(str(folder / "a?.jsonl")).size == 1


def test_changed_file_with_the_old_modification_time_is_read_anew(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "old"}\n')
    assert load_corpus(str(path)).texts("text") == ["old"]
    stat = path.stat()
    path.write_text('{"text": "new"}\n')
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert load_corpus(str(path)).texts("text") == ["new"]


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_by_number(tmp_path, streaming):
    corpus = load_corpus(str(write(tmp_path, ".jsonl")), streaming=streaming)
    for indices in ([0, 3], [3, 1, 1, 4], []):
        assert list(corpus.rows(indices)) == [(index, ROWS[index]) for index in indices]
    with pytest.raises(IndexError):
        list(corpus.rows([99]))
    with pytest.raises(MsifError, match=r"has no field 'body': its fields are text"):
        list(corpus.rows(columns=["body"]))


@pytest.mark.parametrize("streaming", [False, True])
def test_max_examples(tmp_path, streaming):
    path = str(write(tmp_path, ".txt"))
    assert len(list(load_corpus(path, streaming=streaming, max_examples=2).rows())) == 2
    assert len(list(load_corpus(path, streaming=streaming, max_examples=99).rows())) == len(ROWS)
    with pytest.raises(MsifError):
        load_corpus(path, max_examples=0)


def test_length_and_truth_of_a_stream(tmp_path):
    corpus = load_corpus(str(write(tmp_path, ".jsonl")), streaming=True)
    assert corpus
    with pytest.raises(TypeError):
        len(corpus)


def test_ids(tmp_path):
    assert corpus_from_rows(ROWS).ids() == [0, 1, 2, 3, 4]
    named = corpus_from_rows([{"id": "a", "text": "x"}, {"id": "b", "text": "y"}])
    assert named.ids() == ["a", "b"]
    assert named.ids([1]) == ["b"]
    with pytest.raises(MsifError, match="'id' is empty"):
        corpus_from_rows([{"id": "a"}, {"id": None}]).ids()
    assert load_corpus(str(write(tmp_path, ".jsonl")), streaming=True).ids() == [0, 1, 2, 3, 4]


def test_fingerprint_follows_content_alone():
    one = corpus_from_rows([{"text": "a", "n": 1}, {"text": "b", "n": 2}], "one")
    same = corpus_from_rows([{"n": 1, "text": "a"}, {"n": 2, "text": "b"}], "another name")
    other = corpus_from_rows([{"text": "a", "n": 1}, {"text": "b", "n": 3}])
    swapped = corpus_from_rows([{"text": "b", "n": 2}, {"text": "a", "n": 1}])
    assert one.fingerprint() == same.fingerprint()
    assert len({corpus.fingerprint() for corpus in (one, other, swapped)}) == 3
    assert one.fingerprint(["text"]) == other.fingerprint(["text"]) != one.fingerprint()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".json"])
def test_json_line_that_does_not_parse_is_named(tmp_path, ending, streaming, capfd):
    path = tmp_path / f"bad{ending}"
    with (gzip.open if ending.endswith(".gz") else open)(path, "wt") as file:
        file.write('{"text": "a"}\n\n{"text": "b"}\n{"text": \n{"text": "c"}\n')
    with pytest.raises(MsifError, match=rf"Line 4 of '.*bad{ending}' is not valid JSON \(.*\); mend it") as caught:
        list(load_corpus(str(path), streaming=streaming).rows())
    assert "\n" not in str(caught.value)
    assert "Failed" not in capfd.readouterr().err


def test_json_line_beyond_the_first_chunk_of_a_stream(tmp_path):
    path = tmp_path / "long.jsonl"
    line = json.dumps({"text": "x" * 1000}) + "\n"
    path.write_text(line * 12000 + "{oops\n")
    corpus = load_corpus(str(path), streaming=True)
    with pytest.raises(MsifError, match="Line 12001 of"):
        list(corpus.rows())


@pytest.mark.parametrize(
    "source", ["missing.jsonl", "./missing", "/no/such/folder", "~/no such", "a/b/c", "data/x.json.gz", "name:a:b"]
)
def test_missing_path_is_never_a_matter_of_the_network(source, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(MsifError, match=r"^No such file or folder"):
        load_corpus(source)


def test_hub_names(monkeypatch, tmp_path):
    from datasets import Dataset
    from datasets.exceptions import DatasetNotFoundError

    calls = []

    def load(*args, **kwargs):
        calls.append((args, kwargs))
        return Dataset.from_list(ROWS)

    monkeypatch.setattr("datasets.load_dataset", load)
    assert isinstance(load_corpus("owner/name:config", split="test"), Corpus)
    assert calls == [(("owner/name", "config"), {"split": "test", "streaming": False})]

    def fail(error):
        def load(*_, **__):
            raise error

        monkeypatch.setattr("datasets.load_dataset", load)

    fail(DatasetNotFoundError("gone"))
    with pytest.raises(MsifError, match="neither a local file or folder nor a dataset on the Hugging Face hub"):
        load_corpus("owner/name")
    fail(ValueError('Unknown split "test".\nShould be one of ["train"].'))
    with pytest.raises(MsifError, match=r'Unknown split "test"\. Should be one of'):
        load_corpus("owner/name", split="test")
    fail(ConnectionError("no route"))
    with pytest.raises(MsifError, match="no local file or folder, and loading it from the Hugging Face hub failed"):
        load_corpus("owner/name")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    with pytest.raises(MsifError, match=r"^No such file or folder"):  # the folder is here, so a path was meant
        load_corpus("data/corpus")


def test_hub_split_that_nobody_asked_for(monkeypatch):
    from datasets import Dataset

    def load(*_, split, **__):
        if split != "test":
            raise ValueError(f'Unknown split "{split}". Should be one of ["test"].')
        return Dataset.from_list([{"text": split}])

    monkeypatch.setattr("datasets.load_dataset", load)
    monkeypatch.setattr("datasets.get_dataset_split_names", lambda *_: ["test"])
    assert load_corpus("owner/name").texts("text") == ["test"]
    with pytest.raises(MsifError, match=r'Unknown split "train"'):
        load_corpus("owner/name", split="train")
    monkeypatch.setattr("datasets.get_dataset_split_names", lambda *_: ["test", "dev"])
    with pytest.raises(MsifError, match="its splits are test, dev: choose one with --split"):
        load_corpus("owner/name")


def test_hub_files_that_do_not_fit_together(monkeypatch):
    from datasets.exceptions import DatasetGenerationError

    def load(*_, **__):
        raise DatasetGenerationError("An error occurred") from TypeError("Couldn't cast array\nof type x")

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(MsifError, match=r"cannot be put together \(Couldn't cast array of type x\); .*hf download"):
        load_corpus("owner/name")


@pytest.mark.parametrize("number", [13, 28, 30, 122], ids=["rights", "full", "read-only", "quota"])
def test_hub_cache_that_cannot_be_written_is_no_fault_of_the_dataset(monkeypatch, number):
    from datasets import config
    from datasets.exceptions import DatasetGenerationError

    def load(*_, **__):
        raise DatasetGenerationError("An error occurred") from OSError(
            number, os.strerror(number), str(config.HF_DATASETS_CACHE)
        )

    monkeypatch.setattr("datasets.load_dataset", load)
    with pytest.raises(MsifError, match=rf"to the cache \({os.strerror(number)}: .*set HF_HOME"):
        load_corpus("owner/name")


@pytest.mark.shared
def test_real_files_where_they_are():
    from pathlib import Path

    folder = Path(__file__).parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no shared data")
    corpus = load_corpus(str(folder / "lama_trex" / "P1*.jsonl.gz"), max_examples=500)
    assert len(corpus) == 500 and "evidences" in corpus.columns
    text = load_corpus(str(folder / "wikitext2" / "valid.txt"), streaming=True, max_examples=50)
    assert all(row["text"].strip() for _, row in text.rows())
