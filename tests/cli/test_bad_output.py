"""Output folders that are taken, and full disks: exit status 2, one sentence, nothing half-written."""

import errno
import os

import numpy as np
from worlds import (
    ALL,
    QUERY,
    build_index,
    fit_factors,
    influence,
)


def test_an_output_folder_with_other_things_in_it(fit, explain, world, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("chapter 1")
    fit("is not empty and holds no factors: choose another --output")
    explain("is not empty and holds no results")
    fit("is a file", output=tmp_path / "out" / "thesis.txt")
    explain("is a file", output=tmp_path / "out" / "thesis.txt")
    inside = tmp_path / "out" / "thesis.txt" / "results"
    fit("cannot be written|Not a directory", output=inside)
    explain("cannot be written|Not a directory", output=inside)


def test_an_output_folder_with_other_settings_in_it(fit, explain, world, tmp_path):
    flags = ["--model", world.base, "--data", world.folder / "corpus.jsonl", "--output", tmp_path / "f"]
    assert fit_factors(*flags) == 0
    fit("fitted with other settings .*seed is 0 there and 1 now", "--seed", 1, output=tmp_path / "f")
    fit(r"data\.max_length is 512 there and 64 now", "--max-length", 64, output=tmp_path / "f")
    fit(r"model\.weights is", model=world.tuned, output=tmp_path / "f")
    fit(r"data\.content is", "--max-examples", 4, output=tmp_path / "f")
    flags = [*world.pair, *world.factors, *QUERY, *ALL, "--output", tmp_path / "out"]
    assert influence(*flags) == 0
    explain(r"other settings \(method is 'multi-stage' there and 'gdp' now\)", "--method", "gdp")
    explain(r"other settings \(completion is ' Linz' there and ' Graz' now\)", completion=" Graz")
    assert influence(*flags) == 0  # the same once more is no mistake
    (tmp_path / "out" / "config.yaml").write_text("{")
    explain("config.yaml is damaged")


def test_a_full_disk(fit, explain, monkeypatch, world, tmp_path):
    def no_space(source, target):
        if str(target).startswith(str(tmp_path)):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return replace(source, target)

    replace = os.replace
    monkeypatch.setattr(os, "replace", no_space)
    fit("the disk is full while writing .*manifest.json")
    explain("the disk is full while writing .*config.yaml")
    (tmp_path / "out").mkdir()  # an empty folder that was there stays empty
    explain("the disk is full")


def test_folders_above_the_output_go_with_it(fit, explain, monkeypatch, tmp_path):
    (tmp_path / "there").mkdir()
    for deep in (tmp_path / "deep" / "er" / "x", tmp_path / "there" / "er" / "x"):
        fit("memory", "--memory", "1KB", output=deep)
        explain("Cannot load embedding model", candidates="knn:2", embedding_model="nope-model", output=deep)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
            fit("the disk is full while writing .*manifest.json", output=deep)
            explain("the disk is full while writing .*config.yaml", output=deep)


def test_a_full_disk_of_embeddings(explain, monkeypatch, tmp_path):
    class Model:
        max_seq_length = 8

        def state_dict(self):
            return {}

        def encode(self, texts, **_):
            return np.ones((len(texts), 2), dtype=np.float32) / np.sqrt(2)

    from msif.candidates import embedding

    monkeypatch.setattr(embedding, "load_embedding_model", lambda model=None: Model())
    monkeypatch.setattr(
        embedding.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
    )
    monkeypatch.setenv("MSIF_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "embeddings").mkdir(parents=True)
    explain("disk is full|Cannot write", candidates="knn:2")


def test_a_folder_that_cannot_be_written_to_is_told_before_a_model_is_read(fit, explain, refused, world, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("chapter 1")
    no_model = {"model": tmp_path / "none"}
    inside = tmp_path / "taken" / "thesis.txt" / "new" / "results"
    fit(r"results cannot be written \(.*thesis\.txt is a file\): choose another", **no_model, output=inside)
    explain(r"results cannot be written \(.*thesis\.txt is a file\): choose another", output=inside)
    index = ["--model", tmp_path / "none", "--data", world.folder / "corpus.jsonl", "--output"]
    refused(build_index, r"results cannot be written \(.*thesis\.txt is a file\)", *index, inside)
    refused(build_index, "is a file: give a folder", *index, tmp_path / "taken" / "thesis.txt")
    refused(build_index, "is not empty and holds no index: choose another --output", *index, tmp_path / "taken")
    fit("is not empty and holds no factors: choose another --output", **no_model, output=tmp_path / "taken")


def test_a_folder_without_rights(fit, explain, monkeypatch, tmp_path):
    monkeypatch.setattr("msif.cli.checks.os.access", lambda path, mode: False)  # root may write anywhere
    for command in (fit, explain):
        command(r"new cannot be written \(.* may not be written to\): choose another --output", output=tmp_path / "new")
