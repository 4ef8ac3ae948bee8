"""What can be told before queries are answered is told before."""

import pytest
from test_index import FLAGS, build
from worlds import write_rows

from msif import job


@pytest.fixture(scope="module")
def index(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreseen") / "index"
    model = ["--model", world.base, "--data", world.folder / "corpus.jsonl"]
    assert build(*model, *FLAGS, "--output", folder) == 0
    return folder


@pytest.fixture
def answers(monkeypatch):
    """Queries that a model was asked to answer."""
    asked = []

    def answer(*arguments):
        asked.append(arguments)
        return greedy(*arguments)

    greedy = job.greedy_completion
    monkeypatch.setattr(job, "greedy_completion", answer)
    return asked


def test_an_embedding_model_is_loaded_before_the_first_answer(explain, answers, tmp_path):
    for candidates in ("knn:2", "bm25:2+knn:3"):
        explain("Cannot load embedding model", completion=None, candidates=candidates, embedding_model="nope-model")
        explain("No such folder", completion=None, candidates=candidates, embedding_model=tmp_path / "none")
    assert not answers


def test_a_corpus_is_looked_up_in_the_index_before_the_first_answer(explain, answers, index, tmp_path):
    rows = write_rows(tmp_path / "new.jsonl", [{"text": "Nobody has seen this."}, {"text": "Nor that."}])
    alone = {"completion": None, "corpus": rows, "index": index, "pretrained_factors": None, "finetuned_factors": None}
    explain("2 documents are not in the index", **alone, method="trackstar", candidates="all")
    explain("2 documents are not in the index", **alone, method="gdp", candidates="index:2+bm25:1")
    assert not answers


@pytest.mark.parametrize("kind", ["ekfac", "kfac", "ekfac-cg", "ekfac-lissa"])
@pytest.mark.parametrize("method", ["multi-stage", "single-stage"])
def test_a_singular_curvature_is_told_before_the_first_answer(explain, answers, kind, method):
    zero = ["--damping", 0] + (["--alpha", 0] if method == "multi-stage" else [])
    singular = r"Λ of module '\S+' is singular and the damping does not lift it"
    explain(singular, *zero, "--method", method, "--ihvp", kind, completion=None)
    assert not answers
