"""What fails after scoring costs no score: they are on disk, the message says where, and no run scores them again."""

import errno
import os
from contextlib import suppress

import pytest
from worlds import ALL, QUERY, by_candidate, influence, shown

from msif.attribution.partial import PARTIAL, PartialScores
from msif.attribution.scorers import InfluenceScorer
from msif.cli import output

WHOLE = ["config.yaml", "manifest.json", "page.html", "queries.jsonl", "scores.parquet", "top.jsonl"]


def names(folder):
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture(scope="module")
def flags(world):
    return [*world.pair, *QUERY, *ALL, "--method", "gdp", "--batch-tokens", 60]


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert influence(*flags, "--output", folder) == 0
    return folder


@pytest.fixture
def scored(monkeypatch):
    """How many batches have been scored."""
    add, batches = PartialScores.add, []

    def counted(self, rows, scores):
        batches.append(rows)
        add(self, rows, scores)

    monkeypatch.setattr(PartialScores, "add", counted)
    return batches


def fails(error):
    def failing(*_, **__):
        raise error

    return failing


AFTER = {
    "explaining": (InfluenceScorer, "explain", RuntimeError("a bug"), 2),
    "interrupted": (InfluenceScorer, "explain", KeyboardInterrupt(), 130),
    "no memory": (InfluenceScorer, "explain", MemoryError(), 2),
    "JSON Lines": (output, "write_shown", TypeError("Object of type date is not JSON serializable"), 2),
    "page": (output, "write_page", ValueError("a bug"), 2),
    "tables": (output, "print_query", UnicodeEncodeError("ascii", "\u2028", 0, 1, "ordinal not in range"), 2),
    "closed pipe": (output, "print_query", BrokenPipeError(errno.EPIPE, "Broken pipe"), 2),
}


@pytest.mark.parametrize("place", AFTER)
def test_a_failure_after_scoring_keeps_the_scores(flags, whole, scored, tmp_path, monkeypatch, capfd, caplog, place):
    owner, name, error, status = AFTER[place]
    folder = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fails(error))
        assert influence(*flags, "--output", folder) == status
    said = capfd.readouterr().err + caplog.text
    assert f"The scores are safe in {folder / 'scores.parquet'}: ".lower() in said.lower() and "Traceback" not in said
    assert {"config.yaml", "manifest.json", "scores.parquet", PARTIAL} <= set(names(folder))
    assert by_candidate(folder) == by_candidate(whole)
    count = len(scored)
    assert count > 1
    assert influence(*flags, "--output", folder) == 0
    assert len(scored) == count and names(folder) == WHOLE
    assert by_candidate(folder) == by_candidate(whole) and shown(folder) == shown(whole)


def full_disk(monkeypatch, *of):
    replace = os.replace

    def no_space(source, target):
        if os.path.basename(target) in of:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return replace(source, target)

    monkeypatch.setattr(os, "replace", no_space)


@pytest.mark.parametrize("name", ["scores.parquet", "manifest.json", "top.jsonl", "page.html"])
def test_a_disk_that_fills_up_while_results_are_written(flags, whole, scored, tmp_path, monkeypatch, capfd, name):
    folder = tmp_path / "out"
    with monkeypatch.context() as patch:
        full_disk(patch, name)
        assert influence(*flags, "--output", folder) == 2
    kept = PARTIAL if name == "scores.parquet" else "scores.parquet"
    err = capfd.readouterr().err
    assert f"the disk is full while writing {folder / name}" in err and f"safe in {folder / kept}: " in err
    assert "config.yaml" in names(folder) and kept in names(folder) and name not in names(folder)
    count = len(scored)
    assert influence(*flags, "--output", folder) == 0
    assert len(scored) == count and names(folder) == WHOLE
    assert by_candidate(folder) == by_candidate(whole) and shown(folder) == shown(whole)


def test_what_cannot_be_kept_for_a_next_run_does_not_stop_this_one(flags, whole, tmp_path, monkeypatch, caplog):
    full_disk(monkeypatch, PARTIAL)
    assert influence(*flags, "--output", tmp_path / "out") == 0
    assert names(tmp_path / "out") == WHOLE and by_candidate(tmp_path / "out") == by_candidate(whole)
    assert "what was scored is not kept for a next run: the disk is full" in caplog.text


def test_an_interruption_keeps_what_is_scored(flags, whole, scored, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    with monkeypatch.context() as patch:
        add = PartialScores.add

        def interrupted(self, rows, scores):
            add(self, rows, scores)
            if self.batches == 2:
                raise KeyboardInterrupt

        patch.setattr(PartialScores, "add", interrupted)
        assert influence(*flags, "--output", folder) == 130
    assert names(folder) == ["config.yaml", PARTIAL] and len(scored) == 2
    assert influence(*flags, "--output", folder) == 0
    assert by_candidate(folder) == by_candidate(whole)
    assert sum(map(len, scored)) == len(by_candidate(whole))


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyboardInterrupt()])
def test_a_failure_before_scores_leaves_nothing(flags, tmp_path, monkeypatch, there, error):
    folder = tmp_path / "out"
    if there:
        folder.mkdir()
    monkeypatch.setattr(InfluenceScorer, "query_vectors", fails(error))
    with suppress(RuntimeError):
        assert influence(*flags, "--output", folder) == 130
    assert folder.exists() == there and not (there and names(folder))


def test_new_scores_do_not_stand_beside_what_old_ones_showed(world, flags, tmp_path, monkeypatch):
    folder, corpus = tmp_path / "out", tmp_path / "corpus.jsonl"
    corpus.write_bytes((world.folder / "corpus.jsonl").read_bytes())
    flags = [*flags, "--corpus", corpus, "--output", folder]
    assert influence(*flags) == 0
    first = by_candidate(folder)
    corpus.write_text(corpus.read_text().replace("Ada", "Bea"))
    with monkeypatch.context() as patch:
        patch.setattr(output, "explained", fails(RuntimeError("a bug")))
        assert influence(*flags) == 2
    assert by_candidate(folder) != first and names(folder) == [
        "config.yaml",
        "manifest.json",
        PARTIAL,
        "scores.parquet",
    ]
