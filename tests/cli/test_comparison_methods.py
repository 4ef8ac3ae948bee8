"""`--method cka|trak|logra|random` from end to end, against the library's scorers called by hand."""

import json

import numpy as np
import pytest
from worlds import ALL, FACTS, QUERY, by_candidate, fit_factors, influence, scores, shown, write_rows

from msif import load_model
from msif.attribution.cka import CKAScorer
from msif.attribution.gradients import Side
from msif.attribution.logra import LoGraScorer
from msif.attribution.partial import PARTIAL, PartialScores
from msif.attribution.projection import Projection
from msif.attribution.random_order import RandomScorer
from msif.attribution.trak import TRAKScorer
from msif.data.batching import TokenBatches, batches_of
from msif.data.corpus import load_corpus
from msif.data.format import choose_format
from msif.data.queries import Query, encode_queries
from msif.models.objectives import CausalLM
from msif.models.select import track_modules

METHODS = ("cka", "trak", "logra")
SMALL = {"cka": [], "trak": ["--projection-size", 3, "--projection-dim", 40], "logra": ["--projection-size", 3]}


@pytest.fixture(scope="module")
def by_hand(world):
    """(query side, candidate side, query batches, data by rows), without the command."""
    pair = [load_model(str(folder), "lm", "auto", "cpu") for folder in (world.tuned, world.base)]
    sides = [Side(loaded.model, track_modules(loaded.model), CausalLM()) for loaded in pair]
    query = encode_queries([Query("0", QUERY[1], QUERY[3])], pair[0].tokenizer, max_length=512)

    def data(path=world.folder / "corpus.jsonl", rows=None):
        corpus = load_corpus(path)
        return TokenBatches(corpus, choose_format(corpus), pair[1].tokenizer, indices=rows)

    return *sides, batches_of(query, 8192), data


def same(folder, expected):
    rows = sorted(scores(folder).to_pylist(), key=lambda row: row["row"])
    assert [row["row"] for row in rows] == expected.candidates.tolist()
    values = [row["score"] for row in rows]
    np.testing.assert_allclose(values, expected.values[0], rtol=1e-5, atol=1e-6 * abs(expected.values).max())


