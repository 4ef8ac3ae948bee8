"""``Result.save``: results that are there are not lost to others, nor mixed with them."""

from dataclasses import replace

import pytest
from conftest import files
from worlds import ALL, QUERY, influence, scores, write_rows

import msif
from msif.errors import MsifError

ASKED = [("Where was Ada born?", " Linz")]


@pytest.fixture(scope="module")
def stage(world):
    return msif.Stage(world.base, world.folder / "corpus.jsonl")


@pytest.fixture(scope="module")
def result(stage):
    return msif.attribute(stage, ASKED, "all", method="random")


@pytest.fixture
def kept(tmp_path):
    """A save that must fail, and leave the folder as it was."""

    def check(result, folder, match, **options):
        before = files(tmp_path)
        with pytest.raises(MsifError, match=match):
            result.save(folder, **options)
        assert files(tmp_path) == before

    return check


def test_other_results_are_replaced_only_on_request(stage, result, kept, tmp_path):
    folder = result.save(tmp_path / "out")
    assert result.save(folder) == folder  # the same settings
    again = msif.attribute(stage, ASKED, "all", method="random")
    again.save(folder)
    others = {
        "scorer is {} there and {'seed': 5} now": msif.attribute(stage, ASKED, "all", method="random", seed=5),
        "query '0' is another": msif.attribute(stage, [("Where was Ada born?", " Graz")], "all", method="random"),
        "1 queries there and 2 now": msif.attribute(stage, [*ASKED, *ASKED], "all", method="random"),
        "the candidates of query '0' are others": msif.attribute(
            stage, ASKED, "all", method="random", corpus=["Ada.", "Linz."], fields={}
        ),
        "the documents say something else": replace(result, provenance={**result.provenance, "documents": "0"}),
        "weights are others": replace(result, provenance={**result.provenance, "weights": ["0"]}),
    }
    for said, other in others.items():
        kept(other, folder, said)
        other.save(folder, overwrite=True)
        assert len(scores(folder)) == sum(len(ranking.rows) for ranking in other.rankings)
        result.save(folder, overwrite=True)


def test_corpora_of_one_size_are_told_apart(stage, kept, tmp_path):
    first, second = (
        msif.attribute(stage, ASKED, "all", method="random", corpus=[*texts, "Linz."], fields={})
        for texts in (["Ada.", "Graz."], ["Ada.", "Brno."])
    )
    first.save(tmp_path / "out")
    kept(second, tmp_path / "out", "other settings .the documents say something else")


def test_a_run_of_the_command_is_not_overwritten_and_leaves_nothing_behind(world, result, kept, tmp_path):
    folder = tmp_path / "out"
    assert influence(*world.pair, *QUERY, *ALL, "--method", "random", "--output", folder) == 0
    kept(result, folder, r"holds results with other settings \(.* is .* there and .* now\): choose another folder")
    (folder / "partial.safetensors").write_bytes(b"")
    result.save(folder, overwrite=True)
    assert not (folder / "config.yaml").exists() and not (folder / "partial.safetensors").exists()
    assert (folder / "page.html").is_file()


def test_a_folder_of_other_things_is_left_alone(world, result, kept, tmp_path):
    (tmp_path / "mine").mkdir()
    write_rows(tmp_path / "mine" / "notes.jsonl", [{"text": "mine"}])
    for options in ({}, {"overwrite": True}):
        kept(result, tmp_path / "mine", "is not empty and holds no results of msif", **options)
        kept(result, tmp_path / "mine" / "notes.jsonl", "is a file: give a folder", **options)
        with pytest.raises(MsifError, match="holds no results of msif"):
            result.save(world.base_factors, **options)
