"""`--ihvp`: each kind of inverse, on the stage's own data as its factors remember it."""

import logging

import pytest
from worlds import ALL, QUERY, by_candidate, influence

import msif
from msif.attribution.methods import SOLVERS

KINDS = ["kfac", "diagonal", "cg", "ekfac-cg", "lissa", "ekfac-lissa", "arnoldi"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_scores_of_its_own(world, tmp_path, multi_stage, kind):
    flags = [*world.pair, *world.factors, *QUERY, *ALL, "--ihvp", kind, "--damping", 0.1]
    flags += ["--ihvp-iterations", 3] if kind in SOLVERS else []
    assert influence(*flags, "--output", tmp_path / "out") == 0
    values = by_candidate(tmp_path / "out")
    assert values.keys() == by_candidate(multi_stage).keys()
    assert len(set(values.values())) > 1 and values != by_candidate(multi_stage)


def test_identity_is_the_gradient_dot_product(world, tmp_path):
    flags = [*world.pair, *QUERY, *ALL]
    assert influence(*flags, *world.factors, "--ihvp", "identity", "--output", tmp_path / "identity") == 0
    assert influence(*flags, "--method", "gdp", "--output", tmp_path / "gdp") == 0
    assert by_candidate(tmp_path / "identity") == pytest.approx(by_candidate(tmp_path / "gdp"))


def test_data_that_is_not_the_stages_own_is_refused(world, tmp_path, capsys):
    flags = [*world.pair, *world.factors, *QUERY, *ALL, "--ihvp", "cg", "--output", tmp_path / "out"]
    assert influence(*flags, "--finetuned-data", world.folder / "corpus.jsonl") == 2
    assert influence(*flags, "--pretrained-data", tmp_path / "moved.jsonl") == 2
    error = capsys.readouterr().err
    assert "No such file" in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("corpus", "told"), [(None, True), (["Ada was born in Linz.", "Rain fell."], False)])
def test_a_solver_on_the_candidates_themselves_is_told(world, caplog, corpus, told):
    """Whatever file they come from; other documents are none."""
    stages = [msif.Stage(world.base, None, world.base_factors), msif.Stage(world.tuned, None, world.tuned_factors)]
    given = world.folder / "corpus.jsonl" if corpus is None else corpus
    solver = msif.IHVP("ekfac-cg", iterations=1)
    with caplog.at_level(logging.INFO, logger="msif.prepare"):
        msif.attribute(stages, [("Where was Ada born?", " Linz")], "all", corpus=given, ihvp=solver)
        assert ("of the very documents that are scored" in caplog.text) == told
        caplog.clear()
        msif.attribute(stages, [("Where was Ada born?", " Linz")], "all", corpus=given)
        assert "of the very documents" not in caplog.text