CASES = {
    "cka": ([], lambda q, z, data: CKAScorer(q, z)),
    "cka of whole gradients": (["--cka-rows", "whole"], lambda q, z, data: CKAScorer(q, z, rows="whole")),
    "trak": (
        ["--damping", 2, "--projection-size", 5, "--projection-dim", 40, "--projection-seed", 3],
        lambda q, z, data: TRAKScorer([(q, z)], Projection(5, 5, 40, 3), damping=2.0, kernel_data=data()),
    ),
    "trak by example": (
        ["--damping-scale", 0.3, "--projection-dim", 40, "--trak-weighting", "example"],
        lambda q, z, data: TRAKScorer(
            [(q, z)], Projection(64, 64, 40), damping_scale=0.3, weighting="example", kernel_data=data()
        ),
    ),
    "trak of the loss": (
        ["--measurement", "loss", "--projection-dim", 40],
        lambda q, z, data: TRAKScorer([(q, z)], Projection(64, 64, 40), output="loss", kernel_data=data()),
    ),
    "logra": (
        ["--damping", 0.05, "--projection-size", 3, "--projection-seed", 2],
        lambda q, z, data: LoGraScorer(q, z, Projection(3, 3, seed=2), damping=0.05, curvature_data=data()),
    ),
    "random": (["--random-seed", 5], lambda q, z, data: RandomScorer(q, z, seed=5)),
    "logra, empirical, of the margin": (
        ["--measurement", "margin", "--logra-labels", "true", "--projection-size", 3],
        lambda q, z, data: LoGraScorer(
            q, z, Projection(3, 3), measurement="margin", labels="true", curvature_data=data()
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_scores_are_the_librarys(world, tmp_path, by_hand, case):
    flags, scorer = CASES[case]
    query_side, candidate_side, queries, data = by_hand
    method = ["--method", case.split(" ")[0].rstrip(",")]
    assert influence(*world.pair, *QUERY, *ALL, *method, *flags, "--output", tmp_path / "out") == 0
    expected = scorer(query_side, candidate_side, data).score(queries, data())
    same(tmp_path / "out", expected)
    assert len(set(by_candidate(tmp_path / "out").values())) == len(FACTS)


@pytest.mark.parametrize("method", METHODS)
def test_documents_are_shown_without_parts(world, tmp_path, capfd, method):
    assert influence(*world.pair, *QUERY, *ALL, "--method", method, *SMALL[method], "--output", tmp_path / "out") == 0
    documents, values = shown(tmp_path / "out"), by_candidate(tmp_path / "out")
    assert documents and all(document["tokens"] == [] and document["blocks"] == {} for document in documents)
    assert all(document["score"] == values[document["candidate_id"]] for document in documents)
    assert all(document["text"] in FACTS for document in documents)
    if method == "cka":  # unsigned
        assert {document["kind"] for document in documents} == {"proponent"}
    told = capfd.readouterr().out
    assert documents[0]["candidate_id"] in told and "words that carry it" not in told
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    left_out = {"lm_head": "its rows are tokens"} if method == "cka" else {}
    assert manifest["left_out"] == left_out and manifest["rank_errors"] is None
    assert len(manifest["modules"]) == 9 - len(left_out)


@pytest.mark.parametrize("method", ["trak", "logra"])
def test_index_data_are_all_of_the_corpus_or_what_is_named(world, tmp_path, by_hand, method):
    """Not the candidates alone; of the factors' data where factors are given."""
    query_side, candidate_side, queries, data = by_hand
    projection = Projection(64, 64, 40) if method == "trak" else Projection(3, 3)
    size = ["--projection-dim", 40] if method == "trak" else ["--projection-size", 3]
    other = write_rows(tmp_path / "other.jsonl", [{"text": f"{text} Or not?"} for text in FACTS[:5]])

    def expected(index):
        if method == "trak":
            scorer = TRAKScorer([(query_side, candidate_side)], projection, kernel_data=index)
        else:
            scorer = LoGraScorer(query_side, candidate_side, projection, curvature_data=index)
        return scorer.score(queries, data(rows=rows))

    flags = [*world.pair, *QUERY, "--candidates", "bm25:3", "--method", method, *size]
    assert influence(*flags, "--output", tmp_path / "corpus") == 0
    rows = sorted(row["row"] for row in scores(tmp_path / "corpus").to_pylist())
    assert len(rows) == 3
    same(tmp_path / "corpus", expected(data()))
    assert influence(*flags, "--pretrained-data", other, "--output", tmp_path / "other") == 0
    same(tmp_path / "other", expected(data(other)))
    assert influence(*flags, "--ihvp-examples", 4, "--output", tmp_path / "few") == 0
    same(tmp_path / "few", expected(data(rows=[0, 2, 4, 6])))
    fit = ["--model", world.base, "--data", other, "--output", tmp_path / "factors"]
    assert fit_factors(*fit) == 0
    factors = ["--pretrained-factors", tmp_path / "factors"]
    assert influence(*flags, *factors, "--output", tmp_path / "fitted") == 0
    same(tmp_path / "fitted", expected(data(other)))
    assert influence(*flags, *factors, "--pretrained-data", world.folder / "corpus.jsonl") == 2


@pytest.mark.parametrize("method", METHODS)
def test_a_replaced_head_and_one_classifier_alone(world, tmp_path, method):
    query = ["--task", "classification", "--query", FACTS[0], "--completion", "calm", "--method", method]
    query += SMALL[method]
    pair = ["--pretrained", world.base, "--finetuned", world.judge, "--corpus", world.folder / "corpus.jsonl"]
    assert influence(*pair, *query, *ALL, "--output", tmp_path / "pair") == 0
    assert len(by_candidate(tmp_path / "pair")) == len(FACTS)
    alone = ["--finetuned", world.judge, "--corpus", world.folder / "labels.jsonl"]
    assert influence(*alone, *query, *ALL, "--output", tmp_path / "alone") == 0
    values = by_candidate(tmp_path / "alone")
    assert values[0] == max(values.values())  # the query is among them, and is most like itself


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_pass_goes_on(world, tmp_path, monkeypatch, method):
    flags = [*world.pair, *QUERY, *ALL, "--method", method, *SMALL[method], "--batch-tokens", 40]
    assert influence(*flags, "--output", tmp_path / "whole") == 0
    add, counted = PartialScores.add, []

    def stop_after_three(self, rows, values):
        add(self, rows, values)
        counted.append(len(rows))
        if len(counted) == 3:
            self.save()
            raise KeyboardInterrupt

    monkeypatch.setattr(PartialScores, "add", stop_after_three)
    assert influence(*flags, "--output", tmp_path / "out") == 130
    assert (tmp_path / "out" / PARTIAL).is_file()
    assert influence(*flags, "--output", tmp_path / "out") == 0
    assert sum(counted) == len(FACTS)  # the second run scored what the first had not
    assert by_candidate(tmp_path / "out") == by_candidate(tmp_path / "whole")
    assert not (tmp_path / "out" / PARTIAL).exists()


@pytest.mark.parametrize("method", METHODS)
def test_a_dry_run_tells_the_index_apart(world, capfd, method):
    assert influence(*world.pair, *QUERY, *ALL, "--method", method, "--dry-run") == 0
    told = capfd.readouterr().out
    assert f"for {len(FACTS)} candidates" in told and ("8 modules" if method == "cka" else "9 modules") in told
    assert (f"for {len(FACTS)} sequences of index data" in told) == (method != "cka")


def test_flags_that_a_method_does_not_read(explain, world, tmp_path):
    for method, flag, value in (
        ("gdp", "--projection-size", 4),
        ("multi-stage", "--trak-weighting", "token"),
        ("logra", "--projection-dim", 4),
        ("cka", "--projection-seed", 4),
        ("cka", "--random-seed", 4),
        ("trak", "--logra-labels", "true"),
        ("trak", "--cka-rows", "whole"),
        ("cka", "--damping", 0.1),
        ("trak", "--alpha", 0.1),
        ("logra", "--query-rank", 3),
        ("cka", "--normalize", "unit"),
        ("trak", "--ihvp", "cg"),
        ("gdp", "--damping-scale", 0.1),
    ):
        explain(
            f"--method {method} does not read {flag}: leave it out, or use it with ", "--method", method, flag, value
        )
    explain("give --method trak a number", "--method", "trak", "--damping", "auto")
    explain("margin only", "--method", "trak", "--trak-weighting", "example", "--measurement", "loss")
    explain("invalid choice: 'word'", "--trak-weighting", "word")
    explain("--projection-seed: '-1' is not an integer", "--projection-seed=-1")
    explain("TRAK's kernel is singular", "--method", "trak", "--damping", 0, pretrained_factors=None)
    explain("LoGra's curvature of module .* is singular", "--method", "logra", "--damping-scale", 0)
    explain("No such file", "--method", "logra", pretrained_factors=None, pretrained_data=tmp_path / "none.jsonl")


def test_a_configuration_of_another_method_is_no_mistake(world, tmp_path, multi_stage):
    flags = ["--damping", 0.3, "--alpha", 2, "--query-rank", 4, "--output", tmp_path / "all"]
    assert influence("--config", multi_stage / "config.yaml", *flags) == 0
    for method in ("cka", "gdp"):
        plain = ["--method", method, "--output", tmp_path / method]
        assert influence("--config", tmp_path / "all" / "config.yaml", *plain) == 0
