"""Messages that say what to do say what can be done."""

import pytest
from worlds import fit_factors, near, save_lm

import msif
from msif.errors import MsifError
from msif.options import Options

LONG = "Where was Ada born, and who says so? " * 20


def test_source_is_not_told_to_give_what_it_does_not_read(explain):
    source = "--method", "source", "--learning-rate-sum", 0, 1
    said = explain("--method source reads how .* sum to 0: give --learning-rate-sum above 0", *source)
    assert "--alpha" not in said and "use --method multi-stage" in said


@pytest.mark.parametrize("flags", [[], ["--max-length", 600], ["--dry-run"]])
def test_no_length_is_raised_beyond_the_positions_of_a_model(explain, flags):
    longest = flags[1:] or [512]
    query = LONG if longest == [600] else LONG[: 512 + 10]
    said = explain("leave.? no room for an answer", *flags, query=query, completion=None)
    assert ("raise it" in said) == (longest != [600])
    assert ("the 600 positions of" in said) == (longest == [600])


def test_a_device_without_weights_explains_nothing(explain, world):
    for more in ([], ["--dry-run"], ["--method", "gdp"]):
        explain("device 'meta' has no weights", "--device", "meta", *more)
    stage = msif.Stage(world.base, world.folder / "corpus.jsonl", device="meta")
    with pytest.raises(MsifError, match="device 'meta'"):
        msif.attribute(stage, ["Who?"], "all", method="gdp")


def test_factors_of_other_weights_name_two_models_only_where_there_are_two(explain, tmp_path, data):
    model = save_lm(tmp_path / "model", seed=5)
    corpus = data("few.jsonl", [{"text": "Ada was born in Linz."}])
    assert fit_factors("--model", tmp_path / "model", "--data", corpus, "--output", tmp_path / "factors") == 0
    near(model, tmp_path / "model")
    near(model, tmp_path / "other", seed=4)
    changed = r"have changed since the factors in \S+ were fitted"
    explain(f"{changed}: give", pretrained=tmp_path / "model", pretrained_factors=tmp_path / "factors")
    explain(f"{changed}, or these", pretrained=tmp_path / "other", pretrained_factors=tmp_path / "factors")


@pytest.mark.parametrize("name", ["max_new_tokens", "top_k"])
@pytest.mark.parametrize("value", [0, -3, 1.5, "5", True, None])
def test_counts_are_checked_before_anything_is_loaded(name, value):
    with pytest.raises(MsifError, match=f"{name} is {value!r}: give an integer of 1 or more"):
        msif.attribute(msif.Stage("no/model", ["text"]), ["Who?"], **{name: value})
    assert Options(method="gdp", candidates="all", **{name: 1})


@pytest.mark.parametrize("candidates", [5, ["knn:5"], {"knn": 5}, b"all"])
def test_candidates_that_are_no_text(candidates):
    with pytest.raises(MsifError, match=r"candidates are .*: write knn:1000"):
        msif.attribute(msif.Stage("no/model", ["text"]), ["Who?"], candidates)
