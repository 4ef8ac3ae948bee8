"""Folders as people have them, through both commands."""

import json

import pytest
import yaml
from worlds import ALL, FACTS, QUERY, fit_factors, influence, scores, write_rows


@pytest.fixture
def messy(tmp_path):
    """The corpus in three shards, whose other fields agree in nothing, among files that are no data."""
    folder = tmp_path / "messy"
    folder.mkdir()
    rows = [{"text": text, "id": number} for number, text in enumerate(FACTS)]
    sides = [None, 1, "one", {"url": "x"}, [1, "x"], 2**70, 1.5, {"url": [3]}]
    rows = [row | ({} if side is None else {"meta": side}) for row, side in zip(rows, sides, strict=True)]
    for name, shard in (("wiki", rows[:3]), ("books", rows[3:5]), ("train_timetables", rows[5:])):
        write_rows(folder / f"{name}.jsonl", shard)
    (folder / "README.md").write_text("# Facts")
    (folder / ".gitattributes").write_text("* text")
    (folder / "dataset_infos.json").write_text("{}")
    return folder


def test_a_messy_folder_is_read_whole(world, messy, tmp_path):
    assert fit_factors("--model", world.base, "--data", messy, "--output", tmp_path / "factors") == 0
    manifest = json.loads((tmp_path / "factors" / "manifest.json").read_text())
    assert manifest["counts"]["sequences"] == len(FACTS)
    flags = ["--pretrained", world.base, "--finetuned", world.tuned, *world.factors, "--corpus", messy]
    assert influence(*flags, *QUERY, *ALL, "--output", tmp_path / "out") == 0
    assert sorted(scores(tmp_path / "out").column("candidate_id").to_pylist()) == list(range(len(FACTS)))


def test_a_field_at_fault_is_told_before_models_are_loaded(fit, explain, messy):
    write_rows(messy / "zoo.jsonl", [{"body": "x"}])
    message = r"No row of '.*zoo\.jsonl' has the field 'text'"
    fit(message, data=messy, model="no-such-model")
    fit(message, "--streaming", data=messy)
    explain(message, corpus=messy, pretrained="no-such-model")
    write_rows(messy / "zoo.jsonl", [{"id": 90, "text": "fine"}, {"id": 91, "text": 7}])
    message = r"Field 'text' of row 9 of '.*messy' \(row 1 of '.*zoo\.jsonl'\) is not text but int"
    fit(message, data=messy)
    explain(message, corpus=messy)


def test_a_cache_that_cannot_be_written_is_not_the_corpus_at_fault(fit, explain, messy, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("in the way")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for refused in (fit("HF_DATASETS_CACHE", data=messy), explain("HF_DATASETS_CACHE", corpus=messy)):
        assert str(tmp_path / "cache") in refused and "cache folder" in refused
        assert "messy" not in refused and "format" not in refused


def test_the_split_of_a_fit_is_found_again(world, tmp_path, caplog, capfd):
    folder = tmp_path / "splits"
    folder.mkdir()
    write_rows(folder / "train-00000-of-00001.jsonl", [{"text": text} for text in FACTS])
    write_rows(folder / "test-00000-of-00001.jsonl", [{"text": "Not for training."}])
    factors = tmp_path / "factors"
    assert fit_factors("--model", world.base, "--data", folder, "--output", factors) == 0
    assert "left out are 1 file (test-00000-of-00001.jsonl)" in caplog.text
    written = yaml.safe_load((factors / "config.yaml").read_text())
    assert written["split"] is None
    assert fit_factors("--config", factors / "config.yaml", "--output", tmp_path / "again") == 0
    flags = ["--pretrained", world.base, "--pretrained-factors", factors, "--method", "single-stage"]
    flags += ["--corpus", world.folder / "corpus.jsonl", *QUERY, *ALL, "--ihvp", "cg", "--ihvp-iterations", 1]
    for split in (None, "train"):  # which was the default
        (factors / "config.yaml").write_text(yaml.safe_dump(written | {"split": split}))
        assert influence(*flags) == 0
    (factors / "config.yaml").write_text(yaml.safe_dump(written | {"split": "test"}))
    assert influence(*flags) == 2
    assert "is not what the factors" in capfd.readouterr().err
